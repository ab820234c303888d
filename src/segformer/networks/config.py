"""The arguments that build a part again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any


class Config(Mapping[str, Any]):
    """Base of the frozen dataclasses that hold a part's arguments: ``type(part)(**part.config)``.

    As a mapping it has what a file can hold: numbers, strings, and lists and mappings of them.
    """

    def __getitem__(self, name: str) -> Any:
        if name not in iter(self):
            raise KeyError(name)
        value = getattr(self, name)
        return list(value) if isinstance(value, tuple) else value

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(fields(self))  # type: ignore[arg-type]


def check_at_least_1(**sizes: int) -> None:
    """Raises ValueError if a size is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_heads(dims: Sequence[int], heads: Sequence[int]) -> None:
    """Raises ValueError if the attention heads of a stage do not divide its channels."""
    for dim, count in zip(dims, heads, strict=True):
        if dim % count:
            raise ValueError(
                f"a stage of {dim} channels cannot be split into {count} heads; "
                f"choose a divisor of {dim}"
            )


def check_features(in_channels: tuple[int, ...]) -> None:
    """Raises ValueError if there are no feature maps for a head."""
    if not in_channels:
        raise ValueError("in_channels is empty; the head needs at least one feature map")
