"""Image files: which of a folder's files they are, what their headers say, and their pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors

from segformer.data.classes import Color

ORIENTATION = 0x0112  # EXIF's tag
SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC = 254, 258, 262  # TIFF's tags
READ_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif"),
)
UNREAD_SUFFIXES = (".heic", ".heif", ".jxl", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw")
IMAGE_SUFFIXES = READ_SUFFIXES + UNREAD_SUFFIXES
NO_DATA = ("__MACOSX", "@eaDir")  # folders that an archiver and a file server leave behind
FULL_RANGE = 1 << 15  # 16-bit values below it may be those of 10, 12, 14 or 15 bits


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns every image file below a folder, sorted by path.

    Links to folders are followed. Files and folders whose name starts with a dot, and those that
    an operating system leaves behind, are not data. A file of a kind that is not read, such as
    ``.heic``, is returned too: reading it raises an error with its name.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}")
    paths = sorted(path for path in _files(root, ()) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no image in {str(root)!r}; looked for {' '.join(IMAGE_SUFFIXES)}")
    return paths


def _files(folder: Path, parents: tuple[Path, ...]) -> Iterator[Path]:
    here = folder.resolve()
    if here in parents:  # a link to a folder that holds it
        return
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name in NO_DATA:
            continue
        if path.is_dir():
            yield from _files(path, (*parents, here))
        elif path.is_file():
            yield path


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels.

    Args:
        path: The file.
        format: Pillow's name of its format.
        mode: Pillow's name of its channels.
        size: Height and width, as stored.
        greatest: Greatest value that a sample of the file can have, such as 255.
        pages: Number of images in the file; reduced copies and masks of a TIFF do not count.
        orientation: EXIF's number for how to turn it, from 1 (upright) to 8, or None.
        compression: Name of the compression, where the format has several.
        palette: Colours that the values of a palette image stand for.
        transparent: Whether some of these colours are transparent.
        inverted: Whether the file stores 0 as white.
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

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width once the image is turned upright."""
        height, width = self.size
        return (width, height) if (self.orientation or 1) >= 5 else (height, width)


class Decoded(NamedTuple):
    """An image file's header and its image, turned upright."""

    header: Header
    image: Image.Image


def read_header(path: str | os.PathLike[str]) -> Header:
    """Returns what a file says of itself; its pixels are not decoded.

    Raises:
        ValueError: If the file is no image that is read, or holds several.
    """
    with _naming(path), Image.open(path) as image:
        header = _header(Path(path), image)
    _refuse_unread(header)
    return header


def decode(path: str | os.PathLike[str]) -> Decoded:
    """Reads a file.

    Raises:
        ValueError: If it cannot be decoded, or holds several images.
    """
    with _naming(path), Image.open(path) as image:
        header = _header(Path(path), image)
        if header.pages == 1 and not _is_misread(header):
            if image.format == "PNG":  # decoding alone does not look at the checksums of the pixels
                with Image.open(path) as checked:
                    checked.verify()
            image.load()
        if image.format == "PNG" and header.orientation is None:  # EXIF may follow the pixels
            header = replace(header, orientation=_orientation(image.getexif()))
        turned = (
            ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
        )
    _refuse_unread(header)
    return Decoded(header, turned)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns whatever a decoder raises into a ValueError with the file's name."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"image {str(path)!r} is larger than Pillow reads ({error}); save its pixels with numpy.save: `segformer predict` maps NAME.npy"
        ) from error
    except Exception as error:  # OSError, SyntaxError, struct.error, …
        suffix = Path(path).suffix.lower()
        is_unread = suffix in UNREAD_SUFFIXES
        cure = f"{suffix} files are not read: save it as PNG" if is_unread else "copy it again"
        raise ValueError(f"cannot read image {str(path)!r}: {error}; {cure}") from error


def _is_misread(header: Header) -> bool:
    """Whether Pillow takes a BMP's values of 4 or 8 bits for ones of 1 or 8."""
    wrong = (("1", 15), ("1", 255), ("L", 15))
    return header.format == "BMP" and (header.mode, header.greatest) in wrong


