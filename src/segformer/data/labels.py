"""Label map files: how a file's values or colours become class indices."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from segformer.data.classes import (
    IGNORE_INDEX,
    IGNORED_16_BITS,
    Classes,
    Color,
    ignore_index,
    voc_palette,
)
from segformer.data.images import Decoded, Header, decode

Coding = Literal["index", "color"]
LOSSLESS_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP")
LOSSLESS_TIFFS = (
    *("raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"),
    *("packbits", "lzma", "zstd"),
)
BLACK = (0, 0, 0)


def read_label_map(
    path: str | os.PathLike[str], classes: Classes | None = None, palette: Coding | None = None
) -> tv_tensors.Mask:
    """Returns a label map file as class indices (H, W): uint8, or int32 for values above 255.

    A file of one channel, or of three equal channels, holds indices of up to 32 bits. A palette
    file is read by index if its palette begins with the classes' colours in their order, and by
    colour if it holds the classes' colours in another order (as optimised files do). RGB files are
    read by colour. Black is ignored unless it is the colour of a class.

    Args:
        path: Path of the file.
        classes: Names and colours of the classes; without them values are indices.
        palette: ``"index"`` if the values of a palette or of three equal channels are class
            indices, ``"color"`` if the colours are the classes'. By default the file's own palette
            must show which.

    Raises:
        ValueError: If the file cannot be decoded, its compression changes values, or its palette or
            colours do not show which classes they mean.
    """
    return tv_tensors.Mask(to_indices(decode(path), classes, palette))


def to_indices(file: Decoded, classes: Classes | None, palette: Coding | None) -> Tensor:
    """Returns the class indices (H, W) of a decoded label map; see :func:`read_label_map`."""
    header, image = file
    what = _what(header)
    coding = coding_of(header, classes, palette)
    if header.mode in ("RGBA", "LA"):
        alpha = np.array(image.getchannel("A"))
        if (alpha != 255).any():
            raise ValueError(
                f"{what} is transparent on {np.count_nonzero(alpha != 255)} of {alpha.size} "
                "pixels; save it without an alpha channel"
            )
        image = image.convert(header.mode[:-1])
    if image.mode in ("RGB", "RGBX"):
        pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(_of_channels(pixels, classes, coding, what))
    if coding == "color":
        assert classes is not None
        return torch.from_numpy(_by_color(np.array(image.convert("RGB")), classes, what))
    return torch.from_numpy(whole_numbers(np.array(image), header))


@dataclass(frozen=True)
class Values:
    """The values of a label map file.

    Args:
        path: Path of the file.
        indices: Class indices (H, W), or other values that a ``label_map`` maps to them.
        valid: Where they are data (H, W), bool; None for everywhere.
        no_data: The file's own value for no data, if it states one.
    """

    path: Path
    indices: Tensor
    valid: Tensor | None = None
    no_data: float | None = None

    @property
    def of_data(self) -> Tensor:
        """The indices that are data (N,), or all (H, W)."""
        return self.indices if self.valid is None else self.indices[self.valid]


def values_of_file(file: Decoded, classes: Classes | None, palette: Coding | None) -> Values:
    """Returns the values of a decoded label map; see :func:`read_label_map`.

    A file of colours has no value for no data.
    """
    header = file.header
    indices = to_indices(file, classes, palette)
    if header.no_data is None or coding_of(header, classes, palette) != "index":
        return Values(header.path, indices)
    valid = indices != header.no_data
    return Values(header.path, indices, None if valid.all() else valid, header.no_data)


def coding_of(
    header: Header, classes: Classes | None = None, palette: Coding | None = None
) -> Coding | None:
    """Returns how a label map is read, by index or by colour; None if that depends on its pixels.

    Raises:
        ValueError: If the file's format changes or hides values, or its palette shows neither.
    """
    what = _what(header)
    _check_lossless(header)
    if header.inverted:
        raise ValueError(f"{what} stores 0 as white; save it with 0 as black, or as PNG")
    channels = {"LA": "L", "RGBA": "RGB", "RGBX": "RGB"}.get(header.mode, header.mode)
    if channels not in ("1", "L", "I", "F", "P", "RGB") and not channels.startswith("I;16"):
        raise ValueError(
            f"{what} has mode {header.mode}; class indices need one channel (mode L, P or I), "
            "colours three (RGB): convert it"
        )
    if header.mode in ("LA", "RGB", "RGBA", "RGBX") and header.greatest != 255:
        raise ValueError(
            f"{what} has mode {header.mode} with values up to {header.greatest}, which Pillow "
            "scales to 255; save it with one channel, or with 8 bits"
        )
    if channels not in ("P", "RGB"):
        if palette == "color":
            raise ValueError(f"{what} has one channel and no colours; remove `palette: color`")
        return "index"
    if classes is None or palette == "index":
        return "index"
    if palette == "color" or channels == "RGB":
        return palette
    return _coding_of_palette(header, classes)


def _coding_of_palette(header: Header, classes: Classes) -> Coding:
    """Returns how a palette file is read; raises ValueError if its palette fits no way."""
    palette = header.palette
    grey_ramp = tuple((k, k, k) for k in range(len(palette)))
    pairs = enumerate(zip(palette, classes.colors, strict=False))
    first = next((k for k, (entry, color) in pairs if entry != color), None)
    if first is None or (palette == grey_ramp and len(palette) > 1):  # like a grey file
        return "index"
    known = set(_index_of_color(classes))
    if set(palette) <= known and len(set(palette)) > 1 and not header.transparent:
        return "color"
    raise ValueError(
        f"{_what(header)} has a palette that differs from the classes' colours: its entry {first} "
        f"is {palette[first]}, the colour of {classes.names[first]!r} is {classes.colors[first]}; "
        "set `palette: index` if the values are class indices, or set classes.colors to the "
        "palette's colours"
    )


def _check_lossless(header: Header) -> None:
    """Raises ValueError if a file's compression may change values."""
    compressions = {"TIFF": LOSSLESS_TIFFS, "WEBP": ("lossless",)}.get(header.format)
    if header.compression not in (compressions or ("",)) or header.format not in LOSSLESS_FORMATS:
        kind = " ".join(filter(None, (header.format, header.compression)))
        raise ValueError(
            f"{_what(header)} is a {kind} file, whose compression may change values; make it again "
            "from its source, as PNG"
        )


