"""Pillow's formats, such as PNG, JPEG, WebP, AVIF and HEIF, with the values that they store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segformer.data.families.opened import Opened, of_array
from segformer.data.images import decode

JPEG2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")  # how its files begin
UNKNOWN = ("P", "PA", "YCbCr", "LAB", "HSV", "RGBa", "La")  # modes whose values are no bands


def open_pillow(path: Path) -> Opened:
    """Returns the image of a file that Pillow decodes, turned upright.

    Raises:
        ValueError: If Pillow would change its values, or they are no bands.
    """
    header, image = decode(path)
    if image.mode in UNKNOWN:
        raise ValueError(f"it has mode {image.mode}, whose values are no bands; save it as RGB")
    if header.greatest > 255 and len(image.getbands()) > 1:
        raise ValueError(
            f"it has {len(image.getbands())} bands of values up to {header.greatest}, of which "
            "Pillow keeps 8 bits; install segformer[geo]"
        )
    if header.format == "JPEG2000" and image.mode.startswith("I"):
        raise ValueError(
            "it is a JPEG 2000 file of more than 8 bits, which Pillow scales to 16; install "
            "segformer[geo]"
        )
    if header.inverted:
        raise ValueError("it stores 0 as white; save it with 0 as black")
    values = np.array(image)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype == np.int32 and 255 < header.greatest < 1 << 16:  # Pillow's mode I
        values = values.astype(np.uint16)
    values = values.astype(values.dtype.newbyteorder("="))
    return of_array(path, values[None] if values.ndim == 2 else values.transpose(2, 0, 1))
