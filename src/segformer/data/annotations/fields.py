"""Records of annotation files, whose values are asked for by name and type."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segformer.data.pairing import read_text

LARGEST = 1e15  # of a number


@dataclass(frozen=True)
class Record:
    """An object of a JSON file, and its place, which messages name.

    Args:
        path: The file.
        where: Its place in the file, such as ``annotation 12``.
        values: Its values by name.
    """

    path: Path
    where: str
    values: dict[str, Any]

    def wrong(self, what: str) -> ValueError:
        """Returns the error that something is wrong here; ``what`` ends with the cure."""
        return fault(self.path, self.where, what)

    def has(self, key: str) -> bool:
        """Returns whether a value is given and not null."""
        return self.values.get(key) is not None

    def text(self, key: str) -> str:
        """Returns a string, or a whole number as a string."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.wrong(f"{key!r} is {_shown(value)} and must be text; correct it")
        return str(value)

    def number(self, key: str) -> float:
        return self._number(self._value(key), key)

    def whole(self, key: str) -> int:
        """Returns a whole number, which some tools write as 3.0."""
        value = self.number(key)
        if value != int(value):
            raise self.wrong(f"{key!r} is {value} and must be a whole number; correct it")
        return int(value)

    def numbers(self, key: str) -> np.ndarray:
        """Returns a list of numbers."""
        values = self._list(key)
        found = _array(values, 1)
        return np.array([self._number(v, key) for v in values]) if found is None else found

    def points(self, key: str) -> np.ndarray:
        """Returns a list of pairs of numbers (N, 2)."""
        pairs = self._list(key)
        found = _array(pairs, 2)
        if found is not None and found.shape[1] == 2:
            return found
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise self.wrong(f"{key!r} must be a list of points [x, y]; correct it")
        points = [(self._number(x, key), self._number(y, key)) for x, y in pairs]
        return np.array(points).reshape(-1, 2)

    def record(self, key: str, where: str | None = None) -> Record:
        return self._record(self._value(key), where or f"{self.where}, {key}")

    def records(self, key: str, what: str) -> Iterator[Record]:
        """Yields the objects of a list, each with its number or its own id as its place."""
        for number, values in enumerate(self._list(key), 1):
            own = values.get("id", number) if isinstance(values, dict) else number
            yield self._record(values, f"{what} {_shown(own)}")

    def _record(self, values: Any, where: str) -> Record:
        if not isinstance(values, dict):
            raise fault(
                self.path, where, f"it is {_shown(values)} and must be an object; correct it"
            )
        return Record(self.path, where, values)

    def _value(self, key: str) -> Any:
        if not self.has(key):
            raise self.wrong(f"it has no {key!r}; add it, or export the file again")
        return self.values[key]

    def _list(self, key: str) -> list[Any]:
        value = self._value(key)
        if not isinstance(value, list):
            raise self.wrong(f"{key!r} is {_shown(value)} and must be a list; correct it")
        return value

    def _number(self, value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(f"{key!r} holds {_shown(value)}, which is no number; correct it")
        if abs(value) > LARGEST or not math.isfinite(value):
            raise self.wrong(f"{key!r} holds {_shown(value)}, which is too large; correct it")
        return float(value)


def fault(path: Path, where: str, what: str) -> ValueError:
    """Returns the error that something is wrong at a place in a file."""
    return ValueError(f"{str(path)!r}, {where}: {what}" if where else f"{str(path)!r}: {what}")


def _array(values: list[Any], axes: int) -> np.ndarray | None:
    """Returns numbers as an array of float64, None if one of them is not one, or too large.

    It is much faster than to look at each number.
    """
    try:
        found = np.array(values)
    except ValueError:  # lists of different lengths
        return None
    if found.ndim != axes or found.dtype.kind not in "if" or not (np.abs(found) <= LARGEST).all():
        return None
    return found.astype(np.float64)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        ValueError: If it is no whole JSON.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(read_text(path), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(
            f"{str(path)!r} is no whole JSON file ({error}); export or copy it again"
        ) from error
