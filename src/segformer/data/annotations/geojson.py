"""GeoJSON over a georeferenced image, by the image's own transform; or in pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segformer.data.annotations.areas import Annotated, Area, Outline, Picture
from segformer.data.annotations.fields import Record
from segformer.data.families import geotiff
from segformer.data.families.opened import Grid

WGS84 = "EPSG:4326"
WGS84_NAMES = ("OGC:CRS84", "URN:OGC:DEF:CRS:OGC:1.3:CRS84", "URN:OGC:DEF:CRS:OGC::CRS84")
CLASS_KEYS = ("class", "label", "category", "class_name", "classification", "name", "type")


def read(document: Record, picture: Picture) -> Annotated:
    """Returns the polygons of a file in pixels of an image.

    The coordinates are those of the image's coordinate reference system; for an image without one
    they are pixels. The name of a feature's class is its property ``class``, ``label``,
    ``category``, ``class_name``, ``classification``, ``name`` or ``type``, the first that it has.

    Raises:
        ValueError: If the file is for another coordinate reference system, or a feature has no
            class or is no polygon.
    """
    grid = picture.grid or grid_of(picture.path)
    _check_system(document, grid, picture.path)
    single = document.values.get("type") == "Feature"
    features = [document] if single else document.records("features", "feature")
    areas = tuple(
        Area(_name(feature), _outline(feature, grid), feature.where or "feature 1")
        for feature in features
    )
    return Annotated(document.path, areas)


def grid_of(path: Path) -> Grid | None:
    """Returns where a TIFF file lies on the earth, None if it does not say."""
    return geotiff.open_raster(path, "bands", 0).grid if geotiff.is_raster(path) else None


def _check_system(document: Record, grid: Grid | None, image: Path) -> None:
    """Raises ValueError if the coordinates are not those of the image."""
    name = None
    if document.has("crs"):
        name = document.record("crs").record("properties").text("name")
    if grid is None:
        if name is not None:
            raise document.wrong(
                f"its coordinates are those of {name}, and image {str(image)!r} has no place on "
                "the earth; use the georeferenced image"
            )
        return
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    own = CRS.from_wkt(grid.crs)
    is_wgs84 = name is None or name.upper() in WGS84_NAMES
    try:
        stated = CRS.from_user_input(WGS84 if is_wgs84 else name)
    except CRSError as error:
        raise document.wrong(f"its crs {name!r} is unknown ({error}); correct it") from error
    if stated != own:
        what = "has no crs, which means longitude and latitude" if name is None else f"is {name}"
        raise document.wrong(
            f"its coordinate reference system {what}, and that of image {str(image)!r} is "
            f"{own.to_string()[:60]}; save it in the image's, as by ogr2ogr -t_srs"
        )


def _name(feature: Record) -> str:
    properties = feature.record("properties")
    for key in CLASS_KEYS:
        value = properties.values.get(key)
        if isinstance(value, dict) and "name" in value:  # QuPath
            return properties.record(key).text("name")
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return str(value)
    raise properties.wrong(
        f"it names no class; give it the property 'class' (it has {', '.join(properties.values)})"
        if properties.values
        else "it names no class; give it the property 'class'"
    )


def _outline(feature: Record, grid: Grid | None) -> Outline:
    geometry = feature.record("geometry")
    kind = geometry.text("type")
    if kind not in ("Polygon", "MultiPolygon"):
        raise geometry.wrong(f"a {kind} has no area; draw a polygon, or remove it")
    coordinates = geometry.values.get("coordinates")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(part, list) for part in polygons):
        raise geometry.wrong("'coordinates' must be lists of rings; export the file again")
    parts = []
    for part in polygons:
        rings = Record(feature.path, feature.where, dict(enumerate(part)))  # type: ignore[arg-type]
        parts.append(tuple(_ring(rings, number, grid) for number in rings.values))
    if not parts or not all(parts):
        raise geometry.wrong("a polygon has no ring; draw it again, or remove it")
    return Outline(tuple(parts))


def _ring(rings: Record, number: Any, grid: Grid | None) -> np.ndarray:
    values = rings.values[number]
    if isinstance(values, list):  # without height
        values = [point[:2] if isinstance(point, list) else point for point in values]
    points = Record(rings.path, rings.where, {"coordinates": values}).points("coordinates")
    ring = np.asarray(points, np.float64).reshape(-1, 2)
    if len(ring) > 1 and (ring[0] == ring[-1]).all():
        ring = ring[:-1]
    if grid is None:
        return ring
    from rasterio.transform import Affine

    inverse = ~Affine(*grid.transform)
    matrix = np.array([[inverse.a, inverse.b], [inverse.d, inverse.e]])
    return (ring - [grid.transform[2], grid.transform[5]]) @ matrix.T
