"""What happened to the keys of a file when it was read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


def some(names: Iterable[str]) -> str:
    """Returns the first five names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass
class Report:
    """What happened to the keys of a file, as one short table.

    Args:
        source: Path of the file.
        layout: Name of its layout.
        rows: An event (unwrapped, dropped, folded, adapted, new, ignored or note), the names that
            it concerns, and its reason.
    """

    source: str
    layout: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, event: str, subject: str | Iterable[str], reason: str) -> None:
        """Adds a row."""
        self.rows.append((event, subject if isinstance(subject, str) else some(subject), reason))

    @property
    def is_harmless(self) -> bool:
        """Whether the model equals the one in the file: nothing is new, guessed or ignored."""
        return not any(event in ("new", "ignored", "note") for event, _, _ in self.rows)

    def __str__(self) -> str:
        widths = [max((len(row[column]) for row in self.rows), default=0) for column in (0, 1)]
        rows = [
            f"  {event:{widths[0]}}  {subject:{widths[1]}}  {reason}".rstrip()
            for event, subject, reason in self.rows
        ]
        return "\n".join([f"{self.source}: {self.layout} layout", *rows])