def _refuse_unread(header: Header) -> None:
    """Refuse what Pillow reads in part, or wrongly."""
    if _is_misread(header):
        raise ValueError(
            f"{str(header.path)!r} is a BMP with a grey palette of few colours, which Pillow misreads; save it as PNG"
        )
    if header.pages > 1:
        raise ValueError(
            f"{str(header.path)!r} holds {header.pages} images (pages or frames); save each to a file of its own"
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
    )


def _orientation(exif: Any) -> int | None:
    value = exif.get(ORIENTATION)
    return value if value in range(1, 9) else None


def _raw_mode(image: Any) -> str:
    """The layout of the file's samples in Pillow's words, such as L;4 for grey of 4 bits."""
    arguments = image.tile[0][3] if image.tile else image.mode
    return (
        arguments if isinstance(arguments, str) else str(arguments[0] if arguments else image.mode)
    )


def _greatest(path: Path, image: Any) -> int:
    """The greatest value of a sample in the file, which may be another than that of Pillow's mode."""
    if image.format == "TIFF":
        return int((1 << max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))) - 1)
    if image.format == "BMP" and image.mode in ("1", "L"):
        with path.open("rb") as file:
            start = file.read(30)
        place = 24 if start[14] == 12 else 28  # the old header's, and that of all others
        return int((1 << int.from_bytes(start[place : place + 2], "little")) - 1)
    if image.mode == "1":
        return 1
    if image.format == "PPM" and image.tile[0][0] != "raw":
        return int(image.tile[0][3][-1])
    bits = re.search(r";(\d+)", _raw_mode(image)) if image.format in ("PNG", "PPM") else None
    return (1 << (int(bits[1]) if bits else 32 if image.mode in ("I", "F") else 8)) - 1


def _pages(image: Any) -> int:
    if (
        image.format == "MPO"
    ):  # a camera's: the first is the photograph, the others are made from it
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
    """The names of a RIFF file's chunks."""
    names = []
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        place = 12
        while place + 8 <= end:
            file.seek(place)
            names.append(file.read(4))
            size = int.from_bytes(file.read(4), "little")
            place += 8 + size + size % 2
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
    """Reads an image file as RGB uint8 (3, H, W), turned upright as its EXIF orientation says.

    An alpha channel is dropped; the colours below it are kept. 16-bit values are divided by 257
    where they use their range, or are 8-bit values times 257.

    Raises:
        ValueError: If the file cannot be decoded, holds several images, or its values do not say
            which of them is white.
    """
    return rgb(decode(path))


def rgb(file: Decoded) -> tv_tensors.Image:
    """The pixels of a decoded file as RGB uint8 (3, H, W)."""
    header, image = file
    what = f"image {str(header.path)!r}"
    if image.mode == "F" or (image.mode == "I" and header.format not in ("PNG", "PPM")):
        raise ValueError(
            f"{what} has mode {image.mode}, whose scale of values is unknown; save it with 8 or 16 bits a channel"
        )
    if image.mode.startswith("I"):  # Pillow's own conversion would clip all above 255
        image = Image.fromarray(_eight_bits(np.array(image), header, what))
        pixels = np.array(image.convert("RGB"))
    else:
        try:
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
        except ValueError as error:
            raise ValueError(f"{what} has mode {image.mode} ({error}); save it as RGB") from error
        if header.greatest > 255 and header.format != "PPM":  # Pillow keeps the upper 8 bits alone
            _refuse_dark(256 * int(pixels.max(initial=0)) + 255, what)
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def _eight_bits(values: np.ndarray, header: Header, what: str) -> np.ndarray:
    if header.inverted:
        raise ValueError(f"{what} stores 0 as white in 16 bits; save it with 0 as black")
    if header.format == "TIFF" and header.greatest == 4095:  # twelve bits, packed
        return (values // 16).astype(np.uint8)
    if header.format != "PPM" and (values % 257).any():  # Pillow scales a PPM by its maximum
        _refuse_dark(int(values.max()), what)
    return (values // 257).astype(np.uint8)


def _refuse_dark(greatest: int, what: str) -> None:
    if greatest < FULL_RANGE:
        raise ValueError(
            f"{what} has 16 bits and no value above {greatest}: it may hold 10, 12 or 14 bits, or "
            "be dark; scale its values to 8 bits, or to 0 to 65535"
        )


def is_transparent(header: Header) -> bool:
    """Whether reading the file as RGB drops transparency."""
    return header.transparent or header.mode in ("RGBA", "LA", "PA", "RGBa", "La")
