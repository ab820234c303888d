"""What a run has done, line by line, so that a stopped run can go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from segformer.inference.results.base import Entry, Summary
from segformer.inference.results.tables import as_line, write_lines


class Journal:
    """The entries of a summary, in a file with a line for each.

    Args:
        summary: The summary.
        folder: Folder of the run.
        part: Of several processes, such as ``"1-of-2"``; empty for one.
        goes_on: Whether the entries of an earlier run are kept; those of errors are not.
    """

    def __init__(self, summary: Summary, folder: Path, part: str, goes_on: bool) -> None:
        self.summary = summary
        name = Path(summary.file)
        self.target = folder / f"{name.stem}{part and f'-{part}'}{name.suffix}"
        is_own = self.target.suffix == ".jsonl"  # the file is the journal
        self.path = self.target if is_own else folder / f".{self.target.name}.jsonl"
        self.entries = _read(self.path) if goes_on else {}

    def __enter__(self) -> Self:
        write_lines(self.path, self.entries.values())
        self.file = self.path.open("ab")
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.file.close()

    def add(self, entry: Entry | None) -> None:
        """Writes an entry at once."""
        if entry is not None:
            self.entries[entry["file"]] = entry
            self.file.write(as_line(entry).encode())
            self.file.flush()

    def sort(self, names: Sequence[str]) -> None:
        """Puts the entries in the order of the images' names; others come first."""
        place = {name: number for number, name in enumerate(names)}
        ordered = sorted(self.entries.items(), key=lambda item: place.get(item[0], -1))
        self.entries = dict(ordered)
        write_lines(self.path, self.entries.values())


def _read(path: Path) -> dict[str, Entry]:
    """Returns the entries of an earlier run; a last line that was cut off is left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.removesuffix("\n").split("\n") if text else []
    entries = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not entry.get("error"):
                entries[str(entry["file"])] = entry
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number < len(lines):
                raise ValueError(
                    f"line {number} of {str(path)!r} is no entry of a run; remove the file, and "
                    "the images are labelled again"
                ) from error
    return entries
