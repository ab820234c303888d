"""Pictures of segmentations: indexed label maps, overlays, and sheets of samples with a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from segformer.data.classes import IGNORE_INDEX, Classes
from segformer.data.labels import file_type
from segformer.inference.fonts import Font, font_of

GAP = 8  # pixels between the pictures of a sheet
TEXT = 16  # pixels
IGNORED = (0, 0, 0)
# of values from 0 to 1; their lightness rises, also for colour-blind eyes
RAMP = ((35, 20, 70), (50, 70, 140), (30, 130, 145), (95, 190, 110), (250, 230, 60))
SCALE = 200  # pixels, smallest width of a scale
SEEN = 256  # pixels, smallest longer side of a picture for eyes


def indexed(labels: np.ndarray, classes: Classes) -> Image.Image:
    """Returns labels (H, W) as a picture whose pixel values are the class indices.

    It has a palette of the classes' colours. For more than 255 classes it is 16-bit grey.
    """
    image = Image.fromarray(labels.astype(file_type(len(classes))))
    if classes.ignore_index == IGNORE_INDEX:
        palette = [*classes.colors, *[IGNORED] * (256 - len(classes))]
        image.putpalette([channel for color in palette for channel in color])
    return image


def shown(image: Tensor) -> Image.Image:
    """Returns an image (C, H, W) of any bands and type as an RGB picture.

    Of three or more bands the first three are red, green and blue; otherwise the first is grey.
    Values that are not 8-bit are stretched from their 2 to their 98 percentile.
    """
    bands = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    values = bands.permute(1, 2, 0).numpy()
    if values.dtype != np.uint8:
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        low, high = np.percentile(finite, (2, 98)) if finite.size else (0, 1)
        scaled = np.nan_to_num((values.astype(np.float32) - low) / max(high - low, 1e-12))
        values = (scaled.clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))


def colored(labels: np.ndarray, classes: Classes) -> Image.Image:
    """Returns labels (H, W) as an RGB picture in the classes' colours; ignored pixels are black."""
    colors = np.zeros((classes.ignore_index + 1, 3), np.uint8)
    colors[: len(classes)] = classes.shown_colors
    return Image.fromarray(np.take(colors, labels, axis=0))  # several times as fast as an index


def overlay(
    image: Image.Image, labels: np.ndarray, classes: Classes, alpha: float = 0.55
) -> Image.Image:
    """Returns an image under the colours of its labels (H, W), with opacity ``alpha``.

    Ignored pixels show the image without colour.
    """
    is_ignored = labels == classes.ignore_index
    opacity = Image.fromarray(np.where(is_ignored, 0, round(255 * alpha)).astype(np.uint8))
    return Image.composite(colored(labels, classes), image.convert("RGB"), opacity)


