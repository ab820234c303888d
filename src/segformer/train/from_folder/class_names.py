"""Files that name the classes of a folder's label maps."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segformer.data.classes import Color
from segformer.data.images import files_below
from segformer.data.pairing import read_names

UNLABELLED = ("void", "unlabelled", "unlabeled", "ignore", "ignored")  # names of no class
BACKGROUND = ("background", "_background_")  # names of the value 0
TABLES = ("_classes.csv", "classes.csv", "class_dict.csv")
LINES = ("classes.txt", "labels.txt")
CVAT = "labelmap.txt"
JSON = "classes.json"
VALUE_COLUMNS = ("pixel value", "value", "index", "id")
NAME_COLUMNS = ("class", "name", "label")
COLOR_COLUMNS = (("r", "g", "b"), ("red", "green", "blue"))


@dataclass(frozen=True)
class NamedClasses:
    """What a file says about the classes.

    Args:
        path: The file.
        names: Name of each class.
        values: Value of each class in label maps, if the file has it.
        colors: Colour of each class, if the file has it.
    """

    path: Path
    names: tuple[str, ...]
    values: tuple[int, ...] | None = None
    colors: tuple[Color, ...] | None = None


def find_named_classes(root: Path) -> NamedClasses | None:
    """Returns the classes that a file below a folder names, if there is one.

    Raises:
        ValueError: If a file cannot be read, or two files differ.
    """
    readers = {CVAT: _of_cvat, JSON: _of_json}
    readers |= dict.fromkeys(TABLES, _of_table) | dict.fromkeys(LINES, _of_lines)
    paths = sorted(path for path in files_below(root) if path.name in readers)
    found = [readers[path.name](path) for path in paths]
    for other in found[1:]:
        if replace(other, path=found[0].path) != found[0]:
            raise ValueError(
                f"{str(found[0].path)!r} and {str(other.path)!r} name other classes; remove one"
            )
    return found[0] if found else None


def _of_lines(path: Path) -> NamedClasses:
    return NamedClasses(path, tuple(read_names(path)))


def _of_cvat(path: Path) -> NamedClasses:
    """Reads lines such as ``road:128,64,128::``."""
    names, colors = [], []
    for line in read_names(path):
        if line.startswith("#"):
            continue
        name, color, *_ = [*line.split(":"), ""]
        names.append(name)
        colors.append(_color(path, color.split(",")))
    return NamedClasses(path, tuple(names), colors=tuple(colors))


def _color(path: Path, channels: Iterable[Any]) -> Color:
    try:
        red, green, blue = map(int, channels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} has a colour that is not three integers") from error
    return red, green, blue


def _of_table(path: Path) -> NamedClasses:
    """Reads a CSV file of names with values or colours."""
    rows = [
        {str(key).strip().lower(): str(value).strip() for key, value in row.items()}
        for row in csv.DictReader(read_names(path))
    ]
    columns = rows[0].keys() if rows else ()
    name = next((column for column in NAME_COLUMNS if column in columns), None)
    value = next((column for column in VALUE_COLUMNS if column in columns), None)
    color = next((names for names in COLOR_COLUMNS if set(names) <= set(columns)), None)
    if name is None or (value is None and color is None):
        raise ValueError(
            f"{str(path)!r} needs a column of names (class or name), and one of values (pixel "
            "value) or three of colours (r, g, b); correct it"
        )
    colors = [_color(path, (row[channel] for channel in color)) for row in rows] if color else None
    return NamedClasses(
        path,
        tuple(row[name] for row in rows),
        _values(path, [row[value] for row in rows]) if value else None,
        tuple(colors) if colors else None,
    )


def _values(path: Path, values: Iterable[Any]) -> tuple[int, ...]:
    try:
        return tuple(map(int, values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} has a value that is no integer ({error})") from error


def _of_json(path: Path) -> NamedClasses:
    """Reads a list of names, a table of names and values, or COCO's list of categories."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON ({error}); correct it") from error
    if isinstance(content, dict) and isinstance(content.get("categories"), list):
        content = content["categories"]
    if isinstance(content, dict) and content:
        pairs = list(content.items())
        if all(isinstance(value, str) for _, value in pairs):  # {"0": "road"}
            pairs = [(value, key) for key, value in pairs]
        return NamedClasses(
            path, tuple(name for name, _ in pairs), _values(path, [value for _, value in pairs])
        )
    if isinstance(content, list) and content:
        if all(isinstance(name, str) for name in content):
            return NamedClasses(path, tuple(content))
        if all(isinstance(entry, dict) and "name" in entry for entry in content):
            return _of_entries(path, content)
    raise ValueError(
        f'{str(path)!r} must be a list of names, or a table such as {{"road": 0}}; correct it'
    )


def _of_entries(path: Path, entries: list[dict[str, Any]]) -> NamedClasses:
    key = next((key for key in ("id", "value") if all(key in entry for entry in entries)), None)
    has_colors = all("color" in entry for entry in entries)
    return NamedClasses(
        path,
        tuple(str(entry["name"]) for entry in entries),
        _values(path, [entry[key] for entry in entries]) if key else None,
        tuple(_color(path, entry["color"]) for entry in entries) if has_colors else None,
    )
