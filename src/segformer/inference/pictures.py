"""Pictures of segmentations: indexed label maps, overlays, and sheets of samples with a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segformer.data.classes import IGNORE_INDEX, Classes
from segformer.data.labels import file_type

GAP = 8  # pixels between the pictures of a sheet
TEXT = 16  # pixels
IGNORED = (0, 0, 0)


def indexed(labels: np.ndarray, classes: Classes) -> Image.Image:
    """Labels (H, W) as a picture whose pixel values are the class indices.

    Up to 255 classes it has a palette of their colours; for more it is grey, of 16 bits.
    """
    image = Image.fromarray(labels.astype(file_type(len(classes))))
    if classes.ignore_index == IGNORE_INDEX:
        palette = [*classes.colors, *[IGNORED] * (256 - len(classes))]
        image.putpalette([channel for color in palette for channel in color])
    return image


def colored(labels: np.ndarray, classes: Classes) -> Image.Image:
    """Labels (H, W) as an RGB picture of the classes' colours; ignored pixels are black."""
    colors = np.zeros((classes.ignore_index + 1, 3), np.uint8)
    colors[: len(classes)] = classes.colors
    return Image.fromarray(colors[labels])


def overlay(
    image: Image.Image, labels: np.ndarray, classes: Classes, alpha: float = 0.55
) -> Image.Image:
    """The colours of the labels (H, W), at opacity ``alpha``, over an image of the same size; ignored pixels show the image alone."""
    is_ignored = labels == classes.ignore_index
    opacity = Image.fromarray(np.where(is_ignored, 0, round(255 * alpha)).astype(np.uint8))
    return Image.composite(colored(labels, classes), image.convert("RGB"), opacity)


def with_legend(picture: Image.Image, labels: np.ndarray, classes: Classes) -> Image.Image:
    """A picture above the colours and names of the classes that occur in its labels (H, W).

    Text grows with the picture: a name is readable where a whole photograph fits a screen.
    """
    shown = [k for k in np.unique(labels).tolist() if k != classes.ignore_index]
    if not shown:
        return picture
    key = legend(classes, picture.width, shown, max(TEXT, picture.width // 64))
    image = Image.new("RGB", (key.width, picture.height + key.height), "white")
    image.paste(picture, (0, 0))
    image.paste(key, (0, picture.height))
    return image


def legend(
    classes: Classes, width: int, shown: Sequence[int] | None = None, text: int = TEXT
) -> Image.Image:
    """A box of colour and a name for each class, in as many rows as ``width`` pixels need.

    Args:
        classes: Names and colours.
        width: Width in pixels; a name that needs more makes it wider.
        shown: Indices of the classes, by default all.
        text: Size of the text in pixels.
    """
    font = ImageFont.load_default(text)
    shown = range(len(classes)) if shown is None else shown
    gap, box, row = text // 2, text + 2, text * 26 // 16
    column = max(int(font.getlength(classes.names[k])) for k in shown) + box + 3 * gap
    width = max(width, column)
    columns = width // column
    rows = -(-len(shown) // columns)
    image = Image.new("RGB", (width, rows * row + gap), "white")
    draw = ImageDraw.Draw(image)
    for place, k in enumerate(shown):
        x, y = place % columns * column + gap, place // columns * row + gap
        draw.rectangle((x, y, x + box, y + text), classes.colors[k], "black")
        draw.text((x + box + gap, y + text // 2), classes.names[k], "black", font, anchor="lm")
    return image


def sheet(columns: Mapping[str, Sequence[Image.Image]], classes: Classes) -> Image.Image:
    """Pictures side by side under their column's title, a row a sample, the legend below."""
    font = ImageFont.load_default(18)
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
        draw.text((x, 6), title, "black", font)
        y = 30
        for picture, height in zip(pictures, heights, strict=True):
            image.paste(picture, (x, y))
            y += height + GAP
        x += column_width + GAP
    image.paste(key, (0, image.height - key.height))
    return image
