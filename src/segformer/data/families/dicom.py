"""DICOM, by pydicom: radiographs, slices of tomographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segformer.data.families.opened import Opened, missing, of_array


def is_dicom(start: bytes) -> bool:
    """Returns whether a file that begins with these bytes is DICOM's."""
    return start[128:132] == b"DICM"


def open_dicom(path: Path) -> Opened:
    """Returns the image of a DICOM file, with the values that are stored.

    If the file states a slope and an intercept, as those of tomographs do, the values are converted
    by them (to Hounsfield units), as float32. Otherwise grey values of which 0 is white
    (MONOCHROME1) are inverted. Values for padding are no data.

    Raises:
        ValueError: If it holds no image, several frames, or the indices of a palette.
    """
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise missing(path, "pydicom", "medical") from error
    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset:
        raise ValueError("it holds no image; leave it out")
    frames = int(dataset.get("NumberOfFrames", None) or 1)
    if frames != 1:
        raise ValueError(f"it holds {frames} frames; save each to a file of its own")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        raise ValueError("it has a palette, whose values are no bands; save it as RGB")
    values = dataset.pixel_array
    padding = _padding(values, dataset)
    slope, intercept = (
        float(default if dataset.get(name) in (None, "") else dataset.get(name))
        for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    if (slope, intercept) != (1, 0):
        values = (values * slope + intercept).astype(np.float32)
    elif dataset.PhotometricInterpretation == "MONOCHROME1":
        values = ~values if values.dtype.kind == "i" else (1 << dataset.BitsStored) - 1 - values
    bands = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    if padding is None or not padding.any():
        return of_array(path, bands)
    has_data = np.broadcast_to(~padding, bands.shape)
    return of_array(path, bands, valid=lambda window: has_data[:, *window.slices].copy())


def _padding(values: np.ndarray, dataset: Any) -> np.ndarray | None:
    """Returns where stored grey values are those of padding (H, W); None if none are stated."""
    first = dataset.get("PixelPaddingValue")
    if first in (None, "") or values.ndim != 2:
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last in (None, "") else last)))
    padding: np.ndarray = (values >= low) & (values <= high)
    return padding
