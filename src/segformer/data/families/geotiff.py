"""Rasters, by rasterio: GeoTIFF, TIFF of any bands, GDAL's VRT, JPEG 2000, 16-bit colour PNG."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from segformer.data.classes import Color
from segformer.data.families.opened import Grid, Opened, Window, missing

ALPHA = 4  # GDAL's flag of a mask that is a band of the file
BLACK_AND_WHITE = ((0, 0, 0), (255, 255, 255))
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"<VRT")  # how TIFF and VRT files begin


def is_installed() -> bool:
    try:
        import rasterio  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


@contextmanager
def opened(path: Path | str, mode: str = "r", **options: Any) -> Iterator[Any]:
    """A raster of rasterio, whose warning of a missing georeference is not said."""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
        from rasterio.transform import Affine
    except ModuleNotFoundError as error:
        raise missing(Path(path), "rasterio", "geo") from error
    # For good: restoring the filters while other threads open files would bring it back to them.
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    if "transform" in options:
        options["transform"] = Affine(*options["transform"])
    with rasterio.open(path, mode, **options) as raster:
        yield raster


def is_raster(path: Path) -> bool:
    """Returns whether a file begins as TIFF or VRT files do."""
    with path.open("rb") as file:
        return file.read(4).startswith(MAGIC)


def count_pages(path: Path) -> int:
    """Returns the number of pages of a raster file."""
    with opened(path) as raster:
        return max(1, len(raster.subdatasets))


def open_raster(path: Path, pages: str | None, level: int, page: int | None = None) -> Opened:
    """Returns the image of a raster file.

    Args:
        path: Path of the file.
        pages: ``"bands"`` if the pages of a file are bands of one image, ``"images"`` if each is
            an image of its own.
        level: Level of its pyramid; 0 is the finest.
        page: Number of the page, from 0, if the pages are images.

    Raises:
        ValueError: If it has several pages, and ``pages`` or ``page`` is None, or no such level.
    """
    sources = _sources(path, pages, level, page)
    options: dict[str, Any] = (
        {"overview_level": level - 1} if level and sources == [str(path)] else {}
    )
    shapes, dtypes, names, has_gaps = [], set(), [], False
    for source in sources:
        with opened(source, **options) as raster:
            shapes.append((raster.count, raster.height, raster.width))
            dtypes |= set(raster.dtypes)
            names += [name or "" for name in raster.descriptions]
            has_gaps |= any(flags != [1] for flags in _flags(raster))
            grid, has_alpha = _grid(raster), any(ALPHA in flags for flags in _flags(raster))
            palette, lossy = _palette(raster), _lossy_compression(raster)
            no_data = raster.nodata
    if len(dtypes) > 1 or len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(
            f"its bands have the types {', '.join(sorted(dtypes))} and the sizes "
            f"{', '.join(sorted({f'{h}×{w}' for _, h, w in shapes}))}; save it with one"
        )
    dtype = dtypes.pop()

    def read(window: Window) -> np.ndarray:
        return np.concatenate([_read(source, window, options) for source in sources])

    def valid(window: Window) -> np.ndarray:
        return np.concatenate([_valid(source, window, options) for source in sources])

    shape = (sum(count for count, *_ in shapes), *shapes[0][1:])
    known = tuple(names) if all(names) else ()
    has_alpha = has_alpha and len(sources) == 1
    return Opened(
        *(path, shape, dtype, read, valid if has_gaps else None, grid, known),
        has_alpha=has_alpha,
        no_data=no_data,
        palette=palette,
        lossy_compression=lossy,
    )


def _sources(path: Path, pages: str | None, level: int, page: int | None) -> list[str]:
    """Returns GDAL's names of the pages to read."""
    with opened(path) as raster:
        parts = list(raster.subdatasets)
        levels = 1 + len(raster.overviews(1)) if raster.count else 0
    if len(parts) > 1 and pages == "images":
        if page is None:
            raise ValueError(
                f"it holds {len(parts)} pages, and one image is expected; save each to a file"
            )
        return [parts[page]]
    if len(parts) > 1:
        return parts if pages == "bands" else [_level(path, parts, level)]
    if level >= max(levels, 1):
        raise ValueError(f"it has {levels} levels, and level={level} is asked for; the first is 0")
    return [str(path)]


