"""Many overlays in one picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from segformer.data.classes import Classes
from segformer.inference.large import LargeImage
from segformer.inference.pictures import contact_sheet, fitted, overlay
from segformer.inference.results.base import Counted, Entry, Prediction, Summary
from segformer.inference.results.pictures import save_png

CELL = (320, 240)  # width and height in pixels of an image on the sheet
COLUMNS = 4


@dataclass(frozen=True)
class ContactSheet(Summary):
    """``contact_sheet.png``: overlays of images of a run, with their names and one legend.

    Args:
        limit: Greatest number of images; of more, so many are chosen at equal distances.
    """

    limit: int = 24
    name: ClassVar[str] = "contact-sheet"
    file: ClassVar[str] = "contact_sheet.png"
    for_large: ClassVar[bool] = True

    def chosen(self, names: Sequence[str]) -> Sequence[str]:
        """Returns the images on the sheet, of all images of a run."""
        count = min(self.limit, len(names))
        return [names[i * len(names) // count] for i in range(count)]

    def entry(self, prediction: Prediction) -> Entry:
        """Returns the overlay in the size of the sheet, and the classes that occur."""
        labels, num = prediction.labels, len(prediction.classes)
        picture = overlay(prediction.image, labels, prediction.classes)
        data = io.BytesIO()
        fitted(picture, CELL).save(data, "JPEG", quality=92)
        return {
            "file": prediction.name,
            "classes": np.unique(labels[labels < num]).tolist(),
            "jpeg": base64.b64encode(data.getvalue()).decode(),
        }

    def entry_of_large(self, image: LargeImage, counted: Counted) -> Entry:
        """Returns the overlay of an overview, and the classes that occur in it."""
        return self.entry(Prediction(counted.name, *image.overview, counted.classes))

    def write(self, path: Path, entries: Mapping[str, Entry], classes: Classes) -> None:
        """Draws the sheet; nothing if there are no images."""
        if not entries:
            return
        chosen = [entries[name] for name in self.chosen(tuple(entries))]  # earlier runs add some
        shown = sorted({k for entry in chosen for k in entry["classes"]})
        pictures = [(entry["file"], _picture(entry)) for entry in chosen]
        save_png(contact_sheet(pictures, classes, shown, COLUMNS, CELL), path)


def _picture(entry: Entry) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(entry["jpeg"])))
