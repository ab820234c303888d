"""Folders of images of any bands and their label maps, read whole or in tiles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from tqdm import tqdm

from segformer.data.annotations.areas import Picture
from segformer.data.bands import SUFFIXES, Bands, read_pixels, valid_bands
from segformer.data.classes import Classes
from segformer.data.datasets import DataError, FolderDataset, check_sizes, faults_in
from segformer.data.families import geotiff
from segformer.data.families.opened import Opened, Window, starts
from segformer.data.images import decode, read_header
from segformer.data.label_rasters import LabelRaster
from segformer.data.normalization import Normalization

SAMPLED_PIXELS = 1 << 23  # of all images, for statistics
MOST_PIXELS = 1 << 16  # of one of them
PERCENTILES = (0.1, 99.9)


class RasterDataset(FolderDataset):
    """Images of any number and type of bands, and their label maps, in two folders.

    A sample is ``(image, label)``: (C, H, W) with the values that the files store, and class
    indices (H, W). Pixels where no band has data are ignored. With a ``normalization``, a band
    without data has its mean there. A label map that is a raster may have its own value for no
    data, which is ignored, too.

    Args:
        images: See :class:`~segformer.data.datasets.FolderDataset`, also for the further arguments.
        bands: Which bands of the files are read.
        tile: Height and width in pixels of the windows that large images are read in, each a sample
            of its own; by default images are read whole. The last windows of a row or column are
            moved back to the border: pixels in two windows count twice, in scores, too.
        normalization: Statistics of the bands, which each image that is read must fit.

    Raises:
        DataError: When it is built, as for :class:`~segformer.data.datasets.FolderDataset`. On
            access, if an image has other bands than ``normalization``, or an image and its label
            map lie at different places on the earth.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = SUFFIXES

    def __init__(
        self,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        classes: Classes,
        *,
        bands: Bands | None = None,
        tile: Sequence[int] | None = None,
        normalization: Normalization | None = None,
        **options: Any,
    ) -> None:
        self.bands, self.tile, self.normalization = bands or Bands(), tile, normalization
        super().__init__(images, labels, classes, **options)

    def _set_pairs(self, pairs: list[tuple[Path, Path]]) -> None:
        """Keeps a pair and a part of its image for each sample."""
        found = [(pair, part) for pair in pairs for part in self._parts_of(pair[0])]
        self.pairs, self.parts = [pair for pair, _ in found], [part for _, part in found]
        if self.drawn and any(part.page for part in self.parts):
            path = next(part.path for part in self.parts if part.page)
            raise ValueError(
                f"image {str(path)!r} has several pages, and annotations are of one image a file; "
                "save each page to a file of its own"
            )

    def _parts_of(self, path: Path) -> list[Part]:
        """Returns the samples of an image file; an unreadable one has one, to be named later."""
        try:
            return parts_of(self.bands, path, self.tile)
        except ValueError:
            return [Part(path)]

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        path, page, window = self.parts[index]
        image = self.bands.open(path, page)
        pixels, valid = self._pixels(image, window)
        return pixels, self._valid_label(image, index, valid)

    def label(self, index: int) -> tv_tensors.Mask:
        path, page, window = self.parts[index]
        image = self.bands.open(path, page)
        return self._valid_label(image, index, valid_bands(image, window))

    def _valid_label(self, image: Opened, index: int, valid: Tensor | None) -> tv_tensors.Mask:
        """Returns the class indices of a sample; pixels where no band has data are ignored."""
        (_, page, window), label_path = self.parts[index], self.pairs[index][1]
        label = self._label_of(image, label_path, page, window)
        if valid is not None:
            label[~valid.any(0)] = self.classes.ignore_index
        return label

    def _label_of(
        self, image: Opened, path: Path, page: int | None, window: Window | None
    ) -> tv_tensors.Mask:
        """Returns the class indices of an image, or of a window of it."""
        if self.drawn:
            return self.drawn.label(_picture(image), window)
        raster = self._label_raster(path, page)
        _check_pair(image, path, raster)
        return self._label(path, raster, window)

    def _pixels(
        self, image: Opened, window: Window | None
    ) -> tuple[tv_tensors.Image, Tensor | None]:
        """Returns the pixels, and where each band has data; see :meth:`Normalization.read`."""
        if self.normalization is None:
            pixels = read_pixels(image, window)
            return pixels, valid_bands(image, window, pixels)
        pixels, valid = self.normalization.read(image, window)
        try:
            self.normalization.check(pixels)
        except ValueError as error:
            raise ValueError(f"image {str(image.path)!r} does not fit: {error}") from error
        return pixels, valid

    def _label(
        self, path: Path, raster: LabelRaster | None, window: Window | None
    ) -> tv_tensors.Mask:
        """Returns the class indices of a label map, or of a window of it."""
        if raster is None:
            label = self._classes_of(decode(path))
            return label if window is None else tv_tensors.Mask(label[window.slices])
        return self._classes_of_values(raster.values(window))

    def _holds_ignored_value(self, index: int) -> bool:
        path, (_, page, window) = self.pairs[index][1], self.parts[index]
        raster = self._label_raster(path, page)
        if raster is None:
            return super()._holds_ignored_value(index)
        return bool((raster.values(window).of_data == self.ignore_index).any())

    def faults_of(self, index: int) -> list[str]:
        return faults_in(lambda: self[index])

    def check_files(self) -> tuple[str, ...]:
        self._check_systems()
        return super().check_files()

    def _header_faults(self, index: int) -> list[str]:
        (path, label), page = self.pairs[index], self.parts[index].page
        if index and self.parts[index - 1][:2] == (path, page):  # another tile
            return []
        if drawn := self.drawn:
            return faults_in(
                lambda: _check_upright(path),
                lambda: drawn.check(_picture(self.bands.open(path, page))),
            )
        return faults_in(
            lambda: _check_upright(path),
            lambda: _check_pages(self.bands, path, label),
            lambda: _check_pair(
                self.bands.open(path, page), label, self._label_raster(label, page)
            ),
        )

    def _check_systems(self) -> None:
        """Raises DataError if images have different coordinate reference systems."""
        first: dict[str, Path] = {}
        with ThreadPoolExecutor(8) as readers:
            for path, crs in readers.map(self._system, dict.fromkeys(i for i, _ in self.pairs)):
                if crs is not None:
                    first.setdefault(crs, path)
        if len(first) > 1:
            shown = [f"{str(path)!r} has {geotiff.short_name(crs)}" for crs, path in first.items()]
            raise DataError(
                [
                    "the images have several coordinate reference systems: "
                    f"{' and '.join(shown[:2])}; reproject them to one"
                ],
                self,
            )

    def _system(self, path: Path) -> tuple[Path, str | None]:
        try:
            grid = self.bands.open(path, 0).grid
        except (OSError, ValueError):
            return path, None  # its error is reported with the others
        return path, grid.crs if grid else None


