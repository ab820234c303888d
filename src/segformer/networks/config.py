"""What builds a part again."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


class Config:
    """Base of the frozen dataclasses that hold a part's arguments: ``type(part)(**part.config)``.

    The values are numbers, names, and tuples and mappings of them, so that a file can hold them.
    """

    def keys(self) -> list[str]:
        """The names of the arguments."""
        return [field.name for field in fields(self)]  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)
