"""Polygons as label maps, and label maps as polygons, by rasterio (GDAL)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Polygon:
    """An area with a class.

    Args:
        value: Class index.
        rings: Corners (N, 2) of the outline, and of each hole, as x and y in pixels. The first
            pixel reaches from (0, 0) to (1, 1). The last corner is joined to the first.
    """

    value: int
    rings: tuple[np.ndarray, ...]

    @property
    def geometry(self) -> dict[str, Any]:
        """It as GeoJSON has it: each ring ends with its first corner."""
        closed = [np.concatenate([ring, ring[:1]]).tolist() for ring in self.rings]
        return {"type": "Polygon", "coordinates": closed}

    @classmethod
    def of_geometry(cls, value: int, coordinates: Sequence[Any]) -> Polygon:
        """Returns the polygon of GeoJSON's coordinates."""
        return cls(value, tuple(np.asarray(ring, np.float64)[:-1] for ring in coordinates))


def draw(labels: np.ndarray, polygons: Iterable[Polygon]) -> None:
    """Draws polygons into a label map (H, W) in their order, later ones over earlier ones.

    A pixel is in a polygon if its centre is.
    """
    shapes = [(polygon.geometry, polygon.value) for polygon in polygons]
    if shapes:
        _features().rasterize(shapes, out=labels)


def polygons_of(labels: np.ndarray, ignore_index: int | None = None) -> list[Polygon]:
    """Returns the areas of a label map (H, W) along the edges of its pixels, with their holes.

    Drawn again, they give the same label map. Pixels that touch at a corner only are apart.

    Args:
        labels: Class indices, uint8 or uint16.
        ignore_index: Value without a polygon.
    """
    mask = None if ignore_index is None else labels != ignore_index
    return [
        Polygon.of_geometry(int(value), geometry["coordinates"])
        for geometry, value in _features().shapes(labels, mask, connectivity=4)
    ]


def _features() -> Any:
    try:
        from rasterio import features
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "polygons need rasterio; install segformer[annotations]", name=error.name
        ) from error
    return features
