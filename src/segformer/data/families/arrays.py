"""NumPy's files: ``.npy``, which is mapped into memory, and ``.npz``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segformer.data.families.opened import Opened, of_array


def open_array(path: Path, layout: str) -> Opened:
    """Returns the image in a file of NumPy.

    Args:
        path: Path of the file.
        layout: Order of its axes, ``"HWC"`` or ``"CHW"``; an array of two axes has one band.

    Raises:
        ValueError: If it holds no such array, or several.
    """
    array = _array(path)
    if array.ndim == 2:
        array = array[None] if layout == "CHW" else array[..., None]
    if array.ndim != 3 or array.dtype.kind not in "uif":
        raise ValueError(
            f"it holds an array of {array.dtype} {tuple(array.shape)}, and an image has numbers of "
            "two or three axes; save each image to a file of its own"
        )
    return of_array(path, array if layout == "CHW" else array.transpose(2, 0, 1))


def _array(path: Path) -> Any:
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
        if len(loaded.files) != 1:
            raise ValueError(
                f"it holds {len(loaded.files)} arrays ({', '.join(loaded.files[:5])}); save the "
                "image alone"
            )
        return loaded[loaded.files[0]]
