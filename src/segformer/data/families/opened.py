"""An image file whose bands are read in part or whole, with the values that it stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segformer.data.classes import Color


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and its columns."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


def starts(length: int, size: int, stride: int) -> list[int]:
    """Returns the first pixels of the windows along a side; the last is moved to the border."""
    count = max(0, -(-(length - size) // stride)) + 1
    return [max(0, min(k * stride, length - size)) for k in range(count)]


@dataclass(frozen=True)
class Grid:
    """Where an image lies on the earth.

    Args:
        crs: Coordinate reference system, as text that names it (WKT).
        transform: Six coefficients of the affine transform from columns and rows to coordinates.
    """

    crs: str
    transform: tuple[float, ...]


@dataclass(frozen=True)
class Opened:
    """An image file of any kind.

    Args:
        path: Path of the file.
        shape: Number of bands, height and width.
        dtype: NumPy's name of the values' type.
        read: Returns the bands (C, h, w) in a window.
        valid: Returns where each band of a window has data (C, h, w), bool; None if that is
            everywhere, but for floats that are no numbers.
        grid: Where it lies on the earth, if the file says so.
        names: Names of the bands that the file states; may be empty.
        has_alpha: Whether the last band is the mask of the others.
        no_data: Value of pixels without data, if the file states one.
        palette: Colours of its values, if these are indices of colours.
        lossy_compression: Name of its compression, if that may change values.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: str
    read: Callable[[Window], np.ndarray]
    valid: Callable[[Window], np.ndarray] | None = None
    grid: Grid | None = None
    names: tuple[str, ...] = ()
    has_alpha: bool = False
    no_data: float | None = None
    palette: tuple[Color, ...] = ()
    lossy_compression: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.shape[1:]

    @property
    def whole(self) -> Window:
        """The window that holds all pixels."""
        return Window(0, 0, *self.size)


def of_array(path: Path, bands: Any, **more: Any) -> Opened:
    """Returns an array (C, H, W), which may be mapped from a file, as an opened image."""

    def read(window: Window) -> np.ndarray:
        rows, columns = window.slices
        return np.array(bands[:, rows, columns])

    return Opened(path, tuple(bands.shape), bands.dtype.name, read, **more)


def missing(path: Path, package: str, extra: str) -> ValueError:
    """Returns the error for a file whose library is not installed."""
    return ValueError(
        f"{str(path)!r} is read by {package}, which is not installed; install segformer[{extra}]"
    )