class Part(NamedTuple):
    """What a sample is read from.

    Args:
        path: The image file.
        page: Its page, if its pages are images; otherwise None.
        window: The window that is read, None for all of it.
    """

    path: Path
    page: int | None = None
    window: Window | None = None


def parts_of(bands: Bands, path: Path, tile: Sequence[int] | None) -> list[Part]:
    """Returns the samples of an image file: its pages, if these are images, in tiles of a size.

    Raises:
        ValueError: If it cannot be read.
    """
    pages = range(bands.count_pages(path)) if bands.pages == "images" else [None]
    if tile is None:
        return [Part(path, page) for page in pages]
    return [Part(path, page, w) for page in pages for w in tiles(bands.open(path, page), tile)]


def tiles(image: Opened, size: Sequence[int]) -> list[Window]:
    """Returns the windows of a height and width that cover an image."""
    height, width = image.size
    return [
        Window(top, left, min(size[0], height), min(size[1], width))
        for top in starts(height, size[0], size[0])
        for left in starts(width, size[1], size[1])
    ]


def _check_upright(path: Path) -> None:
    """Raises ValueError if a picture is turned by its EXIF orientation: not all readers turn it."""
    try:
        turn = read_header(path).orientation or 1
    except (OSError, ValueError):  # no picture of Pillow's
        return
    if turn != 1:
        raise ValueError(
            f"image {str(path)!r} is turned by its EXIF orientation ({turn}), which not all "
            "readers of bands obey; save the image upright, without orientation"
        )


