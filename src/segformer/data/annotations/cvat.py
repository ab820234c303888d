"""CVAT's XML, version 1.1, "for images"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from segformer.data.annotations.areas import Annotated, Area, Mask, Outline, Size
from segformer.data.annotations.fields import fault

WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton")


@dataclass(frozen=True, slots=True)
class RowRuns(Mask):
    """A mask in a box as run-lengths, row by row.

    Args:
        top: Row of the box's first pixel.
        left: Column of the box's first pixel.
        size: Height and width of the box.
        counts: Numbers of pixels, in turn unset and set.
    """

    top: int
    left: int
    size: Size
    counts: tuple[int, ...]

    def pixels(self, size: Size) -> tuple[int, int, np.ndarray]:
        total = self.size[0] * self.size[1]
        if min(self.counts, default=0) < 0 or sum(self.counts) != total:
            raise ValueError(
                f"its run-lengths add up to {sum(self.counts)}, and its box has {total} pixels; "
                "export the file again"
            )
        is_set = np.arange(len(self.counts)) % 2 == 1
        return self.top, self.left, np.repeat(is_set, self.counts).reshape(self.size)


@dataclass(frozen=True)
class _Shape:
    path: Path
    where: str
    element: Element

    def text(self, key: str) -> str:
        value = self.element.get(key)
        if value is None:
            raise fault(self.path, self.where, f"it has no {key!r}; export the file again")
        return value

    def number(self, key: str, default: str | None = None) -> float:
        text = self.element.get(key, default)
        return self._number(self.text(key) if text is None else text, key)

    def whole(self, key: str) -> int:
        return self._whole(self.text(key), key)

    def points(self) -> list[list[float]]:
        pairs = [pair.split(",") for pair in self.text("points").split(";")]
        if any(len(pair) != 2 for pair in pairs):
            raise fault(self.path, self.where, "'points' must be x,y;x,y;… ; export the file again")
        return [[self._number(value, "points") for value in pair] for pair in pairs]

    def counts(self) -> tuple[int, ...]:
        return tuple(self._whole(value, "rle") for value in self.text("rle").split(","))

    def _whole(self, text: str, key: str) -> int:
        number = self._number(text, key)
        if number != int(number):
            raise fault(self.path, self.where, f"{key!r} holds {text!r}, no whole number")
        return int(number)

    def _number(self, text: str, key: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not abs(number) < 1e15:
            raise fault(
                self.path,
                self.where,
                f"{key!r} holds {text[:40]!r}, which is no number; correct it",
            )
        return number


def read(path: Path, root: Element) -> list[Annotated]:
    """Returns the annotations of each image of a file.

    Shapes of a higher z_order lie over those of a lower one, and later ones over earlier ones.

    Raises:
        ValueError: If it lacks a value, holds tracks of a video, or a shape has no area.
    """
    if root.find("track") is not None:
        raise ValueError(
            f"{str(path)!r} holds the tracks of a video; export it as CVAT for images 1.1"
        )
    return [_annotated(path, image) for image in root.iter("image")]


def _annotated(path: Path, image: Element) -> Annotated:
    head = _Shape(path, f"image {image.get('id', '')}".rstrip(), image)
    name = head.text("name")
    shapes = [
        _Shape(path, f"image {name!r}, {element.tag} {number}", element)
        for number, element in enumerate(image, 1)
        if element.tag != "tag"
    ]
    shapes.sort(key=lambda shape: shape.number("z_order", "0"))
    return Annotated(
        path,
        tuple(Area(shape.text("label"), _shape(shape), shape.where) for shape in shapes),
        (name,),
        (head.whole("height"), head.whole("width")),
        f"image {name!r}",
    )


def _shape(shape: _Shape) -> Outline | Mask:
    kind = shape.element.tag
    degrees = shape.number("rotation", "0")
    if kind == "polygon":
        return Outline.of_points(shape.points())
    if kind == "box":
        left, top, right, bottom = map(shape.number, ("xtl", "ytl", "xbr", "ybr"))
        box = Outline.of_box(left, top, right, bottom)
        return box.turned(degrees, (left + right) / 2, (top + bottom) / 2)
    if kind == "ellipse":
        x, y, radius_x, radius_y = map(shape.number, ("cx", "cy", "rx", "ry"))
        return Outline.of_ellipse(x, y, radius_x, radius_y).turned(degrees, x, y)
    if kind == "mask":
        top, left, height, width = map(shape.whole, ("top", "left", "height", "width"))
        return RowRuns(top, left, (height, width), shape.counts())
    what = "has no area" if kind in WITHOUT_AREA else "is no shape of CVAT's XML 1.1"
    raise fault(shape.path, shape.where, f"a {kind} {what}; draw a polygon, or remove it")
