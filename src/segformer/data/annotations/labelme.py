"""LabelMe's JSON (wkentaro's), one file an image."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from segformer.data.annotations.areas import Annotated, Area, Mask, Outline, Picture, Size
from segformer.data.annotations.fields import Record
from segformer.data.pairing import composed


@dataclass(frozen=True, slots=True)
class BitmapMask(Mask):
    """A mask as a PNG file in base64.

    Args:
        top: Row of its first pixel.
        left: Column of its first pixel.
        size: Height and width of its box.
        data: The PNG file.
    """

    top: int
    left: int
    size: Size
    data: str

    def pixels(self, size: Size) -> tuple[int, int, np.ndarray]:
        try:
            with Image.open(io.BytesIO(base64.b64decode(self.data, validate=True))) as image:
                if (image.height, image.width) != self.size:
                    raise ValueError(
                        f"it is {image.height}×{image.width}, its box {self.size[0]}×{self.size[1]}"
                    )
                mask = np.array(image.convert("L")) > 0
        except Exception as error:  # OSError, SyntaxError, binascii.Error, …
            raise ValueError(
                f"its mask cannot be decoded ({error}); draw it again, or remove it"
            ) from error
        return self.top, self.left, mask


def read(document: Record, picture: Picture) -> Annotated:
    """Returns the annotations of a file, which is named as its image.

    Raises:
        ValueError: If it lacks a value, belongs to another image, or a shape has no area.
    """
    _check_image(document, picture)
    areas = tuple(
        Area(shape.text("label"), _shape(shape), shape.where)
        for shape in document.records("shapes", "shape")
    )
    size = None
    if document.has("imageHeight") or document.has("imageWidth"):
        size = document.whole("imageHeight"), document.whole("imageWidth")
    return Annotated(document.path, areas, (), size)


def _check_image(document: Record, picture: Picture) -> None:
    """Raises ValueError if the file states an image of another name."""
    if not document.has("imagePath"):
        return
    stated = PurePosixPath(document.text("imagePath").replace("\\", "/"))
    if composed(stated.stem) != composed(picture.path.stem):
        raise document.wrong(
            f"it states the image {stated.name!r}, and is named as {str(picture.path)!r}; rename "
            "it, or correct its imagePath"
        )


def _shape(shape: Record) -> Outline | Mask:
    kind = shape.text("shape_type") if shape.has("shape_type") else "polygon"
    points = shape.points("points")
    if kind == "polygon":
        return Outline.of_points(points)
    if kind in ("rectangle", "circle", "mask") and len(points) != 2:
        raise shape.wrong(f"a {kind} has {len(points)} points and needs two; draw it again")
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points
        return Outline.of_box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    if kind == "circle":  # its centre, and a point of its edge
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        return Outline.of_ellipse(x, y, radius, radius)
    if kind == "mask":
        (x1, y1), (x2, y2) = ((int(x), int(y)) for x, y in points)  # both pixels are in the box
        return BitmapMask(y1, x1, (y2 - y1 + 1, x2 - x1 + 1), shape.text("mask"))
    raise shape.wrong(f"a {kind} has no area; draw a polygon, or remove it")
