"""Images that need not fit into memory: label maps and other files of their size, in parts."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from segformer.data.annotations.shapes import polygons_of
from segformer.data.bands import read_pixels, valid_pixels
from segformer.data.classes import Classes
from segformer.data.complete import complete, refuse_to_replace
from segformer.data.families import geotiff
from segformer.data.families.opened import Opened, Window
from segformer.data.labels import file_type
from segformer.evaluation import Blend, Slide, average_windows, device_of
from segformer.inference.labellers import WholeImages
from segformer.inference.pictures import shown
from segformer.inference.scenes import open_for

Decide = Callable[[Tensor], Tensor]  # labels (h, w) of mean logits (K, h, w)
Also = Callable[[Window, np.ndarray, Tensor], None]  # takes the labels and logits of a part
WriteValues = Callable[[Window, np.ndarray], None]  # takes the values (h, w) of a part
Shape = tuple[int, dict[str, Any]]  # class index, GeoJSON's geometry
MOST_PROBABLE: Decide = WholeImages().decide
ARRAY = ".npy"  # images of any size, which are mapped into memory
OVERVIEW = 2000  # pixels, greatest side
PART = 512  # rows and columns that are read at a time


class LargeImage(ABC):
    """An image that is labelled in windows, as it may be larger than memory; and files of its size.

    Args:
        model: The model that labels it.
        path: Path of its file, with the bands that the model takes.
        labels: Path of its label map, which need not exist yet.

    Attributes:
        crs: Coordinate reference system of :meth:`areas`; None if they are in pixels.

    Raises:
        ValueError: If the file cannot be read, or does not fit the model. The message names it.
    """

    crs: Any = None

    def __init__(self, model: Any, path: Path, labels: Path) -> None:
        self.model, self.labels = model, labels
        self.opened = open_for(model, path)
        self.size, self.classes = self.opened.size, model.classes
        self.coarse = Coarse(self.size)

    def windows(self, slide: Slide) -> Slide:
        """Returns the windows in which it is labelled, of the size and distance of others."""
        return slide

    @abstractmethod
    def writing(
        self, path: Path, dtype: type[np.generic], nodata: int | None = None
    ) -> AbstractContextManager[WriteValues]:
        """A function that writes the values (h, w) of a window into a file of the image's size.

        Args:
            path: The file, which is created when it is complete.
            dtype: Type of the values.
            nodata: Value of pixels without data, if the file can say it.
        """

    def writing_labels(self) -> AbstractContextManager[WriteValues]:
        """A function that writes the labels (h, w) of a window into the label map."""
        return self.writing(self.labels, self.label_type, self.classes.ignore_index)

    @property
    def label_type(self) -> type[np.uint8] | type[np.uint16]:
        return file_type(self.model.num_classes)

    @abstractmethod
    def label_parts(self) -> Iterator[tuple[Window, np.ndarray]]:
        """Yields the windows of the finished label map and their labels (h, w)."""

    @abstractmethod
    def areas(self) -> Iterator[Shape]:
        """Yields the areas of the finished label map, without the ignored ones."""

    @cached_property
    def overview(self) -> tuple[Image.Image, np.ndarray]:
        """The image, at most 2000 pixels wide and high, in RGB; and its labels (h, w)."""
        labels = np.empty(self.coarse.size, self.label_type)
        for window, values in self.label_parts():
            inside, own = self.coarse.pixels(window)
            labels[inside] = values[own]
        return shown(self._overview_of_bands()), labels

    def _overview_of_bands(self) -> Tensor:
        """Returns means of squares of pixels of the bands that are shown (C, h, w)."""
        normalization, opened = self.model.normalization, self.opened

        def read(window: Window) -> Tensor:
            if normalization.bands is None:
                return read_pixels(opened, window)
            return normalization.read(opened, window)[0]  # without the value for no data

        count, step = (3 if opened.shape[0] >= 3 else 1), self.coarse.step
        side = max(1, PART // step) * step
        rows = []
        for top in range(0, self.size[0], side):
            row = []
            for left in range(0, self.size[1], side):
                height, width = min(side, self.size[0] - top), min(side, self.size[1] - left)
                window = Window(top, left, height, width)
                pixels = read(window)[:count]
                values = pixels.as_subclass(Tensor).float()[None]
                means = avg_pool2d(values, step, ceil_mode=True, count_include_pad=False)[0]
                row.append(means.round().to(pixels.dtype) if pixels.dtype == torch.uint8 else means)
            rows.append(torch.cat(row, 2))
        return torch.cat(rows, 1)


class Coarse:
    """The pixels of each n-th row and column of an image, at most 2000 a side.

    Args:
        size: Height and width of the image.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.step = -(-max(size) // OVERVIEW)
        self.size = (-(-size[0] // self.step), -(-size[1] // self.step))

    def pixels(self, window: Window) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Returns where the pixels of a window are among them, and where they are in the window."""
        step, pairs = self.step, []
        for start, length in ((window.top, window.height), (window.left, window.width)):
            first, end = -(-start // step), -(-(start + length) // step)
            pairs.append((slice(first, end), slice(first * step - start, None, step)))
        (rows, own_rows), (columns, own_columns) = pairs
        return (rows, columns), (own_rows, own_columns)


class Scene(LargeImage):
    """A raster, whose files are GeoTIFFs on the same grid."""

    def windows(self, slide: Slide) -> Slide:
        """Returns windows whose borders are not seen."""
        return Blend(slide.crop_size, slide.stride)

    @contextmanager
    def writing(
        self, path: Path, dtype: type[np.generic], nodata: int | None = None
    ) -> Iterator[WriteValues]:
        with _new_raster(path, self.opened, dtype, nodata) as raster:
            yield _writer(raster)

    @contextmanager
    def writing_labels(self) -> Iterator[WriteValues]:
        """A function that writes the labels of a window; the file has the classes' colours."""
        kind, nodata = self.label_type, self.classes.ignore_index
        with _new_raster(self.labels, self.opened, kind, nodata) as raster:
            _describe(raster, self.classes)
            yield _writer(raster)

    def label_parts(self) -> Iterator[tuple[Window, np.ndarray]]:
        with geotiff.opened(self.labels) as raster:
            for _, block in raster.block_windows(1):
                window = Window(block.row_off, block.col_off, block.height, block.width)
                yield window, raster.read(1, window=block)

    def areas(self) -> Iterator[Shape]:
        from rasterio import band, features

        with geotiff.opened(self.labels) as raster:
            shapes = features.shapes(band(raster, 1), connectivity=4, transform=raster.transform)
            for geometry, value in shapes:
                if int(value) != self.classes.ignore_index:
                    yield int(value), geometry

    @cached_property
    def crs(self) -> Any:
        from rasterio.crs import CRS

        grid = self.opened.grid
        return None if grid is None else CRS.from_wkt(grid.crs)


class ArrayFile(LargeImage):
    """An ``.npy`` image (H, W, C), whose files are ``.npy``, too."""

    @contextmanager
    def writing(
        self, path: Path, dtype: type[np.generic], nodata: int | None = None
    ) -> Iterator[WriteValues]:
        with complete(path) as partial:
            out = np.lib.format.open_memmap(partial, "w+", dtype, self.size)

            def write(window: Window, values: np.ndarray) -> None:
                out[window.slices] = values

            yield write
            out.flush()

    def label_parts(self) -> Iterator[tuple[Window, np.ndarray]]:
        labels = np.load(self.labels, mmap_mode="r")
        for top in range(0, self.size[0], PART):
            rows = labels[top : top + PART]
            yield Window(top, 0, *rows.shape), rows

    def areas(self) -> Iterator[Shape]:
        labels = np.load(self.labels, mmap_mode="r")
        for polygon in polygons_of(labels, self.classes.ignore_index):
            yield polygon.value, polygon.geometry


def large_image(model: Any, path: Path, labels: Path) -> LargeImage:
    """Returns an image that is labelled in windows; the arguments are those of the class."""
    return (ArrayFile if path.suffix.lower() == ARRAY else Scene)(model, path, labels)


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
        FileExistsError: If the target is the image itself.
        ValueError: If the file cannot be read, or does not fit the model. The message names it.
    """
    return label_in_windows(Scene(model, path, target), slide, decide, also)


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
        The labels, in parts (h, w), mapped from the file.

    Raises:
        FileExistsError: If the target is the image itself.
        ValueError: If the file cannot be read, or does not fit the model. The message names it.
    """
    return label_in_windows(ArrayFile(model, path, target), slide, decide, also)


def label_in_windows(
    image: LargeImage, slide: Slide, decide: Decide, also: Sequence[Also]
) -> Iterator[np.ndarray]:
    """Labels an image and writes its label map; see :func:`label_scene`, also for the arguments."""
    refuse_to_replace(image.opened.path, image.labels)
    with image.writing_labels() as write:

        def take(window: Window, labels: np.ndarray, _: Tensor) -> None:
            write(window, labels)

        _label(image.model, image.opened, slide, decide, [take, *also])
    return (labels for _, labels in image.label_parts())


def _label(
    model: Any, image: Opened, slide: Slide, decide: Decide, outputs: Sequence[Also]
) -> None:
    """Labels an image; the outputs take each part in the type of label maps in files."""

    def read(window: Window) -> Tensor:
        pixels, _ = model.normalization.read(image, window)
        return pixels.as_subclass(Tensor)

    def take(window: Window, logits: Tensor) -> None:
        values = decide(logits).numpy().astype(file_type(model.num_classes))
        valid = valid_pixels(image, window)
        if valid is not None:
            values[~valid] = model.classes.ignore_index
        for output in outputs:
            output(window, values, logits)

    average_windows(model, image.size, read, take, slide, device=device_of(model))


@contextmanager
def _new_raster(
    path: Path, image: Opened, dtype: type[np.generic], nodata: int | None
) -> Iterator[Any]:
    """A raster of one band on the grid of an image; its file is created when it is complete."""
    profile = _profile(image, dtype, nodata)
    with complete(path) as partial, geotiff.opened(partial, "w", **profile) as raster:
        yield raster


def _profile(image: Opened, dtype: type[np.generic], nodata: int | None) -> dict[str, Any]:
    """Returns rasterio's settings of a file on the grid of an image."""
    profile = {
        "driver": "GTiff",
        "height": image.size[0],
        "width": image.size[1],
        "count": 1,
        "dtype": np.dtype(dtype).name,
        "nodata": nodata,
        "compress": "deflate",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "BIGTIFF": "IF_SAFER",
    }
    if image.grid is None:
        return profile
    return {**profile, "crs": image.grid.crs, "transform": image.grid.transform}


def _writer(raster: Any) -> WriteValues:
    """Returns a function that writes the values of a window into a raster of rasterio."""

    def write(window: Window, values: np.ndarray) -> None:
        raster.write(values[None], window=geotiff.window_of(window))

    return write


def _describe(raster: Any, classes: Classes) -> None:
    """Writes the names and colours of classes into a raster of labels."""
    raster.set_band_description(1, "classes")
    raster.update_tags(1, CLASSES=json.dumps(list(classes.names), ensure_ascii=False))
    if raster.dtypes == ("uint8",):
        raster.write_colormap(1, {k: (*color, 255) for k, color in enumerate(classes.colors)})
