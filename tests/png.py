"""PNG files of any depth, byte for byte as the format's definition has them."""

from __future__ import annotations

import struct
import zlib

import numpy as np

GREY, RGB = 0, 2  # the format's colour types


def _chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(values: np.ndarray, bits: int) -> bytes:
    """Values (H, W) or (H, W, 3) as grey or RGB with so many bits a sample."""
    height, width = values.shape[:2]
    shifts = np.arange(bits - 1, -1, -1)  # highest bit first
    rows = [np.packbits((row.reshape(-1, 1) >> shifts) & 1).tobytes() for row in values]
    header = struct.pack(
        ">IIBBBBB", width, height, bits, GREY if values.ndim == 2 else RGB, 0, 0, 0
    )
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in chunks)
