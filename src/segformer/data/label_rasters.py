"""Label maps that are rasters: types that Pillow does not read, and parts of large files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from segformer.data.bands import Bands, valid_pixels
from segformer.data.classes import Classes
from segformer.data.families import geotiff
from segformer.data.families.opened import Opened, Window
from segformer.data.images import Header, read_header
from segformer.data.labels import Coding, Values, coding_of, whole_numbers


def label_raster(
    path: Path,
    page: int | None = None,
    classes: Classes | None = None,
    palette: Coding | None = None,
) -> Opened | None:
    """Returns a label map of values that rasterio reads; None for other files, and for colours.

    Args:
        path: Path of the file.
        page: Its page, for the page of an image; by default it has one.
        classes: Names and colours of the classes; without them values are indices.
        palette: See :func:`~segformer.data.labels.read_label_map`.

    Raises:
        ValueError: If it cannot be read, its compression changes values, or its palette does not
            show which classes it means.
    """
    if not (geotiff.is_installed() and geotiff.is_raster(path)):
        return None
    raster = Bands(pages=None if page is None else "images").open_file(path, page)
    if raster.shape[0] != 1 or np.dtype(raster.dtype).kind not in "uif":
        return None
    header = header_of(raster)
    is_turned = (header.orientation or 1) != 1  # by Pillow, and not by rasterio
    return raster if coding_of(header, classes, palette) == "index" and not is_turned else None


def header_of(raster: Opened) -> Header:
    """Returns Pillow's header of a raster of one band, or what it would be if Pillow read it."""
    with suppress(OSError, ValueError):
        return read_header(raster.path)
    kind = np.dtype(raster.dtype).kind
    return Header(
        path=raster.path,
        format="TIFF",
        mode="P" if raster.palette else "F" if kind == "f" else "I",
        size=raster.size,
        greatest=1 if kind == "f" else int(np.iinfo(raster.dtype).max),
        pages=1,
        orientation=None,
        compression=raster.lossy_compression or "raw",
        palette=raster.palette,
        transparent=False,
        inverted=False,
    )


def values_of_raster(raster: Opened, window: Window | None = None) -> Values:
    """Returns the values of a label map, or of a window of it.

    Raises:
        ValueError: If it cannot be read, or holds fractions.
    """
    values = raster.read(window or raster.whole)[0]
    valid = valid_pixels(raster, window)
    if values.dtype.kind == "f":
        values = values if valid is None else np.where(valid, values, 0)
        values = whole_numbers(values, header_of(raster))
    indices = torch.from_numpy(values if values.dtype == np.uint8 else values.astype(np.int64))
    where = None if valid is None else torch.from_numpy(valid)
    return Values(raster.path, indices, where, raster.no_data)
