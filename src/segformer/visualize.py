"""Pictures of segmentations: indexed label maps, overlays, and sheets of samples with a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segformer.data.classes import Classes
from segformer.data.datasets import IGNORE_INDEX

GAP = 8  # pixels between the pictures of a sheet
IGNORED = (0, 0, 0)


def indexed(labels: np.ndarray, classes: Classes) -> Image.Image:
    """Labels (H, W) as a palette image: the file's pixel values are the class indices, its colours the classes'."""
    if len(classes) > IGNORE_INDEX:
        raise ValueError(f"{len(classes)} classes do not fit into an 8-bit picture, which holds {IGNORE_INDEX} and the ignored value")
    image = Image.fromarray(labels.astype(np.uint8), mode=None)
    palette = [*classes.colors, *[IGNORED] * (256 - len(classes))]
    image.putpalette([channel for color in palette for channel in color])
    return image


def overlay(image: Image.Image, labels: np.ndarray, classes: Classes, alpha: float = 0.55) -> Image.Image:
    """The colours of the labels (H, W), at opacity ``alpha``, over an image of the same size; ignored pixels show the image alone."""
    colors = indexed(labels, classes).convert("RGB")
    opacity = Image.fromarray(np.where(labels == IGNORE_INDEX, 0, round(255 * alpha)).astype(np.uint8))
    return Image.composite(colors, image.convert("RGB"), opacity)


def legend(classes: Classes, width: int, shown: Sequence[int] | None = None) -> Image.Image:
    """A box of colour and a name for each class (of ``shown``, by default all), in as many rows as ``width`` pixels need."""
    font = ImageFont.load_default(16)
    shown = range(len(classes)) if shown is None else shown
    column = max(int(font.getlength(classes.names[k])) for k in shown) + 40
    columns = max(1, width // column)
    rows = -(-len(shown) // columns)
    image = Image.new("RGB", (width, rows * 26 + GAP), "white")
    draw = ImageDraw.Draw(image)
    for place, k in enumerate(shown):
        x, y = place % columns * column + GAP, place // columns * 26 + GAP
        draw.rectangle((x, y, x + 18, y + 16), classes.colors[k], "black")
        draw.text((x + 24, y + 8), classes.names[k], "black", font, anchor="lm")
    return image


def sheet(columns: Mapping[str, Sequence[Image.Image]], classes: Classes) -> Image.Image:
    """Pictures side by side under their column's title, a row a sample, the legend below."""
    font = ImageFont.load_default(18)
    widths = [max(picture.width for picture in pictures) for pictures in columns.values()]
    heights = [max(picture.height for picture in row) for row in zip(*columns.values(), strict=True)]
    width = sum(widths) + GAP * (len(widths) + 1)
    key = legend(classes, width)
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