def _level(path: Path, parts: list[str], level: int) -> str:
    """Returns the page of a slide's pyramid; its pages are ever smaller copies of the first."""
    sizes = {}
    for part in parts:
        with opened(part) as raster:
            sizes[part] = (raster.height, raster.width, raster.count)
    (height, width, count), *_ = sizes.values()
    copies = [
        part
        for part, (h, w, n) in sizes.items()
        if n == count and abs(h * width - w * height) <= height + width
    ]
    copies.sort(key=lambda part: -sizes[part][0])
    if len({sizes[part] for part in copies}) < len(copies) or len(copies) < 2:
        raise ValueError(
            f"it holds {len(parts)} pages; set `pages: bands` if they are bands of one image, or "
            "`pages: images` if each is an image"
        )
    if level >= len(copies):
        raise ValueError(
            f"it has {len(copies)} levels, and level={level} is asked for; the first is 0"
        )
    return copies[level]


def _flags(raster: Any) -> list[list[int]]:
    """Returns GDAL's flags of each band's mask; 1 says that all pixels are valid."""
    return [[int(flag) for flag in flags] for flags in raster.mask_flag_enums]


def _palette(raster: Any) -> tuple[Color, ...]:
    """Returns the colours of a raster's values; empty if it has no palette."""
    if all(band.name != "palette" for band in raster.colorinterp):
        return ()
    colors = raster.colormap(1)
    palette = tuple(colors[value][:3] for value in sorted(colors))
    return () if palette == BLACK_AND_WHITE else palette  # of one bit, without a palette


def _lossy_compression(raster: Any) -> str:
    """Returns the name of a raster's compression if it may change values."""
    tags = raster.tags(ns="IMAGE_STRUCTURE")
    name = str(tags.get("COMPRESSION", ""))
    has_errors = tags.get("COMPRESSION_REVERSIBILITY") == "LOSSY" or "JPEG" in name
    return name if has_errors or float(tags.get("MAX_Z_ERROR", 0)) > 0 else ""


def _grid(raster: Any) -> Grid | None:
    if raster.crs is None:
        return None
    return Grid(raster.crs.to_wkt(), tuple(raster.transform)[:6])


def pixel_area(grid: Grid) -> float | None:
    """Returns the square metres of a pixel; None if the coordinates are no lengths."""
    from rasterio.crs import CRS

    crs = CRS.from_wkt(grid.crs)
    if not crs.is_projected:
        return None
    _, metres = crs.linear_units_factor
    a, b, _, d, e, _ = grid.transform
    return float(abs(a * e - b * d) * metres**2)


def difference(one: Grid | None, two: Grid | None, size: tuple[int, int]) -> str:
    """Returns how the places of two images on the earth differ; empty if they do not.

    Images without a place are everywhere, and so are differences below a hundredth of a pixel:
    software rounds coordinates.

    Args:
        one: Place of the first image.
        two: Place of the second.
        size: Height and width of both in pixels.
    """
    if one is None or two is None or one == two:
        return ""
    from rasterio.crs import CRS

    if CRS.from_wkt(one.crs) != CRS.from_wkt(two.crs):
        return f"{short_name(one.crs)} and {short_name(two.crs)}"
    height, width = size
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)]).T
    placed = [np.reshape(grid.transform, (2, 3)) @ corners for grid in (one, two)]
    pixel = np.abs(np.reshape(one.transform, (2, 3))[:, :2]).max()
    if np.abs(placed[0] - placed[1]).max() <= pixel / 100:
        return ""
    return f"{one.transform} and {two.transform}, the coefficients of x and y"


def short_name(crs: str) -> str:
    """Returns the name in a WKT, such as "WGS 84 / UTM zone 33N"."""
    return crs.split('"')[1] if '"' in crs else crs


def window_of(window: Window) -> Any:
    """Returns a window as rasterio has it."""
    from rasterio.windows import Window as Part

    return Part(window.left, window.top, window.width, window.height)


def _read(source: str, window: Window, options: dict[str, Any]) -> np.ndarray:
    """Returns the bands (C, h, w) of a window; floats that are no data are no numbers."""
    with opened(source, **options) as raster:
        values = np.asarray(raster.read(window=window_of(window)))
        if raster.nodata is not None and values.dtype.kind == "f":
            values[values == np.asarray(raster.nodata, values.dtype)] = np.nan
        return values


def _valid(source: str, window: Window, options: dict[str, Any]) -> np.ndarray:
    """Returns where each band of a window has data (C, h, w), bool."""
    with opened(source, **options) as raster:
        if any(ALPHA in flags for flags in _flags(raster)):  # which is no mask of its own band
            mask = raster.dataset_mask(window=window_of(window))
            return np.repeat(mask[None] > 0, raster.count, 0)
        return np.asarray(raster.read_masks(window=window_of(window)) > 0)
