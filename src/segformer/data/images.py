"""Image files: how they are found in a folder, their headers, and their pixels."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors

from segformer.data.classes import Color

logger = logging.getLogger(__name__)

ORIENTATION = 0x0112  # EXIF's tag
SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC = 254, 258, 262  # TIFF's tags
GEO_KEYS, NO_DATA = 34735, 42113  # and those of GeoTIFF and GDAL
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
READ_SUFFIXES = (
    *JPEG_SUFFIXES,
    *(".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif"),
)
HEIF_SUFFIXES = (".heic", ".heif")
UNREAD_SUFFIXES = (*HEIF_SUFFIXES, ".jxl", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw")
IMAGE_SUFFIXES = READ_SUFFIXES + UNREAD_SUFFIXES
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # made by an archiver and a file server
# An image of 16 bits without a greater value may hold values of 10, 12, 14 or 15 bits.
FULL_RANGE = 1 << 15


def find_images(
    folder: str | os.PathLike[str], also: Sequence[str] = (), without: Path | None = None
) -> list[Path]:
    """Returns every image file below a folder, sorted by path.

    Links to folders are followed. Files and folders whose name starts with a dot, and folders that
    operating systems add, are left out. Files in formats that cannot be read, such as ``.heic``,
    are returned, too, so that reading them raises an error with their name.

    Args:
        folder: Path of the folder.
        also: Further suffixes of images, such as ``".npy"``.
        without: A folder below this one that is left out, such as that of results; a warning says
            so if it is there.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}")
    suffixes = (*IMAGE_SUFFIXES, *also)
    left_out = without.resolve() if without and without.resolve() != root.resolve() else None
    paths = sorted(path for path in files_below(root, left_out) if path.suffix.lower() in suffixes)
    if not paths:
        raise FileNotFoundError(f"no image in {str(root)!r}; looked for {' '.join(suffixes)}")
    return paths


def files_below(
    folder: Path, left_out: Path | None = None, parents: tuple[Path, ...] = ()
) -> Iterator[Path]:
    """Yields the files below a folder, as :func:`find_images` looks for them.

    Args:
        folder: Path of the folder.
        left_out: The resolved path of a folder below it that is left out, with a warning.
        parents: The resolved paths of the folders that this one was found in.
    """
    resolved = folder.resolve()
    if resolved in parents:  # a link to a folder above it
        return
    if resolved == left_out:
        logger.warning("%r is the folder of results: images in it are left out", str(folder))
        return
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name in SYSTEM_FOLDERS:
            continue
        if path.is_dir():
            yield from files_below(path, left_out, (*parents, resolved))
        elif path.is_file():
            yield path


@dataclass(frozen=True)
class Header:
    """Properties of an image file that are read without decoding its pixels.

    Args:
        path: Path of the file.
        format: Pillow's name of its format.
        mode: Pillow's name of its channels.
        size: Height and width in pixels, as stored.
        greatest: Greatest value that a sample of the file can have, such as 255.
        pages: Number of images in the file, without the reduced copies and masks of a TIFF.
        orientation: EXIF's number for its rotation, from 1 (upright) to 8, or None.
        compression: Name of the compression, if the format has several.
        palette: Colours of a palette image's values.
        transparent: Whether some of these colours are transparent.
        inverted: Whether the file stores 0 as white.
        no_data: Value of pixels without data, as GDAL writes it into a TIFF, or None.
        is_on_earth: Whether it is a GeoTIFF.
    """

    path: Path
    format: str
    mode: str
    size: tuple[int, int]
    greatest: int
    pages: int
    orientation: int | None
    compression: str
    palette: tuple[Color, ...]
    transparent: bool
    inverted: bool
    no_data: float | None = None
    is_on_earth: bool = False

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width in pixels after the image is turned upright."""
        height, width = self.size
        return (width, height) if (self.orientation or 1) >= 5 else (height, width)


class Decoded(NamedTuple):
    """An image file's header and its image, turned upright."""

    header: Header
    image: Image.Image


def read_header(path: str | os.PathLike[str]) -> Header:
    """Returns the header of a file, without decoding its pixels.

    Raises:
        ValueError: If the file is no image that can be read, or holds several images.
    """
    with errors_with_path(path), _opened(path) as image:
        header = _header(Path(path), image)
    _check_readable(header)
    return header


def decode(path: str | os.PathLike[str]) -> Decoded:
    """Returns a file's header and its image, turned upright.

    Raises:
        ValueError: If it cannot be decoded, or holds several images.
    """
    with errors_with_path(path), _opened(path) as image:
        header = _header(Path(path), image)
        if header.pages == 1 and not _is_misread(header):
            if image.format == "PNG":  # decoding does not compare the checksums of the pixels
                with Image.open(path) as checked:
                    checked.verify()
            image.load()
        if image.format == "PNG" and header.orientation is None:  # EXIF may follow the pixels
            header = replace(header, orientation=_orientation(image.getexif()))
        turned = (
            ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
        )
    _check_readable(header)
    return Decoded(header, turned)


