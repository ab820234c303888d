"""Annotated areas of images: outlines and masks with the names of their classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segformer.data.annotations.fields import fault
from segformer.data.families.opened import Grid

CORNERS = 256  # of a circle

Size = tuple[int, int]  # height and width
Ring = np.ndarray  # corners (N, 2), x and y in pixels


@dataclass(frozen=True)
class Picture:
    """The image that annotations belong to.

    Args:
        path: Path of its file.
        size: Height and width in pixels, as it is shown.
        grid: Where it lies on the earth, if that is known.
    """

    path: Path
    size: Size
    grid: Grid | None = None


@dataclass(frozen=True, slots=True)
class Outline:
    """Polygons of one object.

    Args:
        parts: The rings of each polygon: its outline and its holes.
    """

    parts: tuple[tuple[Ring, ...], ...]

    @classmethod
    def of_points(cls, *rings: Any) -> Outline:
        """Returns the outline of polygons without holes, each a list of points (x, y)."""
        return cls(tuple((np.asarray(ring, np.float64).reshape(-1, 2),) for ring in rings))

    @classmethod
    def of_box(cls, left: float, top: float, right: float, bottom: float) -> Outline:
        return cls.of_points([(left, top), (right, top), (right, bottom), (left, bottom)])

    @classmethod
    def of_ellipse(cls, x: float, y: float, radius_x: float, radius_y: float) -> Outline:
        angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
        ring = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], 1)
        return cls(((ring,),))

    def turned(self, degrees: float, x: float, y: float) -> Outline:
        """Returns the outline turned clockwise, as one sees it, about a point."""
        if not degrees:
            return self
        sin, cos = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
        turn = np.array([[cos, sin], [-sin, cos]])  # y points down
        centre = np.array([x, y])
        return Outline(
            tuple(tuple((ring - centre) @ turn + centre for ring in part) for part in self.parts)
        )


class Mask(ABC):
    """Pixels of one object."""

    __slots__ = ()

    @abstractmethod
    def pixels(self, size: Size) -> tuple[int, int, np.ndarray]:
        """Returns the first row and column of a part of the image, and which of its pixels are set.

        Args:
            size: Height and width of the image.

        Raises:
            ValueError: If it does not fit an image of this size. The message does not name it.
        """


@dataclass(frozen=True, slots=True)
class Area:
    """An annotated area.

    Args:
        name: Name of its class.
        shape: Which pixels it has.
        where: Its place in the file, for messages.
    """

    name: str
    shape: Outline | Mask
    where: str


@dataclass(frozen=True)
class Annotated:
    """The annotations of one image.

    Args:
        path: The file that holds them.
        areas: Its areas in their order; later ones lie over earlier ones.
        names: Names that the file gives the image; any of them may be the image's.
        size: Height and width of the image, if the file states them.
        where: Its place in the file, for messages.
    """

    path: Path
    areas: Sequence[Area]
    names: tuple[str, ...] = ()
    size: Size | None = None
    where: str = ""

    def of(self, picture: Picture) -> Annotated:
        """Returns itself; annotations in a file of their own are read here."""
        return self


class Source(Protocol):
    """The annotations of one image, which may not be read yet."""

    @property
    def path(self) -> Path: ...

    def of(self, picture: Picture) -> Annotated: ...


def said_sizes(*sizes: Size) -> list[str]:
    """Returns sizes as messages have them, such as ``360×480`` (height × width)."""
    return ["×".join(map(str, size)) for size in sizes]


def check_size(annotated: Annotated, picture: Picture) -> None:
    """Raises ValueError if a file states another size than the image has."""
    if annotated.size not in (None, picture.size):
        assert annotated.size is not None
        shown, own = said_sizes(annotated.size, picture.size)
        raise fault(
            annotated.path,
            annotated.where,
            f"image {str(picture.path)!r} is {own}, and its annotations were drawn on {shown} "
            "(height × width); put the image there that was annotated, or annotate this one",
        )