def _check_pages(bands: Bands, image: Path, label: Path) -> None:
    """Raises ValueError if the pages of an image are images, and its label map has others."""
    if bands.pages == "images":
        own, of_label = (Bands(pages="images").count_pages(path) for path in (image, label))
        if own != of_label:
            raise ValueError(
                f"image {str(image)!r} has {own} pages, and its label map {str(label)!r} "
                f"{of_label}; give each page a label map"
            )


def _picture(image: Opened) -> Picture:
    return Picture(image.path, image.size, image.grid)


def _check_pair(image: Opened, label: Path, raster: LabelRaster | None) -> None:
    """Raises ValueError if a label map, which may be a raster, has another size or place."""
    check_sizes(
        image.path,
        image.size,
        label,
        raster.opened.size if raster else read_header(label).shown_size,
    )
    difference = geotiff.difference(image.grid, raster.opened.grid if raster else None, image.size)
    if difference:
        raise ValueError(
            f"image {str(image.path)!r} and its label map {str(label)!r} lie at different "
            f"places on the earth: {difference}; resample the label map to the image's grid"
        )


def statistics_of(bands: Bands, parts: Sequence[Part]) -> Normalization:
    """Returns the normalization of images of any bands, with a progress bar.

    Up to 65,536 pixels of each part and eight million of all are taken at random, without those
    that have no data. Types other than uint8 are clipped to the range between their
    0.1 and 99.9 percentiles; mean and standard deviation are those of the clipped values.

    Args:
        bands: Which bands of the files are read.
        parts: What is read.

    Raises:
        ValueError: If two images have other numbers or types of bands, an image cannot be read, or
            a band has one value only, or infinite ones.
    """
    sampled: list[Tensor] = []
    taken = max(1, min(MOST_PIXELS, SAMPLED_PIXELS // max(1, len(parts))))
    generator = torch.Generator().manual_seed(0)
    kind: tuple[str, int] | None = None
    for path, page, window in tqdm(parts, "statistics", unit="sample"):
        image = bands.open(path, page)
        pixels = read_pixels(image, window)
        valid = valid_bands(image, window, pixels)
        found = str(pixels.dtype).removeprefix("torch."), pixels.shape[0]
        kind = kind or found
        if found != kind:
            raise ValueError(
                f"image {str(path)!r} has {found[1]} bands of {found[0]}, those "
                f"before it {kind[1]} of {kind[0]}; convert the images to one kind"
            )
        values = pixels.as_subclass(Tensor).flatten(1)
        if values.isinf().any():
            band = int(values.isinf().any(1).nonzero()[0]) + 1
            raise ValueError(
                f"image {str(path)!r} has infinite values in band {band}; save them as NaN, which "
                "is no data"
            )
        if valid is not None:
            valid = valid.flatten(1)
            values, valid = values[:, valid.any(0)], valid[:, valid.any(0)]
        if values.shape[1] > taken:  # at random, as regular steps may meet the same columns
            chosen = torch.randint(values.shape[1], (taken,), generator=generator)
            values, valid = values[:, chosen], None if valid is None else valid[:, chosen]
        values = values.double()
        sampled.append(values if valid is None else values.where(valid, torch.nan))
    assert kind is not None
    return _normalization(torch.cat(sampled, 1).numpy(), kind[0], bands)


def _normalization(values: np.ndarray, dtype: str, bands: Bands) -> Normalization:
    """Returns the normalization of sampled values (C, N) of a type."""
    limits = np.nanpercentile(values, PERCENTILES, axis=1).T
    for number, (low, high) in enumerate(limits.tolist()):
        if not low < high:
            raise ValueError(
                f"band {number + 1} has the value {low:g} everywhere; leave it out with "
                "data.bands.select"
            )
    scale = 1 / 255 if dtype == "uint8" else 1.0
    if dtype != "uint8":
        values = np.clip(values, limits[:, :1], limits[:, 1:])
    mean, std = np.nanmean(values, axis=1) * scale, np.nanstd(values, axis=1) * scale
    made = Normalization(_rounded(mean), _rounded(std), scale, dtype, bands=bands)
    return made if dtype == "uint8" else replace(made, limits=[_rounded(pair) for pair in limits])


def _rounded(values: np.ndarray) -> list[float]:
    """Returns numbers with six digits, as people write them."""
    return [float(f"{value:.6g}") for value in values]