def _opened(path: str | os.PathLike[str]) -> Any:
    """Returns Pillow's image of a file; HEIF is read by pillow-heif, where it is installed."""
    if Path(path).suffix.lower() in HEIF_SUFFIXES:
        with suppress(ModuleNotFoundError):
            from pillow_heif import register_heif_opener

            register_heif_opener()
    return Image.open(path)


@contextmanager
def errors_with_path(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns any error of a decoder into a ValueError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"image {str(path)!r} is larger than Pillow reads ({error}); save its pixels with "
            "numpy.save: `segformer predict` reads NAME.npy in parts"
        ) from error
    except Exception as error:  # OSError, SyntaxError, struct.error, …
        suffix = Path(path).suffix.lower()
        is_unread = suffix in UNREAD_SUFFIXES
        cure = f"{suffix} files are not read: save it as PNG" if is_unread else "copy it again"
        if suffix in HEIF_SUFFIXES:
            cure = "save it as PNG, or install pillow-heif"
        raise ValueError(f"cannot read image {str(path)!r}: {error}; {cure}") from error


def _is_misread(header: Header) -> bool:
    """Returns whether Pillow reads a BMP's 4-bit or 8-bit values as 1-bit or 8-bit values."""
    wrong = (("1", 15), ("1", 255), ("L", 15))
    return header.format == "BMP" and (header.mode, header.greatest) in wrong


def _check_readable(header: Header) -> None:
    """Raises ValueError for files that Pillow reads only in part, or wrongly."""
    if _is_misread(header):
        raise ValueError(
            f"{str(header.path)!r} is a BMP with a grey palette of few colours, which Pillow "
            "misreads; save it as PNG"
        )
    if header.pages > 1:
        raise ValueError(
            f"{str(header.path)!r} holds {header.pages} images (pages or frames); save each to a "
            "file of its own"
        )


def _header(path: Path, image: Any) -> Header:
    tags = getattr(image, "tag_v2", {})
    width, height = image.size
    orientation = _orientation(Image.Image.getexif(image))  # PNG's own method decodes the pixels
    if tags and (orientation or 1) >= 5:  # Pillow turns a TIFF itself
        width, height = height, width
    return Header(
        path=path,
        format=image.format,
        mode=image.mode,
        size=(height, width),
        greatest=_greatest(path, image),
        pages=_pages(image),
        orientation=orientation,
        compression=_compression(path, image),
        palette=_palette(image) if image.mode == "P" else (),
        transparent="transparency" in image.info,
        inverted=_raw_mode(image) == "1;I" or tags.get(PHOTOMETRIC) == 0,
        no_data=_no_data(tags.get(NO_DATA)),
        is_on_earth=GEO_KEYS in tags,
    )


def _no_data(tag: Any) -> float | None:
    try:
        return float(str(tag).strip("\0 "))
    except ValueError:  # there is none
        return None


def _orientation(exif: Any) -> int | None:
    value = exif.get(ORIENTATION)
    return value if value in range(1, 9) else None


def _raw_mode(image: Any) -> str:
    """Returns Pillow's name of the file's samples, such as L;4 for 4-bit grey."""
    arguments = image.tile[0][3] if image.tile else image.mode
    if isinstance(arguments, str):
        return arguments
    return str(arguments[0] if arguments else image.mode)


def _greatest(path: Path, image: Any) -> int:
    """Returns the greatest value of a sample in the file; Pillow's mode may have a greater one."""
    if image.format == "TIFF":
        return int((1 << max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))) - 1)
    if image.format == "BMP" and image.mode in ("1", "L"):
        with path.open("rb") as file:
            start = file.read(30)
        offset = 24 if start[14] == 12 else 28  # of the old header, and of all others
        return int((1 << int.from_bytes(start[offset : offset + 2], "little")) - 1)
    if image.mode == "1":
        return 1
    if image.format == "PPM" and image.tile[0][0] != "raw":
        return int(image.tile[0][3][-1])
    bits = re.search(r";(\d+)", _raw_mode(image)) if image.format in ("PNG", "PPM") else None
    return (1 << (int(bits[1]) if bits else 32 if image.mode in ("I", "F") else 8)) - 1


def _pages(image: Any) -> int:
    if image.format == "MPO":  # a camera's photograph, followed by images made from it
        return 1
    frames = int(getattr(image, "n_frames", 1))
    if image.format != "TIFF" or frames == 1:
        return frames
    pages = 0
    for frame in range(frames):
        image.seek(frame)
        pages += not image.tag_v2.get(SUBFILE_TYPE, 0) & 0b101  # a reduced copy, a mask
    image.seek(0)
    return max(1, pages)


