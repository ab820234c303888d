"""Many overlays in one picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segformer.data.classes import Classes
from segformer.inference.pictures import GAP, TEXT, above, legend, overlay
from segformer.inference.results.base import Entry, Prediction, Summary
from segformer.inference.results.pictures import save_png

CELL = (320, 240)  # width and height in pixels of an image on the sheet
COLUMNS = 4
LINE = TEXT + GAP  # pixels, of a name


@dataclass(frozen=True)
class ContactSheet(Summary):
    """``contact_sheet.png``: overlays of images of a run, with their names and one legend.

    Args:
        limit: Greatest number of images; of more, so many are chosen at equal distances.
    """

    limit: int = 24
    name: ClassVar[str] = "contact-sheet"
    file: ClassVar[str] = "contact_sheet.png"

    def chosen(self, names: Sequence[str]) -> Sequence[str]:
        """Returns the images on the sheet, of all images of a run."""
        count = min(self.limit, len(names))
        return [names[i * len(names) // count] for i in range(count)]

    def entry(self, prediction: Prediction) -> Entry:
        """Returns the overlay in the size of the sheet, and the classes that occur."""
        labels, num = prediction.labels, len(prediction.classes)
        picture = overlay(prediction.image, labels, prediction.classes)
        ratio = min(wanted / own for wanted, own in zip(CELL, picture.size, strict=True))
        size = [max(1, round(ratio * length)) for length in picture.size]
        method = Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.NEAREST
        data = io.BytesIO()
        picture.resize((size[0], size[1]), method).save(data, "JPEG", quality=92)
        return {
            "file": prediction.name,
            "classes": np.unique(labels[labels < num]).tolist(),
            "jpeg": base64.b64encode(data.getvalue()).decode(),
        }

    def write(self, path: Path, entries: Mapping[str, Entry], classes: Classes) -> None:
        """Draws the sheet; nothing if there are no images."""
        if not entries:
            return
        columns = min(COLUMNS, len(entries))
        rows = -(-len(entries) // columns)
        width, height = CELL[0] + GAP, CELL[1] + LINE + GAP
        sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
        for position, entry in enumerate(entries.values()):
            x, y = position % columns * width + GAP, position // columns * height + GAP
            _draw(sheet, x, y, entry)
        shown = sorted({k for entry in entries.values() for k in entry["classes"]})
        if shown:
            sheet = above(sheet, legend(classes, sheet.width, shown))
        save_png(sheet, path)


def _draw(sheet: Image.Image, x: int, y: int, entry: Entry) -> None:
    """Draws an image and its name into its cell, whose corner is (x, y)."""
    with Image.open(io.BytesIO(base64.b64decode(entry["jpeg"]))) as picture:
        left, top = ((cell - own) // 2 for cell, own in zip(CELL, picture.size, strict=True))
        sheet.paste(picture, (x + left, y + top))
    font = ImageFont.load_default(TEXT)
    text = fitted(entry["file"], font, CELL[0])
    middle = (x + CELL[0] // 2, y + CELL[1] + LINE // 2)
    ImageDraw.Draw(sheet).text(middle, text, "black", font, anchor="mm")


def fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Returns the end of a text that fits into a width, after an ellipsis if it is cut."""
    cut = text
    while font.getlength(cut) > width and len(cut) > 1:
        text = text[1:]
        cut = f"…{text}"
    return cut
