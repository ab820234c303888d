"""Label maps, overlays, and one mask a class."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from segformer.data.complete import complete
from segformer.inference.pictures import indexed, overlay, with_legend
from segformer.inference.results.base import Prediction, Result


def save_png(picture: Image.Image, path: Path) -> None:
    """Writes a PNG whole, or not at all."""
    with complete(path) as partial:
        picture.save(partial, "PNG")


class Labels(Result):
    """``NAME.png``: the class indices, with a palette; or a file of the kind of a large image."""

    name = "labels"
    ending = ".png"
    for_large = True

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the label map."""
        save_png(indexed(prediction.labels, prediction.classes), path)


class Overlay(Result):
    """``NAME_overlay.png``: the image under the classes' colours, with a legend."""

    name = "overlay"
    ending = "_overlay.png"

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the overlay."""
        p = prediction
        picture = overlay(p.image, p.labels, p.classes)
        save_png(with_legend(picture, p.labels, p.classes), path)


class Masks(Result):
    """``NAME_masks/K_CLASS.png``: for each class that occurs, 255 where it is and 0 elsewhere."""

    name = "masks"
    ending = "_masks"

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the folder of masks."""
        names = prediction.classes.names
        digits = len(str(len(names) - 1))
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
            folder = Path(temporary, path.name)
            folder.mkdir()
            for k in np.unique(prediction.labels[prediction.labels < len(names)]).tolist():
                mask = Image.fromarray(np.where(prediction.labels == k, 255, 0).astype(np.uint8))
                mask.save(folder / f"{k:0{digits}}_{_safe(names[k])}.png")
            if path.exists():
                shutil.rmtree(path)
            folder.rename(path)


def _safe(name: str) -> str:
    """Returns a class name as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "class"
