"""Class probabilities, and how sure the model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from segformer.data.complete import complete
from segformer.data.families.opened import Window
from segformer.inference.large import Also, LargeImage
from segformer.inference.pictures import above, enlarged, heat_map, scale
from segformer.inference.results.base import Prediction, Result, halved, largest
from segformer.inference.results.pictures import save_png

NO_DATA = 0  # of confidence; the largest of K probabilities is at least 1 / K


class Probabilities(Result):
    """``NAME_probabilities.npy``: float16 (K, H, W), with the label map as their arg-max."""

    name = "probabilities"
    ending = "_probabilities.npy"
    needs_probabilities = True
    for_large = True

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the probabilities."""
        with complete(path) as partial, partial.open("wb") as file:
            np.save(file, np.asarray(prediction.probabilities))

    @contextmanager
    def of_large(self, image: LargeImage, path: Path) -> Iterator[Also]:
        """A function that writes the probabilities of a window into the file (K, H, W)."""
        shape = (len(image.classes), *image.size)
        with complete(path) as partial:
            out = np.lib.format.open_memmap(partial, "w+", np.float16, shape)

            def write(window: Window, labels: np.ndarray, logits: Tensor) -> None:
                out[:, *window.slices] = halved(logits.softmax(0).numpy(), labels)

            yield write
            out.flush()


class Confidence(Result):
    """``NAME_confidence.png``: 255 times the largest probability, 8-bit grey, of the image's size.

    It is 0 where there is no data. For a large image it is a file of the label map's kind. For
    programs; :class:`Heatmap` is for eyes.
    """

    name = "confidence"
    ending = "_confidence.png"
    needs_probabilities = True
    for_large = True

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the confidence map."""
        values = _grey(prediction.confidence)
        values[prediction.labels == prediction.classes.ignore_index] = NO_DATA
        save_png(Image.fromarray(values), path)

    def path_of_large(self, labels: Path) -> Path:
        """Returns the path for an image that is labelled in windows: a file of its type."""
        return labels.with_name(f"{labels.stem}_{self.name}{labels.suffix}")

    @contextmanager
    def of_large(self, image: LargeImage, path: Path) -> Iterator[Also]:
        """A function that writes the confidence of a window into the file."""
        with image.writing(path, np.uint8, NO_DATA) as write:

            def take(window: Window, labels: np.ndarray, logits: Tensor) -> None:
                values = _grey(largest(logits))
                values[labels == image.classes.ignore_index] = NO_DATA
                write(window, values)

            yield take


def _grey(confidence: np.ndarray) -> np.ndarray:
    """Returns values from 0 to 1 as uint8."""
    grey: np.ndarray = np.rint(255 * confidence.astype(np.float32)).astype(np.uint8)
    return grey


class Heatmap(Result):
    """``NAME_heatmap.png``: the largest probability in colours, dark where it is low, with a scale.

    Pixels without data are black.
    For eyes; :class:`Confidence` has the values.
    """

    name = "heatmap"
    ending = "_heatmap.png"
    needs_probabilities = True
    for_large = True

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the picture."""
        values = prediction.confidence.astype(np.float32)
        values[prediction.labels == prediction.classes.ignore_index] = np.nan
        _save_heat_map(values, path)

    @contextmanager
    def of_large(self, image: LargeImage, path: Path) -> Iterator[Also]:
        """A function that keeps the confidence of some pixels; the picture is drawn at the end."""
        confidence = np.zeros(image.coarse.size, np.float32)

        def take(window: Window, labels: np.ndarray, logits: Tensor) -> None:
            inside, (rows, columns) = image.coarse.pixels(window)
            values = largest(logits[:, rows, columns])
            values[labels[rows, columns] == image.classes.ignore_index] = np.nan
            confidence[inside] = values

        yield take
        _save_heat_map(confidence, path)


def _save_heat_map(confidence: np.ndarray, path: Path) -> None:
    picture = enlarged(heat_map(confidence))
    save_png(above(picture, scale(picture.width, "largest class probability")), path)