def _what(header: Header) -> str:
    return f"label map {str(header.path)!r}"


def _of_channels(
    pixels: np.ndarray, classes: Classes | None, coding: Coding | None, what: str
) -> np.ndarray:
    """Returns the indices of RGB pixels (H, W, 3), by colour or from three equal channels."""
    equal = bool((pixels == pixels[..., :1]).all())
    if coding == "index":
        if not equal:
            raise ValueError(
                f"{what} has mode RGB with different channels, but is read by index (palette or "
                "label_map); class indices need one channel: convert the colours to indices first"
            )
        return pixels[..., 0].copy()
    assert classes is not None
    if coding == "color" or not equal:
        return _by_color(pixels, classes, what)
    values = pixels[..., 0].copy()
    found = set(np.unique(values).tolist())
    index_of = _index_of_color(classes)
    by_color = {value: index_of.get((value,) * 3) for value in found}
    if None in by_color.values():
        return values
    if all(value == k for value, k in by_color.items()):
        return values
    if all(value < len(classes) for value in found):
        value = next(value for value, k in by_color.items() if value != k)
        is_ignored = by_color[value] == classes.ignore_index
        colored = "no class" if is_ignored else f"class {by_color[value]}"
        raise ValueError(
            f"{what} has three equal channels; its value {value} may be class {value} or the "
            f"colour of {colored}: set `palette: index` or `palette: color`"
        )
    return _by_color(pixels, classes, what)


def _index_of_color(classes: Classes) -> dict[Color, int]:
    """Returns the class of each colour.

    Black is ignored unless it is a class's colour, and so is VOC's colour of outlines if the
    classes have VOC's colours.
    """
    index_of = {color: k for k, color in reversed(list(enumerate(classes.colors)))}
    unlabelled = [BLACK]
    if len(classes) < 255 and classes.colors == voc_palette(len(classes)):
        unlabelled.append(voc_palette(256)[255])
    return dict.fromkeys(unlabelled, classes.ignore_index) | index_of


def _by_color(pixels: np.ndarray, classes: Classes, what: str) -> np.ndarray:
    """Returns the class indices (H, W) of RGB pixels (H, W, 3) in the classes' colours."""
    index_of = _index_of_color(classes)
    repeated = [color for color in classes.colors if classes.colors.count(color) > 1]
    if repeated:
        raise ValueError(
            f"{what} is coded by colour, and {repeated[0]} is the colour of more than one class; "
            "give each class a colour of its own (classes.colors)"
        )
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    codes, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colors = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in codes]
    unknown = [k for k, color in enumerate(colors) if color not in index_of]
    if unknown:
        worst = max(unknown, key=lambda k: counts[k])
        raise ValueError(
            f"{what} has the colour {colors[worst]} on {counts[worst]} of {packed.size} pixels, "
            "which is no class's; set the colours of the classes (classes.colors)"
        )
    dtype = np.uint8 if classes.ignore_index == 255 else np.int32
    return np.array([index_of[color] for color in colors], dtype)[inverse.reshape(packed.shape)]


