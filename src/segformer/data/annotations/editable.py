"""Predicted labels as polygons that people correct in annotation tools."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from segformer.data.annotations.shapes import Polygon, polygons_of

AREA = 64  # pixels of the smallest area
TOLERANCE = 1.0  # pixels by which an outline may differ


def editable(
    labels: np.ndarray,
    area: int = AREA,
    tolerance: float = TOLERANCE,
    ignore_index: int | None = None,
) -> list[Polygon]:
    """Returns outlines without holes, in the order in which they are drawn over one another.

    Tools have no holes: the areas that lie in one are drawn after it. Smaller areas join their
    largest neighbour, and outlines are made simpler, those of neighbours in the same way.

    Args:
        labels: Class indices (H, W), uint8 or uint16.
        area: Number of pixels of the smallest area.
        tolerance: Number of pixels by which outlines may move; 0 keeps them.
        ignore_index: Value without an outline.
    """
    import shapely
    from rasterio.features import sieve

    kept = sieve(labels, area, connectivity=4) if area > 1 else labels
    polygons = polygons_of(kept, ignore_index)
    shapes = np.array([shapely.Polygon(p.rings[0], p.rings[1:]) for p in polygons])
    if tolerance:
        shapes = shapely.coverage_simplify(shapes, tolerance)
    outlines = [
        replace(polygon, rings=(shapely.get_coordinates(part.exterior)[:-1],))
        for polygon, shape in zip(polygons, shapes, strict=True)
        for part in shapely.get_parts(shape)
    ]
    return sorted(outlines, key=lambda outline: -shapely.Polygon(outline.rings[0]).area)
