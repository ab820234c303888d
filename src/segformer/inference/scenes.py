"""Which files are labelled as rasters, and how images are read for a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segformer.data.bands import SUFFIXES, Bands, selected
from segformer.data.families import geotiff
from segformer.data.families.opened import Opened, Window
from segformer.data.images import read_header, read_image
from segformer.data.normalization import Normalization

logger = logging.getLogger(__name__)

GEO_KEYS = 34735  # GeoTIFF's tag of its coordinate reference system
LARGE = 1 << 26  # pixels; smaller TIFF files without georeference are pictures
SAMPLES = 4  # along each side, of the windows whose range of values is checked
SAMPLE = 128  # pixels a side


def is_scene(path: Path) -> bool:
    """Returns whether a file is a raster whose label map is one: georeferenced, or large.

    Without rasterio none is; a warning is logged if a file's place on the earth is lost by that.
    """
    if not geotiff.is_raster(path):
        return False
    if not geotiff.is_installed():
        _warn_of_lost_place(path)
        return False
    try:
        with geotiff.opened(path) as raster:
            if raster.crs is None and (raster.gcps[0] or raster.rpcs):
                logger.warning(
                    "%r is placed on the earth by points, which its label map will lack; warp it "
                    "to a grid before, as gdalwarp does",
                    str(path),
                )
            return raster.crs is not None or raster.width * raster.height > LARGE
    except Exception:  # its reader names the fault
        return False


def _warn_of_lost_place(path: Path) -> None:
    try:
        with Image.open(path) as image:
            is_placed = GEO_KEYS in getattr(image, "tag_v2", {})
    except Exception:  # its reader names the fault
        return
    if is_placed:
        logger.warning(
            "%r has a place on the earth, which its label map will lack; install segformer[geo]",
            str(path),
        )


def bands_of(model: Any) -> Bands:
    """Returns which bands of a file a model takes."""
    return model.normalization.bands or Bands()


def suffixes_of(model: Any) -> tuple[str, ...]:
    """Returns the suffixes of images that a model takes, beside those of photographs."""
    return () if model.normalization.bands is None else SUFFIXES


def open_for(model: Any, path: Path) -> Opened:
    """Returns an image with the bands that a model takes.

    The range of its values is seen in some windows, evenly spread.

    Raises:
        ValueError: If it cannot be read, or is not of the kind that the model was trained on. The
            message names it.
    """
    image = bands_of(model).open(path)
    if model.normalization.bands is None:
        image = _as_photograph(image, len(model.normalization.mean))
    try:
        model.normalization.check(_sampled(image, model.normalization))
    except ValueError as error:
        raise ValueError(f"cannot label {str(path)!r}: {error}") from error
    return image


def _as_photograph(image: Opened, channels: int) -> Opened:
    """Returns an image without alpha, and grey in as many channels as a model of photographs has.

    As :func:`segformer.data.images.read_image` reads it, but for palettes, whose values are no
    grey.
    """
    colors = image.shape[0] - image.has_alpha
    if colors == 1 and _is_grey(image.path):
        return selected(image, [1] * channels)
    return selected(image, range(1, colors + 1)) if image.has_alpha else image


def _is_grey(path: Path) -> bool:
    """Returns whether a file's values are grey from 0, black, to 255, white."""
    try:
        header = read_header(path)
    except (OSError, ValueError):
        return False
    return header.mode in ("L", "LA") and header.greatest == 255 and not header.inverted


def read_for(model: Any, path: Path) -> tuple[Tensor, np.ndarray | None]:
    """Returns an image (C, H, W) with the bands that a model takes, and where it has data.

    The second is (H, W), bool; None if that is everywhere.

    Raises:
        ValueError: If it cannot be read, or does not fit the model. The message names it.
    """
    if model.normalization.bands is None:
        return read_image(path), None
    pixels, valid = model.normalization.read(open_for(model, path))
    return pixels, None if valid is None else valid.any(0).numpy()


def _sampled(image: Opened, normalization: Normalization) -> Tensor:
    """Returns the pixels with data (C, N, 1) of some windows."""
    height, width = (min(SAMPLE, length) for length in image.size)
    tops, lefts = (
        sorted({int(start) for start in np.linspace(0, max(0, length - SAMPLE), SAMPLES)})
        for length in image.size
    )
    pixels = []
    for window in (Window(top, left, height, width) for top in tops for left in lefts):
        values, valid = normalization.read(image, window)
        mask = ... if valid is None else valid.any(0).flatten()
        pixels.append(values.as_subclass(Tensor).flatten(1)[:, mask])
    return torch.cat(pixels, 1)[..., None]
