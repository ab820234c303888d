"""Rasters in, rasters out: label maps on the grid of a scene that need not fit into memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segformer.data.bands import Bands, read_pixels, valid_pixels
from segformer.data.complete import complete
from segformer.data.families import geotiff
from segformer.data.families.opened import Opened, Window
from segformer.data.images import read_image
from segformer.data.labels import file_type
from segformer.evaluation import Slide, average_windows, device_of
from segformer.inference.labellers import WholeImages

logger = logging.getLogger(__name__)

GEO_KEYS = 34735  # GeoTIFF's tag of its coordinate reference system
LARGE = 1 << 26  # pixels; smaller TIFF files without georeference are pictures
Decide = Callable[[Tensor], Tensor]  # labels (h, w) of mean logits (K, h, w)
Also = Callable[[Window, np.ndarray, Tensor], None]  # takes the labels and logits of a part
MOST_PROBABLE: Decide = WholeImages().decide
SAMPLES = 4  # along each side, of the windows whose range of values is checked
SAMPLE = 128  # pixels a side


def is_scene(path: Path) -> bool:
    """Returns whether a file is a raster whose label map is one: georeferenced, or large.

    Without rasterio none is; a warning is logged if a file's place on the earth is lost by that.
    """
    with path.open("rb") as file:
        if not file.read(4).startswith(geotiff.TIFF_MAGIC):
            return False
    if not geotiff.is_installed():
        _warn_of_lost_place(path)
        return False
    try:
        with geotiff.opened(path) as raster:
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


def label_scene(
    model: Any,
    path: Path,
    target: Path,
    slide: Slide,
    decide: Decide = MOST_PROBABLE,
    also: Sequence[Also] = (),
) -> Iterator[np.ndarray]:
    """Labels a raster window by window, and writes a GeoTIFF on the same grid.

    It has the classes' colours and names. Pixels without data hold the ignored value, which is the
    file's value for no data.

    Args:
        model: The model, which gives logits.
        path: File of the scene, with the bands that the model takes.
        target: File for the labels; it is created when it is complete.
        slide: The windows.
        decide: Returns the labels (h, w) of mean logits (K, h, w), by default the greatest.
        also: Functions that take each window, its labels (h, w) and its mean logits (K, h, w).

    Returns:
        The labels, in parts (h, w), as they are read from the file.

    Raises:
        ValueError: If the file cannot be read, or does not fit the model. The message names it.
    """
    image = open_for(model, path)
    with (
        complete(target) as partial,
        geotiff.opened(partial, "w", **_profile(model, image)) as raster,
    ):
        _describe(raster, model)

        def write(window: Window, labels: np.ndarray, _: Tensor) -> None:
            raster.write(labels[None], window=geotiff.window_of(window))

        _label(model, image, slide, decide, [write, *also])
    return _blocks(target)


def label_array(
    model: Any,
    path: Path,
    target: Path,
    slide: Slide,
    decide: Decide = MOST_PROBABLE,
    also: Sequence[Also] = (),
) -> Iterator[np.ndarray]:
    """Labels an ``.npy`` image that need not fit into memory, window by window.

    Args:
        model: The model, which gives logits.
        path: File of the image (H, W, C); RGB uint8 for a model of photographs.
        target: File for the labels, uint8 (H, W), or uint16 for more than 255 classes. It is
            created when it is complete.
        slide: The windows.
        decide: Returns the labels (h, w) of mean logits (K, h, w), by default the greatest.
        also: Functions that take each window, its labels (h, w) and its mean logits (K, h, w).

    Returns:
        The labels' rows, mapped from the file.

    Raises:
        ValueError: If the file cannot be read, or does not fit the model. The message names it.
    """
    image = open_for(model, path)
    with complete(target) as partial:
        dtype = file_type(model.num_classes)
        out = np.lib.format.open_memmap(partial, "w+", dtype, image.size)

        def write(window: Window, labels: np.ndarray, _: Tensor) -> None:
            out[window.slices] = labels

        _label(model, image, slide, decide, [write, *also])
        out.flush()
    return iter(out)


def _label(
    model: Any, image: Opened, slide: Slide, decide: Decide, outputs: Sequence[Also]
) -> None:
    """Labels an image; the outputs take each part in the type of label maps in files."""

    def read(window: Window) -> Tensor:
        return read_pixels(image, window).as_subclass(Tensor)

    def take(window: Window, logits: Tensor) -> None:
        values = decide(logits).numpy().astype(file_type(model.num_classes))
        valid = valid_pixels(image, window)
        if valid is not None:
            values[~valid] = model.classes.ignore_index
        for output in outputs:
            output(window, values, logits)

    average_windows(model, image.size, read, take, slide, device=device_of(model))


def open_for(model: Any, path: Path) -> Opened:
    """Returns an image with the bands that a model takes.

    The range of its values is seen in some windows, evenly spread.

    Raises:
        ValueError: If it cannot be read, or is not of the kind that the model was trained on. The
            message names it.
    """
    image = bands_of(model).open(path)
    try:
        model.normalization.check(_sampled(image))
    except ValueError as error:
        raise ValueError(f"cannot label {str(path)!r}: {error}") from error
    return image


def read_for(model: Any, path: Path) -> tuple[Tensor, np.ndarray | None]:
    """Returns an image (C, H, W) with the bands that a model takes, and where it has data.

    The second is (H, W), bool; None if that is everywhere.

    Raises:
        ValueError: If it cannot be read, or does not fit the model. The message names it.
    """
    if model.normalization.bands is None:
        return read_image(path), None
    opened = open_for(model, path)
    return read_pixels(opened), valid_pixels(opened)


def _sampled(image: Opened) -> Tensor:
    """Returns the pixels with data (C, N, 1) of some windows."""
    height, width = (min(SAMPLE, length) for length in image.size)
    tops, lefts = (
        sorted({int(start) for start in np.linspace(0, max(0, length - SAMPLE), SAMPLES)})
        for length in image.size
    )
    pixels = []
    for window in (Window(top, left, height, width) for top in tops for left in lefts):
        values, valid = read_pixels(image, window).as_subclass(Tensor), valid_pixels(image, window)
        mask = ... if valid is None else torch.from_numpy(valid.ravel())
        pixels.append(values.flatten(1)[:, mask])
    return torch.cat(pixels, 1)[..., None]


def _profile(model: Any, image: Opened) -> dict[str, Any]:
    """Returns rasterio's settings of a file for the labels of an image."""
    profile = {
        "driver": "GTiff",
        "height": image.size[0],
        "width": image.size[1],
        "count": 1,
        "dtype": np.dtype(file_type(model.num_classes)).name,
        "nodata": model.classes.ignore_index,
        "compress": "deflate",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "BIGTIFF": "IF_SAFER",
    }
    if image.grid is None:
        return profile
    return {**profile, "crs": image.grid.crs, "transform": image.grid.transform}


def _describe(raster: Any, model: Any) -> None:
    """Writes the names and colours of a model's classes into a raster of labels."""
    names, colors = model.classes.names, model.classes.colors
    raster.set_band_description(1, "classes")
    raster.update_tags(1, CLASSES=json.dumps(list(names), ensure_ascii=False))
    if raster.dtypes == ("uint8",):
        raster.write_colormap(1, {k: (*color, 255) for k, color in enumerate(colors)})


def _blocks(path: Path) -> Iterator[np.ndarray]:
    with geotiff.opened(path) as raster:
        for _, block in raster.block_windows(1):
            yield raster.read(1, window=block)
