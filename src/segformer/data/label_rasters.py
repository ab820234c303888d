"""Label maps that are rasters: types that Pillow does not read, and parts of large files."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segformer.data.bands import Bands, valid_pixels
from segformer.data.classes import Classes
from segformer.data.families import geotiff
from segformer.data.families.opened import Opened, Window
from segformer.data.images import Header, read_header
from segformer.data.labels import Coding, Values, coding_of, whole_numbers


@dataclass(frozen=True)
class LabelRaster:
    """A label map of values that rasterio reads.

    Args:
        opened: The raster.
        header: Its header, as Pillow has it, or would have it if it read the file.
    """

    opened: Opened
    header: Header

    def values(self, window: Window | None = None) -> Values:
        """Returns its values, or those in a window of it.

        Raises:
            ValueError: If it cannot be read, or holds fractions.
        """
        raster = self.opened
        values = raster.read(window or raster.whole)[0]
        valid = valid_pixels(raster, window)
        if values.dtype.kind == "f":
            values = values if valid is None else np.where(valid, values, 0)
            values = whole_numbers(values, self.header)
        indices = torch.from_numpy(values if values.dtype == np.uint8 else values.astype(np.int64))
        where = None if valid is None else torch.from_numpy(valid)
        return Values(raster.path, indices, where, raster.no_data)


def label_raster(
    path: Path,
    page: int | None = None,
    classes: Classes | None = None,
    palette: Coding | None = None,
) -> LabelRaster | None:
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
    if not (geotiff.is_raster(path) and geotiff.is_installed()):
        return None
    raster = Bands(pages=None if page is None else "images").open_file(path, page)
    if raster.shape[0] != 1 or np.dtype(raster.dtype).kind not in "uif":
        return None
    header = _header(raster)
    is_turned = (header.orientation or 1) != 1  # by Pillow, and not by rasterio
    is_of_values = coding_of(header, classes, palette) == "index"
    return LabelRaster(raster, header) if is_of_values and not is_turned else None


def _header(raster: Opened) -> Header:
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
