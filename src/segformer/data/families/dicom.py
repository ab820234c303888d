"""DICOM, by pydicom: radiographs, slices of tomographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segformer.data.families.opened import Opened, missing, of_array


def is_dicom(start: bytes) -> bool:
    """Returns whether a file that begins with these bytes is DICOM's."""
    return start[128:132] == b"DICM"


def open_dicom(path: Path) -> Opened:
    """Returns the image of a DICOM file, with the values that are stored.

    If the file states a slope and an intercept, as those of tomographs do, the values are converted
    by them (to Hounsfield units), as float32.

    Raises:
        ValueError: If it holds no image, or several frames.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_rescale
    except ModuleNotFoundError as error:
        raise missing(path, "pydicom", "medical") from error
    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset:
        raise ValueError("it holds no image; leave it out")
    frames = int(dataset.get("NumberOfFrames", None) or 1)
    if frames != 1:
        raise ValueError(f"it holds {frames} frames; save each to a file of its own")
    values = dataset.pixel_array
    if (dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)) != (1, 0):
        values = apply_rescale(values, dataset).astype(np.float32)
    return of_array(path, values[None] if values.ndim == 2 else values.transpose(2, 0, 1))
