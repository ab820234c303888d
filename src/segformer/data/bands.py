"""Images of any number and type of bands: which are read from a file, in which order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from segformer.data.families import geotiff
from segformer.data.families.arrays import open_array
from segformer.data.families.dicom import is_dicom, open_dicom
from segformer.data.families.opened import Opened, Window
from segformer.data.families.pillow import JPEG2000, open_pillow

NAME = "{name}"  # is replaced by the name of an image in a pattern
SPLIT = "{split}"  # and this by the name of a split
SUFFIXES = (".npy", ".npz", ".dcm", ".dicom", ".svs", ".vrt")  # beside those of photographs
READ_BY_RASTERIO = (*geotiff.MAGIC, b"\x89PNG", *JPEG2000)
START = 132  # bytes that tell the family of a file
# Types that PyTorch computes with; others are converted without loss.
TORCH_TYPES = {"float64": "float32", "float16": "float32", "uint32": "float32", "int8": "int16"}


@dataclass(frozen=True)
class Bands:
    """Which bands of image files a network takes, with the values that the files store.

    A file's family is told by its content: NumPy's, DICOM, TIFF and JPEG 2000 with or without
    georeference, and the formats of Pillow.

    Args:
        names: Names of the bands, in the network's order.
        select: Numbers of the bands in the file, from 1, in the network's order; by default all.
        layout: Order of the axes of NumPy's files, ``"HWC"`` or ``"CHW"``.
        pages: ``"bands"`` if the pages of a TIFF file are bands of one image, ``"images"`` if each
            is an image of its own.
        level: Level of a pyramid; 0 is the finest.
        files: Patterns of the files that make up an image, such as
            ``["rgb/{name}.tif", "nir/{name}.tif"]``; by default it is one. ``{split}`` is the name
            of any folder.

    Raises:
        ValueError: If an argument has no such value, or names and select differ in number.
    """

    names: Sequence[str] = ()
    select: Sequence[int] = ()
    layout: str = "HWC"
    pages: str | None = None
    level: int = 0
    files: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("names", "select", "files"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.layout not in ("HWC", "CHW"):
            raise ValueError(f"layout={self.layout!r}; choose HWC or CHW")
        if self.pages not in (None, "bands", "images"):
            raise ValueError(f"pages={self.pages!r}; choose bands or images, or leave it out")
        if self.level < 0 or any(number < 1 for number in self.select):
            raise ValueError(
                f"level={self.level} and select={self.select}; levels are counted from 0 and bands "
                "from 1"
            )
        if self.names and self.select and len(self.names) != len(self.select):
            raise ValueError(
                f"{len(self.names)} names and {len(self.select)} selected bands; give one name for "
                "each band"
            )
        if wrong := [pattern for pattern in self.files if pattern.count(NAME) != 1]:
            raise ValueError(f"the pattern {wrong[0]!r} must contain {NAME} once")

    def count_pages(self, path: Path) -> int:
        """Returns the number of pages of an image file.

        Raises:
            ValueError: If it cannot be read. The message names it.
        """
        try:
            has_pages = geotiff.is_raster(path) and geotiff.is_installed()
            return geotiff.count_pages(path) if has_pages else 1
        except Exception as error:  # rasterio's
            raise ValueError(f"cannot read image {str(path)!r}: {error}") from error

    def open(self, path: str | os.PathLike[str], page: int | None = None) -> Opened:
        """Returns an image without reading its pixels.

        Args:
            path: Path of its file; with ``files``, of the first.
            page: Number of its page, from 0, if its pages are images.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read, or has other bands. The message names it.
        """
        image = _stacked([self.open_file(part, page) for part in self.parts(Path(path))])
        if image.palette:
            raise ValueError(
                f"image {str(path)!r} has a palette, whose values are no bands; save it as RGB"
            )
        count, what = image.shape[0], f"image {str(image.path)!r}"
        if self.select:
            if max(self.select) > count:
                raise ValueError(
                    f"{what} has {count} bands, and band {max(self.select)} is selected; correct "
                    "the selection"
                )
            image = selected(image, self.select)
        elif self.names and len(self.names) != count:
            raise ValueError(
                f"{what} has {count} bands, and {len(self.names)} are named "
                f"({', '.join(self.names)}); select the bands"
            )
        return image

    def parts(self, path: Path) -> list[Path]:
        """Returns the files of an image from the path of the first.

        Raises:
            ValueError: If the path does not fit the first pattern.
        """
        if not self.files:
            return [path]
        first = re.escape(self.files[0]).replace(re.escape(NAME), "(?P<name>.+)")
        first = first.replace(re.escape(SPLIT), "(?P<split>[^/]+)")
        match = re.fullmatch(f"(?P<root>(?:.*/)?){first}", path.as_posix())
        if match is None:
            raise ValueError(f"{str(path)!r} does not fit the pattern {self.files[0]!r} of images")
        root, found = Path(match["root"]), match.groupdict()
        names = {NAME: found["name"], SPLIT: found.get("split", SPLIT)}
        return [root / _filled(pattern, names) for pattern in self.files]

    def open_file(self, path: Path, page: int | None) -> Opened:
        """Returns one file, all of its bands; the errors are those of :meth:`open`."""
        try:
            start = start_of(path)
            if path.suffix.lower() in (".npy", ".npz"):
                return open_array(path, self.layout)
            if is_dicom(start):
                return open_dicom(path)
            if geotiff.is_installed() and start.startswith(READ_BY_RASTERIO):
                return geotiff.open_raster(path, self.pages, self.level, page)
            return self._open_pillow(path, start)
        except FileNotFoundError:
            raise
        except Exception as error:  # rasterio's, pydicom's, struct.error …
            if str(path) in str(error) and isinstance(error, ValueError):
                raise
            raise ValueError(f"cannot read image {str(path)!r}: {error}") from error

    def _open_pillow(self, path: Path, start: bytes) -> Opened:
        if self.level or self.pages:
            raise ValueError(
                f"level={self.level} and pages={self.pages} are for TIFF files, by rasterio; leave "
                "them out, or install segformer[geo]"
            )
        try:
            return open_pillow(path)
        except ValueError as error:
            if not start.startswith(geotiff.MAGIC):
                raise
            raise ValueError(f"{error}; rasterio may: install segformer[geo]") from error


def start_of(path: Path) -> bytes:
    """Returns the bytes that tell the family of a file."""
    with path.open("rb") as file:
        return file.read(START)


def _filled(pattern: str, names: dict[str, str]) -> str:
    for placeholder, name in names.items():
        pattern = pattern.replace(placeholder, name)
    return pattern


def read_pixels(image: Opened, window: Window | None = None) -> tv_tensors.Image:
    """Returns an image, or a window of it, (C, H, W) with its values in a type of PyTorch's.

    Values of 64 and 16-bit floats become float32, and so do unsigned integers of 32 bits.

    Raises:
        ValueError: If it cannot be read. The message names it.
    """
    values = _checked(image, image.read, window)
    dtype = TORCH_TYPES.get(values.dtype.name, values.dtype.name)
    values = np.ascontiguousarray(values.astype(np.dtype(dtype), copy=False))
    return tv_tensors.Image(torch.from_numpy(values))


def valid_bands(
    image: Opened, window: Window | None = None, pixels: Tensor | None = None
) -> Tensor | None:
    """Returns where each band has data (C, H, W), bool; None if that is everywhere.

    Args:
        image: The image.
        window: A part of it, by default all.
        pixels: Its pixels there, if they are read already.

    Raises:
        ValueError: If it cannot be read. The message names it.
    """
    mask = image.valid and _checked(image, image.valid, window)
    valid = None if mask is None else torch.from_numpy(mask)
    if image.dtype.startswith("float"):
        values = read_pixels(image, window) if pixels is None else pixels
        numbers = ~values.as_subclass(Tensor).isnan()
        valid = numbers if valid is None else numbers & valid
    return None if valid is None or bool(valid.all()) else valid


def valid_pixels(image: Opened, window: Window | None = None) -> np.ndarray | None:
    """Returns where any band has data (H, W), bool; None if that is everywhere."""
    valid = valid_bands(image, window)
    return None if valid is None else valid.any(0).numpy()


def _checked(
    image: Opened, read: Callable[[Window], np.ndarray], window: Window | None
) -> np.ndarray:
    """Returns what is read in a window of an image; raises ValueError, which names the file."""
    try:
        return read(window or image.whole)
    except Exception as error:  # a truncated file
        raise ValueError(
            f"cannot read image {str(image.path)!r}: {error}; copy it again"
        ) from error


def selected(image: Opened, select: Sequence[int]) -> Opened:
    """Returns some bands of an image, by their numbers from 1."""
    indices = [number - 1 for number in select]
    return replace(
        image,
        shape=(len(indices), *image.size),
        read=lambda window: image.read(window)[indices],
        valid=None if image.valid is None else lambda window: _valid(image, window)[indices],
        names=tuple(image.names[index] for index in indices) if image.names else (),
        has_alpha=False,
    )


def _valid(image: Opened, window: Window) -> np.ndarray:
    """Returns where each band of an image has data, as its file says, (C, h, w), bool."""
    everywhere = np.ones((image.shape[0], window.height, window.width), bool)
    return everywhere if image.valid is None else image.valid(window)


def _stacked(images: list[Opened]) -> Opened:
    """Returns the bands of several files as those of one image.

    Raises:
        ValueError: If the files differ in size, type, or place on the earth.
    """
    first, *others = images
    for image in others:
        differences = {
            "size": f"{first.size} and {image.size}" if first.size != image.size else "",
            "type": f"{first.dtype} and {image.dtype}" if first.dtype != image.dtype else "",
            "place on the earth": geotiff.difference(first.grid, image.grid, first.size),
        }
        for name, difference in differences.items():
            if difference:
                raise ValueError(
                    f"{str(first.path)!r} and {str(image.path)!r} are bands of one image and "
                    f"differ in {name}: {difference}; resample them to one grid"
                )
    if not others:
        return first
    return replace(
        first,
        shape=(sum(image.shape[0] for image in images), *first.size),
        read=lambda window: np.concatenate([image.read(window) for image in images]),
        valid=(lambda window: np.concatenate([_valid(image, window) for image in images]))
        if any(image.valid for image in images)
        else None,
        names=sum((image.names for image in images), ()) if all(i.names for i in images) else (),
        has_alpha=False,
    )
