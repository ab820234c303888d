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

JPEG_QUALITY = 92
LONGEST = 65_500  # pixels, of a side of a JPEG by libjpeg


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
    """``NAME_overlay.jpg``: the image under the classes' colours, with a legend."""

    name = "overlay"
    ending = "_overlay.jpg"

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the overlay; raises ValueError if it is too large for a JPEG."""
        picture = _overlaid(prediction)
        if max(picture.size) > LONGEST:
            raise ValueError(
                f"the overlay of {prediction.name!r} has {picture.width}×{picture.height} pixels, "
                f"and a JPEG at most {LONGEST} a side; write overlay-png in place of overlay"
            )
        with complete(path) as partial:  # full-size chroma, for the edges of areas and letters
            picture.save(partial, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")


class OverlayPng(Result):
    """``NAME_overlay.png``: the overlay without loss, a larger file that takes longer."""

    name = "overlay-png"
    ending = "_overlay.png"

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the overlay."""
        save_png(_overlaid(prediction), path)


def _overlaid(prediction: Prediction) -> Image.Image:
    p = prediction
    return with_legend(overlay(p.image, p.labels, p.classes), p.labels, p.classes)


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
