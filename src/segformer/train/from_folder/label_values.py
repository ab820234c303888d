"""The values and colours of all label maps of a folder."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segformer.data.classes import Color
from segformer.data.datasets import DataError
from segformer.data.images import Decoded, decode
from segformer.data.label_rasters import label_raster
from segformer.data.labels import coding_of, values_of_file

READERS = 8  # threads


@dataclass
class LabelMaps:
    """What all label maps of a folder hold.

    Args:
        values: Number of pixels of each value; empty for RGB files with colours.
        colors: Number of pixels of each colour, of files with colours or a palette.
        colors_of: Colours of each value, of files with a palette.
        files: An example file of each kind: ``value``, ``palette``, ``grey RGB`` and ``color``.
        sizes: Height and width of each file.
        no_data: An example file of each value that files state as no data, and that is not counted.
    """

    values: Counter[int] = field(default_factory=Counter)
    colors: Counter[Color] = field(default_factory=Counter)
    colors_of: dict[int, set[Color]] = field(default_factory=lambda: defaultdict(set))
    files: dict[str, Path] = field(default_factory=dict)
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)
    no_data: dict[int, Path] = field(default_factory=dict)


def read_label_maps(paths: Sequence[Path]) -> LabelMaps:
    """Returns what label maps hold; shows a progress bar.

    Raises:
        DataError: If a file cannot be read, or its compression changes values.
    """
    found, faults = LabelMaps(), []
    with ThreadPoolExecutor(READERS) as readers:
        contents = readers.map(_content, paths)
        for path, content in zip(paths, tqdm(contents, "label maps", len(paths)), strict=True):
            if isinstance(content, str):
                faults.append(content)
            else:
                _add(found, path, content)
    if faults:
        raise DataError(faults, found)
    return found


@dataclass(frozen=True)
class _Content:
    """What one label map holds; its kind is a key of :attr:`LabelMaps.files`."""

    kind: str
    size: tuple[int, int]
    values: dict[int, int]
    colors: dict[Color, int]
    palette: tuple[Color, ...] = ()
    no_data: float | None = None


def _content(path: Path) -> _Content | str:
    """Returns what a label map holds, or one sentence for its error."""
    try:
        if raster := label_raster(path):
            values = raster.values()
            size, palette = raster.opened.size, raster.header.palette
        else:
            file = decode(path)
            coding_of(file.header)  # checks the format
            if file.image.mode in ("RGB", "RGBX", "RGBA"):
                return _of_channels(file)
            values = values_of_file(file, None, None)
            size, palette = file.header.shown_size, file.header.palette
    except (OSError, ValueError) as error:
        return str(error)
    counts = _counts(values.of_data.numpy())
    no_data = None if values.valid is None else values.no_data
    if not palette:
        return _Content("value", size, counts, {}, no_data=no_data)
    colors: Counter[Color] = Counter()
    for value, count in counts.items():
        colors[palette[value] if value < len(palette) else (0, 0, 0)] += count
    return _Content("palette", size, counts, colors, palette, no_data)


def _of_channels(file: Decoded) -> _Content:
    if file.image.mode == "RGBA" and file.image.getchannel("A").getextrema() != (255, 255):
        raise ValueError(
            f"label map {str(file.header.path)!r} is transparent; save it without an alpha channel"
        )
    pixels = np.array(file.image.convert("RGB")).astype(np.int32)
    codes = _counts(pixels @ np.array([1 << 16, 1 << 8, 1], np.int32))
    colors = {(code >> 16, code >> 8 & 255, code & 255): n for code, n in codes.items()}
    is_grey = all(red == green == blue for red, green, blue in colors)
    values = {color[0]: n for color, n in colors.items()} if is_grey else {}
    return _Content("grey RGB" if is_grey else "color", file.header.shown_size, values, colors)


def _counts(values: np.ndarray) -> dict[int, int]:
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found, numbers = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), numbers.tolist(), strict=True))


def _add(found: LabelMaps, path: Path, content: _Content) -> None:
    found.files.setdefault(content.kind, path)
    found.sizes[path] = content.size
    if content.no_data is not None and content.no_data.is_integer():
        found.no_data.setdefault(int(content.no_data), path)
    found.values.update(content.values)
    found.colors.update(content.colors)
    if content.palette:
        for value in content.values:
            if value < len(content.palette):
                found.colors_of[value].add(content.palette[value])