def enlarged(picture: Image.Image) -> Image.Image:
    """Returns a small picture in several times its size, so that one sees it without zooming."""
    times = -(-SEEN // max(picture.size))
    size = (times * picture.width, times * picture.height)
    return picture if times == 1 else picture.resize(size, Image.Resampling.NEAREST)


def with_legend(picture: Image.Image, labels: np.ndarray, classes: Classes) -> Image.Image:
    """Returns a picture above the colours and names of the classes in its labels (H, W).

    A small picture is enlarged. The text is larger for larger pictures, so that it is readable when
    they are scaled to a screen.
    """
    picture = enlarged(picture)
    found = np.flatnonzero(np.bincount(labels.ravel())).tolist()  # np.unique would sort
    shown = [k for k in found if k != classes.ignore_index]
    return above(picture, legend_of(classes, picture.width, shown)) if shown else picture


def legend_of(classes: Classes, width: int, shown: Sequence[int]) -> Image.Image:
    """Returns the legend for a picture of a width: the text of a larger picture is larger."""
    return legend(classes, width, shown, max(TEXT, width // 64))


def above(picture: Image.Image, key: Image.Image) -> Image.Image:
    """Returns a picture above its legend."""
    image = Image.new("RGB", (max(picture.width, key.width), picture.height + key.height), "white")
    image.paste(picture, (0, 0))
    image.paste(key, (0, picture.height))
    return image


def legend(
    classes: Classes, width: int, shown: Sequence[int] | None = None, text: int = TEXT
) -> Image.Image:
    """Returns a picture with a box of colour and a name for each class.

    Args:
        classes: Names and colours of the classes.
        width: Width in pixels; greater if a name does not fit into it.
        shown: Indices of the classes, by default all.
        text: Size of the text in pixels.
    """
    shown = range(len(classes)) if shown is None else shown
    gap, box, row = text // 2, text + 2, text * 26 // 16
    names = [_name(classes.names[k], text, row) for k in shown]
    column = max(name.width for name in names) + box + 2 * gap
    width = max(width, column)
    columns = width // column
    rows = -(-len(shown) // columns)
    image = Image.new("RGB", (width, rows * row + gap), "white")
    draw, colors = ImageDraw.Draw(image), classes.shown_colors
    for position, (k, name) in enumerate(zip(shown, names, strict=True)):
        x, y = position % columns * column + gap, position // columns * row + gap
        draw.rectangle((x, y, x + box, y + text), colors[k], "black")
        image.paste(name, (x + box + gap, y + text // 2 - row // 2))
    return image


@lru_cache(1024)
def _name(name: str, text: int, height: int) -> Image.Image:
    """Returns a name in the middle of a row of the legend, followed by a gap.

    It is kept for the next image, as letters take longer to draw than all else of an overlay.
    """
    font = font_of(name, text)
    image = Image.new("RGB", (int(font.getlength(name)) + text // 2, height), "white")
    ImageDraw.Draw(image).text((0, height // 2), name, "black", font, anchor="lm")
    return image


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Returns a picture in the largest size that fits into a width and height."""
    ratio = min(wanted / own for wanted, own in zip(size, picture.size, strict=True))
    width, height = (max(1, round(ratio * length)) for length in picture.size)
    method = Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.NEAREST
    return picture.resize((width, height), method)


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Returns pictures side by side."""
    width = sum(picture.width for picture in pictures) + GAP // 2 * (len(pictures) - 1)
    image = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    x = 0
    for picture in pictures:
        image.paste(picture, (x, 0))
        x += picture.width + GAP // 2
    return image


def contact_sheet(
    pictures: Sequence[tuple[str, Image.Image]],
    classes: Classes,
    shown: Sequence[int],
    columns: int,
    cell: tuple[int, int],
) -> Image.Image:
    """Returns pictures in rows, each above its name, with one legend at the bottom.

    Args:
        pictures: Names and pictures.
        classes: Names and colours of the classes.
        shown: Indices of the classes in the legend.
        columns: Greatest number of pictures in a row.
        cell: Width and height in pixels that each picture has; a smaller one is in the middle.
    """
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = cell[0] + GAP, cell[1] + TEXT + 2 * GAP
    image = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(image)
    for position, (name, picture) in enumerate(pictures):
        x, y = position % columns * width + GAP, position // columns * height + GAP
        left, top = ((wanted - own) // 2 for wanted, own in zip(cell, picture.size, strict=True))
        image.paste(picture, (x + left, y + top))
        middle = (x + cell[0] // 2, y + cell[1] + (TEXT + GAP) // 2)
        font = font_of(name, TEXT)
        draw.text(middle, shortened(name, font, cell[0]), "black", font, anchor="mm")
    return above(image, legend(classes, image.width, shown)) if shown else image


def shortened(text: str, font: Font, width: int) -> str:
    """Returns the end of a text that fits into a width, after an ellipsis if it is cut."""
    cut = text
    while font.getlength(cut) > width and len(cut) > 1:
        text = text[1:]
        cut = f"…{text}"
    return cut


def heat_map(values: np.ndarray) -> Image.Image:
    """Returns values from 0 to 1 (H, W) as a picture, from dark blue to yellow; NaN is black."""
    anchors = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(values, anchors, channel) for channel in zip(*RAMP, strict=True)]
    return Image.fromarray(np.nan_to_num(np.stack(channels, axis=-1).round()).astype(np.uint8))


def scale(width: int, title: str) -> Image.Image:
    """Returns the colours of the values from 0 to 1 above their numbers and a title.

    The text is larger for larger pictures.

    Args:
        width: Width in pixels, of a picture above it; greater if the title does not fit.
        title: What the values are.
    """
    text = max(TEXT, width // 64)
    font = font_of(title, text)
    gap = text // 2
    width = max(width, SCALE, int(font.getlength(title)) + 2 * gap)
    image = Image.new("RGB", (width, 3 * text + 5 * gap), "white")
    image.paste(heat_map(np.tile(np.linspace(0, 1, width - 2 * gap), (text, 1))), (gap, gap))
    draw = ImageDraw.Draw(image)
    for number, anchor in ((0.0, "lt"), (0.5, "mt"), (1.0, "rt")):
        x = gap + round(number * (width - 2 * gap))
        draw.text((x, text + 2 * gap), f"{number:g}", "black", font, anchor=anchor)
    draw.text((gap, 2 * text + 3 * gap), title, "black", font, anchor="lt")
    return image


def sheet(columns: Mapping[str, Sequence[Image.Image]], classes: Classes) -> Image.Image:
    """Returns a table of pictures under their columns' titles, with a legend at the bottom.

    Args:
        columns: Pictures by the title of their column; each row is one sample.
        classes: Names and colours of the classes.
    """
    widths = [max(picture.width for picture in pictures) for pictures in columns.values()]
    heights = [
        max(picture.height for picture in row) for row in zip(*columns.values(), strict=True)
    ]
    key = legend(classes, sum(widths) + GAP * (len(widths) + 1))
    width = key.width
    image = Image.new("RGB", (width, 30 + sum(heights) + GAP * len(heights) + key.height), "white")
    draw = ImageDraw.Draw(image)
    x = GAP
    for (title, pictures), column_width in zip(columns.items(), widths, strict=True):
        draw.text((x, 6), title, "black", font_of(title, 18))
        y = 30
        for picture, height in zip(pictures, heights, strict=True):
            image.paste(picture, (x, y))
            y += height + GAP
        x += column_width + GAP
    image.paste(key, (0, image.height - key.height))
    return image
