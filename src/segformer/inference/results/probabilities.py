"""Class probabilities, and how sure the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from segformer.data.complete import complete
from segformer.data.families.opened import Window
from segformer.inference.pictures import above, heat_map, scale
from segformer.inference.results.base import Prediction, Result, halved
from segformer.inference.results.pictures import save_png

WritePart = Callable[[Window, np.ndarray, Tensor], None]  # labels (h, w), logits (K, h, w)


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
    def in_parts(self, path: Path, shape: tuple[int, int, int]) -> Iterator[WritePart]:
        """A function that writes the probabilities of a window into the file (K, H, W)."""
        with complete(path) as partial:
            out = np.lib.format.open_memmap(partial, "w+", np.float16, shape)

            def write(window: Window, labels: np.ndarray, logits: Tensor) -> None:
                out[:, *window.slices] = halved(logits.softmax(0).numpy(), labels)

            yield write
            out.flush()


class Confidence(Result):
    """``NAME_confidence.png``: 255 times the largest probability, 8-bit grey, of the image's size.

    For programs; :class:`Heatmap` is for eyes.
    """

    name = "confidence"
    ending = "_confidence.png"
    needs_probabilities = True

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the confidence map."""
        values = np.rint(255 * prediction.confidence.astype(np.float32)).astype(np.uint8)
        save_png(Image.fromarray(values), path)


class Heatmap(Result):
    """``NAME_heatmap.png``: the largest probability in colours, dark where it is low, with a scale.

    For eyes; :class:`Confidence` has the values.
    """

    name = "heatmap"
    ending = "_heatmap.png"
    needs_probabilities = True

    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the picture."""
        picture = heat_map(prediction.confidence.astype(np.float32))
        save_png(above(picture, scale(picture.width, "largest class probability")), path)
