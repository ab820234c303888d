"""YOLO's text of segments, one file an image, with the names of the classes in data.yaml."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segformer.data.annotations.areas import Annotated, Area, Outline, Picture
from segformer.data.annotations.fields import fault
from segformer.data.pairing import read_text

NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
LINES = ("classes.txt", "obj.names", "labels.txt")


@dataclass(frozen=True)
class Yolo:
    """Reads text files whose lines are a class number, and x and y of points from 0 to 1.

    Args:
        names: Name of each class number.
    """

    names: dict[int, str]

    def __call__(self, path: Path, picture: Picture) -> Annotated:
        """Returns the annotations of a file, which is named as its image.

        Raises:
            ValueError: If a line is no polygon, or its class has no name.
        """
        lines = enumerate(read_text(path).splitlines(), 1)
        return Annotated(
            path,
            tuple(
                self._area(path, f"line {n}", line, picture) for n, line in lines if line.strip()
            ),
        )

    def _area(self, path: Path, where: str, line: str, picture: Picture) -> Area:
        number, values = self._numbers(path, where, line)
        if number not in self.names:
            raise fault(
                path,
                where,
                f"its class is {number}, and data.yaml names {_shown(self.names)}; correct one",
            )
        height, width = picture.size
        points = np.asarray(values, np.float64).reshape(-1, 2)
        if not ((points > -1) & (points < 2)).all():
            raise fault(
                path,
                where,
                f"it has the coordinate {np.abs(points).max():g}, and those of YOLO reach from 0 "
                "to 1; divide them by the image's width and height",
            )
        return Area(self.names[number], Outline(((points * [width, height],),)), where)

    def _numbers(self, path: Path, where: str, line: str) -> tuple[int, list[float]]:
        try:
            first, *others = line.split()
            number, values = int(first), [float(value) for value in others]
        except ValueError as error:
            raise fault(
                path, where, f"it is no line of numbers ({error}); export the file again"
            ) from error
        if len(values) == 4:
            raise fault(
                path, where, "it is a box, which has no outline; draw the object, or remove it"
            )
        if len(values) % 2 or len(values) < 6 or not all(map(math.isfinite, values)):
            raise fault(
                path,
                where,
                f"it has {len(values)} numbers behind the class, and x and y of three points or "
                "more make an even number; export the file again",
            )
        return number, values


def is_segments(line: str) -> bool:
    """Returns whether a file that begins with this line may be YOLO's; an empty one may."""
    words = line.split()
    try:
        return not words or (words[0].isdecimal() and bool([float(word) for word in words]))
    except ValueError:
        return False


def reader_of(folder: Path, images: Path) -> Yolo:
    """Returns the reader of the text files in a folder, with the names of their classes.

    They are those of a file ``data.yaml`` or ``classes.txt`` in the folder or up to three above.

    Raises:
        ValueError: If there is no such file, or it has no names.
    """
    folders = [*[folder, *folder.absolute().parents][:4], images]
    for name in (*NAMES, *LINES):
        for place in folders:
            if (place / name).is_file():
                return Yolo(names_in(place / name))
    raise ValueError(
        f"{str(folder)!r} holds YOLO's text, and no data.yaml there or above names its classes; "
        "add data.yaml with `names: [...]`"
    )


def names_in(path: Path) -> dict[int, str]:
    """Returns the name of each class number of a file.

    Raises:
        ValueError: If it has no names.
    """
    text = read_text(path)
    if path.name in LINES:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return _numbered(path, lines)
    import yaml

    try:
        content: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no YAML ({error}); correct it") from error
    return _numbered(path, content.get("names") if isinstance(content, dict) else None)


def _numbered(path: Path, names: Sequence[Any] | dict[Any, Any] | None) -> dict[int, str]:
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    is_named = isinstance(pairs, dict) and all(
        isinstance(number, int) and isinstance(name, str | int) for number, name in pairs.items()
    )
    if not pairs or not is_named:
        raise ValueError(
            f"{str(path)!r} names no classes; add `names: [...]` with the name of each number"
        )
    assert isinstance(pairs, dict)
    return {number: str(name) for number, name in pairs.items()}


def _shown(names: dict[int, str]) -> str:
    return ", ".join(f"{number} ({name})" for number, name in list(names.items())[:8])