def _compression(path: Path, image: Any) -> str:
    if image.format == "WEBP":
        return "lossy" if b"VP8 " in _chunks(path) else "lossless"
    return str(image.info.get("compression", "")) if image.format == "TIFF" else ""


def _chunks(path: Path) -> list[bytes]:
    """Returns the names of a RIFF file's chunks."""
    names = []
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        offset = 12
        while offset + 8 <= end:
            file.seek(offset)
            names.append(file.read(4))
            size = int.from_bytes(file.read(4), "little")
            offset += 8 + size + size % 2
    return names


def _palette(image: Any) -> tuple[Color, ...]:
    if image.palette is None:
        image.load()
    mode, data = image.palette.getdata()
    entries = len(data) // (4 if mode[:4] in ("BGRX", "RGBX", "RGBA", "BGRA") else 3)
    probe = Image.new("P", (1, 1))
    probe.putpalette(data, mode)
    channels = (probe.getpalette("RGB") or [])[: 3 * entries]
    return tuple(zip(*[iter(channels)] * 3, strict=True))


def read_image(path: str | os.PathLike[str]) -> tv_tensors.Image:
    """Returns an image file as RGB uint8 (3, H, W), turned upright by its EXIF orientation.

    An alpha channel is dropped; the colours of transparent pixels are kept. 16-bit values are
    divided by 257.

    Raises:
        ValueError: If the file cannot be decoded, holds several images, or its values do not show
            which of them is white, such as 16-bit values below 32768 that are not multiples of 257.
    """
    return decode_rgb(path)[1]


def decode_rgb(path: str | os.PathLike[str]) -> tuple[Header, tv_tensors.Image]:
    """Returns a file's header, and its image as RGB uint8 (3, H, W), turned upright.

    The errors are those of :func:`read_image`.
    """
    found = _by_simplejpeg(Path(path))
    if found is not None:
        return found
    file = decode(path)
    return file.header, rgb(file)


@cache
def _simplejpeg() -> Any:
    """Returns simplejpeg's decoder; None if it is not installed."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return decode_jpeg


def _by_simplejpeg(path: Path) -> tuple[Header, tv_tensors.Image] | None:
    """Returns the header and pixels of an upright RGB JPEG, equal to Pillow's and sooner.

    Both call libjpeg-turbo; Pillow stores pixels in four bytes and converts them. It returns None
    for all other files, and for faulty ones, so that Pillow reads them or names the fault.
    """
    decode_jpeg = _simplejpeg()
    if decode_jpeg is None or path.suffix.lower() not in JPEG_SUFFIXES:
        return None
    try:
        with Image.open(path) as image:
            header = _header(path, image)
        is_plain = (header.format, header.mode) == ("JPEG", "RGB")
        if not is_plain or (header.orientation or 1) != 1:
            return None
        pixels = decode_jpeg(path.read_bytes(), "RGB")
    except Exception:  # Pillow's, ValueError …
        return None
    return header, tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def rgb(file: Decoded) -> tv_tensors.Image:
    """Returns the pixels of a decoded file as RGB uint8 (3, H, W)."""
    header, image = file
    what = f"image {str(header.path)!r}"
    if image.mode == "F" or (image.mode == "I" and header.format not in ("PNG", "PPM")):
        raise ValueError(
            f"{what} has mode {image.mode}, whose scale of values is unknown; save it with 8 or 16 "
            "bits per channel"
        )
    if image.mode.startswith("I"):  # Pillow's own conversion clips values at 255
        image = Image.fromarray(_eight_bits(np.array(image), header, what))
        pixels = np.array(image.convert("RGB"))
    else:
        try:
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
        except ValueError as error:
            raise ValueError(f"{what} has mode {image.mode} ({error}); save it as RGB") from error
        if header.greatest > 255 and header.format != "PPM":  # Pillow keeps only the upper 8 bits
            _check_range(256 * int(pixels.max(initial=0)) + 255, what)
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def _eight_bits(values: np.ndarray, header: Header, what: str) -> np.ndarray:
    if header.inverted:
        raise ValueError(f"{what} stores 0 as white in 16 bits; save it with 0 as black")
    if header.format == "TIFF" and header.greatest == 4095:  # twelve bits, packed
        return (values // 16).astype(np.uint8)
    if header.format != "PPM" and (values % 257).any():  # Pillow scales a PPM by its maximum
        _check_range(int(values.max()), what)
    return (values // 257).astype(np.uint8)


def _check_range(greatest: int, what: str) -> None:
    """Raises ValueError if 16-bit values may be those of fewer bits."""
    if greatest < FULL_RANGE:
        raise ValueError(
            f"{what} has 16 bits and no value above {greatest}: it may be dark, or hold values of "
            "10, 12 or 14 bits; scale its values to 8 bits, or to 0 to 65535"
        )


def is_transparent(header: Header) -> bool:
    """Returns whether reading the file as RGB drops transparency."""
    return header.transparent or header.mode in ("RGBA", "LA", "PA", "RGBa", "La")