def whole_numbers(values: np.ndarray, header: Header) -> np.ndarray:
    """Returns the file's own values as integers; Pillow scales some of them to 8 or 16 bits.

    Raises:
        ValueError: If one is a fraction, or has more than 32 bits.
    """
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        wrong = values[values != np.round(values)]  # without infinities, which are too large
        if wrong.size or not (np.abs(values) < 1 << 31).all():
            raise ValueError(
                f"{_what(header)} holds "
                f"{float(wrong[0]) if wrong.size else float(np.abs(values).max())}, which is no "
                "class index; save integers"
            )
    scaled_to = {"L": 255, "I": 65535}.get(header.mode)
    if header.mode == "L" and header.greatest in (3, 15):  # 2 and 4 bits
        return values // (255 // header.greatest)
    if header.format == "PPM" and scaled_to and header.greatest < scaled_to:
        values = np.round(values * (header.greatest / scaled_to))
    if header.mode == "L" or (values.size and values.min() >= 0 and values.max() < 256):
        return values.astype(np.uint8, copy=False)
    return values.astype(np.int32)


def check_orientation(image: Header, label: Header) -> None:
    """Checks that the EXIF orientations of a pair leave no doubt how the two files match.

    Each file is turned by its own orientation. A label map without one is accepted if the image is
    turned by 90° and the label map has the turned image's size.

    Raises:
        ValueError: If the label map was drawn on the image as it is stored, or the sizes do not
            show which.
    """
    if label.orientation is None:
        check_turned(image, label.path, label.size)


def check_turned(image: Header, label: Path, size: tuple[int, int] | None) -> None:
    """Checks that labels without an orientation of their own fit the image as it is shown.

    Args:
        image: Header of the image.
        label: File of the labels.
        size: Their height and width, if it is known.

    Raises:
        ValueError: If they were drawn on the image as it is stored, or the sizes do not show which.
    """
    turn = image.orientation or 1
    if turn == 1:
        return
    how = f"image {str(image.path)!r} is turned by its EXIF orientation ({turn})"
    cure = "save the image upright, without orientation, or give the label map its own"
    if turn < 5 or image.size[0] == image.size[1] or size is None:
        raise ValueError(
            f"{how}, its label map {str(label)!r} has none, and their sizes do not show "
            f"whether it was drawn on the turned image; {cure}"
        )
    if size == image.size:
        raise ValueError(
            f"{how}, but its label map {str(label)!r} fits only the image as it is stored; {cure}"
        )


def check_labels(label: Tensor, num_classes: int, what: str) -> None:
    """Checks that every value of a label map is a class or ignored.

    Args:
        label: Class indices of any shape and integer type.
        num_classes: Number of classes.
        what: Name of the label map for the message.

    Raises:
        ValueError: If they are no integers, or one is neither. The message states ``what``, the
            most frequent wrong value, its number of pixels, and the likely cure.
    """
    if label.is_floating_point() or label.is_complex():
        raise ValueError(f"{what} has the type {label.dtype}; give class indices as integers")
    ignored = ignore_index(num_classes)
    if label.dtype == torch.uint8 and label.numel() and int((label + 1).amax()) <= num_classes:
        return  # in uint8, 255 + 1 is 0; much faster than the lines below
    label = label.long()
    is_wrong = (label < 0) | (label >= num_classes) & (label != ignored)
    wrong, counts = label[is_wrong].unique(return_counts=True)
    if len(wrong):
        value, count = int(wrong[counts.argmax()]), int(counts.max())
        others = sorted(set(wrong.tolist()) - {value})
        more = (
            f" (also wrong: {', '.join(map(str, others[:5]))}{', …' if others[5:] else ''})"
            if others
            else ""
        )
        cure = f"Set ignore_index={value}"
        if value >= 0:
            cure = (
                f"Add the missing classes, set ignore_index={value}, or map the values with "
                "label_map, for example if they are counted from 1"
            )
        raise ValueError(
            f"{what} holds the value {value} on {count} of {label.numel()} pixels{more}; valid "
            f"values are 0 to {num_classes - 1} and {ignored} (ignored). {cure}"
        )


def label_type(num_classes: int) -> torch.dtype:
    """Returns the type of a sample's label map: uint8, or int32 for more than 255 classes.

    Files and predictions are then uint16, for which PyTorch has few operations.
    """
    return torch.uint8 if ignore_index(num_classes) == 255 else torch.int32


def ignored_in(label: Tensor) -> int:
    """Returns the ignored value of a label map by its type: 65535 for int32, 255 for others."""
    return IGNORED_16_BITS if label.dtype == torch.int32 else IGNORE_INDEX


def file_type(num_classes: int) -> type[np.uint8] | type[np.uint16]:
    """Returns the type of labels in files: uint8, or uint16 for more than 255 classes."""
    return np.uint8 if ignore_index(num_classes) == 255 else np.uint16
