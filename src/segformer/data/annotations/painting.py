"""Areas as label maps, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segformer.data.annotations.areas import Annotated, Area, Mask, Outline, Ring, Size
from segformer.data.annotations.fields import fault
from segformer.data.annotations.shapes import Polygon, draw
from segformer.data.families.opened import Window

FARTHEST = 1e7  # pixels from the image's corner
CROSSED = 1.0  # pixels that crossings may enclose
CURE = "draw it again, or remove it; `invalid_polygons: draw` draws such polygons as they are"


def paint(
    labels: np.ndarray,
    annotated: Annotated,
    value_of: Callable[[Area], int],
    size: Size,
    window: Window | None = None,
) -> None:
    """Draws areas, which :func:`check_outlines` has checked, later ones over earlier ones.

    Args:
        labels: Label map (H, W) of the image, or of a window of it.
        annotated: The areas.
        value_of: Returns the class index of an area.
        size: Height and width of the image.
        window: The window.

    Raises:
        ValueError: If an area cannot be drawn. The message names it.
    """
    part = window or Window(0, 0, *size)
    corner = np.array([part.left, part.top])
    waiting: list[Polygon] = []
    for area in annotated.areas:
        value = value_of(area)
        if isinstance(area.shape, Outline):
            waiting += [
                Polygon(value, tuple(ring - corner for ring in rings)) for rings in area.shape.parts
            ]
            continue
        draw(labels, waiting)
        waiting = []
        _stamp(labels, area, value, annotated.path, size, part)
    draw(labels, waiting)


def bounds_of(annotated: Annotated) -> np.ndarray:
    """Returns left, top, right and bottom of each area (N, 4); masks may be anywhere."""
    everywhere = np.array([-np.inf, -np.inf, np.inf, np.inf])
    found = [everywhere for _ in annotated.areas]
    for number, area in enumerate(annotated.areas):
        if isinstance(area.shape, Outline):
            corners = np.concatenate([part[0] for part in area.shape.parts])
            found[number] = np.concatenate([corners.min(0), corners.max(0)])
    return np.array(found).reshape(-1, 4)


def none_holds_a_pixel(annotated: Annotated, bounds: np.ndarray) -> Iterator[ValueError]:
    """Yields an error if an image has areas, and none of them holds the centre of a pixel.

    Args:
        annotated: The areas of the image.
        bounds: Their bounds, from :func:`bounds_of`.
    """
    first, last = np.ceil(bounds[:, :2] - 0.5), np.floor(bounds[:, 2:] - 0.5)  # pixels
    if len(bounds) and (first > last).any(1).all():
        left, top, right, bottom = (f"{value:g}" for value in bounds[0])
        yield fault(
            annotated.path,
            annotated.areas[0].where,
            f"it is at x from {left} to {right} and y from {top} to {bottom}, and no area of the "
            "image holds the centre of a pixel: if these are shares of the sides, or longitude and "
            f"latitude, save them in pixels; {CURE}",
        )


def in_window(annotated: Annotated, bounds: np.ndarray, window: Window) -> Annotated:
    """Returns the areas that may reach into a window.

    Args:
        annotated: The areas of an image.
        bounds: Their bounds, from :func:`bounds_of`.
        window: The window.
    """
    left, top, right, bottom = bounds.T
    reaches = (left < window.left + window.width) & (right > window.left)
    reaches &= (top < window.top + window.height) & (bottom > window.top)
    areas = tuple(annotated.areas[number] for number in np.flatnonzero(reaches).tolist())
    return replace(annotated, areas=areas)


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
    """Checks the polygons of an image, except for what :func:`invalid_polygons` yields.

    Raises:
        ValueError: If one has fewer than three points, or lies outside the image. The message names
            it.
    """
    found = _polygons(annotated)
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


def _polygons(annotated: Annotated) -> list[tuple[Area, tuple[Ring, ...]]]:
    """Returns the rings of each polygon, with its area."""
    return [
        (area, part)
        for area in annotated.areas
        if isinstance(area.shape, Outline)
        for part in area.shape.parts
    ]


def invalid_polygons(annotated: Annotated) -> Iterator[ValueError]:
    """Yields an error for each polygon that crosses itself or its hole, or has no area.

    Args:
        annotated: Areas that :func:`check_outlines` has checked.
    """
    found = _polygons(annotated)
    if not found:
        return
    shapely = _shapely()
    corners = np.concatenate([ring for _, part in found for ring in part])
    lengths = [len(ring) for _, part in found for ring in part]
    of_ring = np.repeat(np.arange(len(lengths)), lengths)
    rings = shapely.linearrings(corners, indices=of_ring)
    of_part = np.repeat(np.arange(len(found)), [len(part) for _, part in found])
    polygons = shapely.polygons(rings, indices=of_part)
    for number in np.flatnonzero(~shapely.is_valid(polygons)).tolist():
        area, part = found[number]
        enclosed = shapely.make_valid(polygons[number]).area
        if not enclosed:
            what = f"a polygon at {_point(part[0][0])} has no area; {CURE}"
            yield fault(annotated.path, area.where, what)
            continue
        signed = [abs(_signed_area(ring)) for ring in part]
        if abs(enclosed - (signed[0] - sum(signed[1:]))) <= CROSSED:
            continue
        at = _crossing(part)
        if at is not None or len(part) > 1:
            at = part[-1][0] if at is None else at
            what = f"a polygon crosses itself or its hole at {_point(at)}; {CURE}"
            yield fault(annotated.path, area.where, what)


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
