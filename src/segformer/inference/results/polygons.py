"""Polygons as GeoJSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segformer.data.annotations.shapes import polygons_of
from segformer.data.classes import Classes
from segformer.data.complete import complete
from segformer.data.families import geotiff
from segformer.inference.large import Also, LargeImage, Shape
from segformer.inference.results.base import Prediction, Result, skip


class Polygons(Result):
    """``NAME.geojson``: the areas of the classes along the edges of pixels, with their holes.

    Coordinates are those of the raster's coordinate reference system if the image has one.
    Otherwise they are pixels: x to the right, y downwards, from the corner of the first pixel.
    """

    name = "polygons"
    ending = ".geojson"
    for_large = True

    def check(self, model: Any) -> None:
        """Raises ModuleNotFoundError if rasterio is missing."""
        if not geotiff.is_installed():
            raise ModuleNotFoundError(
                "polygons need rasterio; install segformer[annotations]", name="rasterio"
            )

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the polygons of a label map."""
        polygons = polygons_of(prediction.labels, prediction.classes.ignore_index)
        _write(((p.value, p.geometry) for p in polygons), prediction.classes, path, None)

    @contextmanager
    def of_large(self, image: LargeImage, path: Path) -> Iterator[Also]:
        """Writes the polygons of a label map, which need not fit into memory."""
        yield skip
        _write(image.areas(), image.classes, path, image.crs)


def _write(shapes: Iterable[Shape], classes: Classes, path: Path, crs: Any) -> None:
    """Writes a feature a line."""
    with complete(path) as partial, partial.open("wb") as file:
        file.write(b'{"type": "FeatureCollection",\n')
        if crs is not None:  # as GeoJSON had it before 2016, and QGIS and GDAL read it still
            name = {"type": "name", "properties": {"name": _crs_name(crs)}}
            file.write(f'"crs": {json.dumps(name)},\n'.encode())
        file.write(b'"features": [')
        for number, line in enumerate(_features(shapes, classes)):
            file.write(f"{',' if number else ''}\n{line}".encode())
        file.write(b"\n]}\n")


def _features(shapes: Iterable[Shape], classes: Classes) -> Iterator[str]:
    for k, geometry in shapes:
        properties = {"class": classes.names[k], "index": k}
        feature = {"type": "Feature", "properties": properties, "geometry": geometry}
        yield json.dumps(feature, ensure_ascii=False)


def _crs_name(crs: Any) -> str:
    code = crs.to_epsg()
    return f"urn:ogc:def:crs:EPSG::{code}" if code else str(crs.to_wkt())
