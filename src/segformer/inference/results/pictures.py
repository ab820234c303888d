"""Label maps, overlays, and one mask a class."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segformer.data.classes import Classes
from segformer.data.complete import complete
from segformer.data.images import ORIENTATION
from segformer.inference.large import Also, LargeImage
from segformer.inference.pictures import indexed, overlay, with_legend
from segformer.inference.results.base import Prediction, Result, skip

JPEG_QUALITY = 92
LONGEST = 65_500  # pixels, of a side of a JPEG by libjpeg


def save_png(picture: Image.Image, path: Path, **options: Any) -> None:
    """Writes a PNG whole, or not at all; the options are those of Pillow."""
    with complete(path) as partial:
        picture.save(partial, "PNG", **options)


class Labels(Result):
    """``NAME.png``: the class indices, with a palette; or a file of the kind of a large image.

    That of a large image is written while it is labelled, as other results are made of it.
    """

    name = "labels"
    ending = ".png"
    for_large = True

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the label map, which says that it is upright: its photo may be turned by EXIF."""
        upright = Image.Exif()
        upright[ORIENTATION] = 1
        save_png(indexed(prediction.labels, prediction.classes), path, exif=upright)

    def path_of_large(self, labels: Path) -> Path:
        """Returns the path of the label map."""
        return labels


class Overlay(Result):
    """``NAME_overlay.jpg``: the image under the classes' colours, with a legend.

    For eyes: a small image is enlarged, and of a large one an overview is drawn.
    """

    name = "overlay"
    ending = "_overlay.jpg"
    for_large = True

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

    @contextmanager
    def of_large(self, image: LargeImage, path: Path) -> Iterator[Also]:
        """Writes the overlay of an overview, which has at most 2000 pixels a side."""
        yield skip
        self.write(Prediction(path.name, *image.overview, image.classes), path)


class OverlayPng(Overlay):
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
    """``NAME_masks/K_CLASS.png``: for each class that occurs, 255 where it is and 0 elsewhere.

    For a large image they are files of the label map's kind.
    """

    name = "masks"
    ending = "_masks"
    for_large = True

    def check_replaceable(self, path: Path) -> None:
        """Raises FileExistsError if a folder holds more than masks."""
        check_only(path, r"\d+_.+\.(png|tiff?|npy)")

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the folder of masks."""
        classes, labels = prediction.classes, prediction.labels
        with _whole_folder(path) as folder:
            for k in np.unique(labels[labels < len(classes)]).tolist():
                Image.fromarray(_mask(labels, k)).save(folder / f"{_file_name(classes, k)}.png")

    @contextmanager
    def of_large(self, image: LargeImage, path: Path) -> Iterator[Also]:
        """Writes the folder of masks, each part by part."""
        yield skip
        with _whole_folder(path) as folder:
            for k in _occurring(image):
                name = f"{_file_name(image.classes, k)}{image.labels.suffix}"
                with image.writing(folder / name, np.uint8) as write:
                    for window, labels in image.label_parts():
                        write(window, _mask(labels, k))


def _mask(labels: np.ndarray, k: int) -> np.ndarray:
    return np.where(labels == k, 255, 0).astype(np.uint8)


def _occurring(image: LargeImage) -> list[int]:
    """Returns the classes in the label map of a large image."""
    found = {k for _, labels in image.label_parts() for k in np.unique(labels).tolist()}
    return sorted(k for k in found if k < len(image.classes))


def _file_name(classes: Classes, k: int) -> str:
    digits = len(str(len(classes) - 1))
    return f"{k:0{digits}}_{_safe(classes.names[k])}"


def check_only(folder: Path, name: str) -> None:
    """Checks that a folder to replace has no other files than those of an earlier run.

    Args:
        folder: The folder, if there is one.
        name: A regular expression of the names of these.

    Raises:
        FileExistsError: If it has.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if not re.fullmatch(name, path.name):
            raise FileExistsError(
                f"{str(folder)!r} would be replaced and holds {path.name!r}; choose another folder "
                "with --out"
            )


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into; it becomes the folder at the path, in place of an earlier one."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        folder = Path(temporary, path.name)
        folder.mkdir()
        yield folder
        if path.exists():
            shutil.rmtree(path)
        folder.rename(path)


def _safe(name: str) -> str:
    """Returns a class name as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "class"
