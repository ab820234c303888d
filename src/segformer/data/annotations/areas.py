"""Annotated areas of images: outlines and masks with the names of their classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segformer.data.annotations.fields import fault
from segformer.data.annotations.shapes import Polygon, draw
from segformer.data.families.opened import Grid, Window

FARTHEST = 1e7  # pixels from the image's corner
CROSSED = 1.0  # pixels that crossings may enclose
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


def check_size(annotated: Annotated, picture: Picture) -> None:
    """Raises ValueError if a file states another size than the image has."""
    if annotated.size not in (None, picture.size):
        assert annotated.size is not None
        shown, own = ("×".join(map(str, size)) for size in (annotated.size, picture.size))
        raise fault(
            annotated.path,
            annotated.where,
            f"image {str(picture.path)!r} is {own}, and its annotations were drawn on {shown} "
            "(height × width); put the image there that was annotated, or annotate this one",
        )


def paint(
    labels: np.ndarray,
    annotated: Annotated,
    value_of: Callable[[Area], int],
    size: Size,
    window: Window | None = None,
) -> None:
    """Draws areas into a label map, later ones over earlier ones.

    Args:
        labels: Label map (H, W) of the image, or of a window of it.
        annotated: The areas.
        value_of: Returns the class index of an area.
        size: Height and width of the image.
        window: The window.

    Raises:
        ValueError: If an area cannot be drawn. The message names it.
    """
    check_outlines(annotated, size)
    corner = np.array([window.left, window.top]) if window else np.zeros(2)
    waiting: list[Polygon] = []
    for area in annotated.areas:
        value = value_of(area)
        if isinstance(area.shape, Outline):
            waiting += [
                Polygon(value, tuple(ring - corner for ring in part)) for part in area.shape.parts
            ]
            continue
        draw(labels, waiting)
        waiting = []
        _stamp(labels, area, value, annotated.path, size, window or Window(0, 0, *size))
    draw(labels, waiting)


def _stamp(
    labels: np.ndarray, area: Area, value: int, path: Path, size: Size, window: Window
) -> None:
    assert isinstance(area.shape, Mask)
    try:
        top, left, mask = area.shape.pixels(size)
    except ValueError as error:
        raise fault(path, area.where, str(error)) from error
    height, width = mask.shape
    if top >= size[0] or left >= size[1] or top + height <= 0 or left + width <= 0:
        raise fault(path, area.where, _outside((left, top, left + width, top + height), size))
    top, left = top - window.top, left - window.left
    rows = slice(max(0, top), max(0, min(window.height, top + height)))
    columns = slice(max(0, left), max(0, min(window.width, left + width)))
    part = mask[
        rows.start - top : rows.stop - top,
        columns.start - left : columns.stop - left,
    ]
    labels[rows, columns][part] = value


def check_outlines(annotated: Annotated, size: Size) -> None:
    """Checks the polygons of an image.

    Raises:
        ValueError: If one has fewer than three points, no area, crosses itself, or lies outside the
            image. The message names it.
    """
    found = [
        (area, part)
        for area in annotated.areas
        if isinstance(area.shape, Outline)
        for part in area.shape.parts
    ]
    rings = [ring for _, part in found for ring in part]
    for area, part in found:
        if few := [len(ring) for ring in part if len(ring) < 3]:
            raise fault(
                annotated.path,
                area.where,
                f"a polygon has {few[0]} points and needs three; draw it again, or remove it",
            )
    if not rings:
        return
    corners = np.concatenate(rings)
    if not (np.abs(corners) < FARTHEST).all():
        area = next(a for a, part in found if not (np.abs(np.concatenate(part)) < FARTHEST).all())
        raise fault(
            annotated.path,
            area.where,
            "a polygon is millions of pixels away from the image; draw it again, or remove it",
        )
    _check_bounds(annotated, found, size)
    _check_crossings(annotated, found, corners)


def _check_bounds(
    annotated: Annotated, found: list[tuple[Area, tuple[Ring, ...]]], size: Size
) -> None:
    for area, part in found:
        (left, top), (right, bottom) = part[0].min(0), part[0].max(0)
        if left >= size[1] or top >= size[0] or right <= 0 or bottom <= 0:
            raise fault(annotated.path, area.where, _outside((left, top, right, bottom), size))


def _outside(bounds: tuple[float, float, float, float], size: Size) -> str:
    left, top, right, bottom = (f"{value:g}" for value in bounds)
    return (
        f"it lies outside the image: x from {left} to {right} and y from {top} to {bottom}, and "
        f"the image is {size[1]} wide and {size[0]} high; move or remove it, or put the image "
        "there that was annotated"
    )


def _check_crossings(
    annotated: Annotated, found: list[tuple[Area, tuple[Ring, ...]]], corners: np.ndarray
) -> None:
    shapely = _shapely()
    lengths = [len(ring) for _, part in found for ring in part]
    of_ring = np.repeat(np.arange(len(lengths)), lengths)
    rings = shapely.linearrings(corners, indices=of_ring)
    of_part = np.repeat(np.arange(len(found)), [len(part) for _, part in found])
    polygons = shapely.polygons(rings, indices=of_part)
    for number in np.flatnonzero(~shapely.is_valid(polygons)).tolist():
        area, part = found[number]
        enclosed = shapely.make_valid(polygons[number]).area
        if not enclosed:
            raise fault(
                annotated.path,
                area.where,
                f"a polygon at {_point(part[0][0])} has no area; draw it again, or remove it",
            )
        signed = [abs(_signed_area(ring)) for ring in part]
        if abs(enclosed - (signed[0] - sum(signed[1:]))) <= CROSSED:
            continue
        at = _crossing(part)
        if at is not None or len(part) > 1:
            at = part[-1][0] if at is None else at
            raise fault(
                annotated.path,
                area.where,
                f"a polygon crosses itself or its hole at {_point(at)}; draw it again, or "
                "remove it",
            )


def _crossing(rings: Sequence[Ring]) -> np.ndarray | None:
    """Returns a point where two edges cross, None if they only touch.

    Edges of bridges, which join a hole or a second part to an outline, touch.
    """
    shapely = _shapely()
    edges = shapely.linestrings(
        np.concatenate([np.stack([ring, np.roll(ring, -1, 0)], 1) for ring in rings])
    )
    pairs = shapely.STRtree(edges).query(edges, predicate="crosses")
    if not pairs.size:
        return None
    point = shapely.intersection(edges[pairs[0, 0]], edges[pairs[1, 0]])
    return np.array([point.x, point.y])


def _signed_area(ring: Ring) -> float:
    x, y = (ring - ring[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _point(point: Any) -> str:
    return f"x = {float(point[0]):g}, y = {float(point[1]):g}"


def _shapely() -> Any:
    try:
        import shapely
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "polygons need shapely; install segformer[annotations]", name=error.name
        ) from error
    return shapely
