"""How often each training sample is drawn."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from segformer.data.datasets import count_labels
from segformer.train.order import Order

READERS = 8  # threads
LONG = 100  # epochs; an image that is drawn more seldom than that is hardly learned


class Sampling(ABC):
    """A policy that draws training samples.

    Its attributes are its settings: a run is resumed only with the same ones.
    """

    @abstractmethod
    def order(self, dataset: Any) -> Order:
        """Returns what draws the samples of an epoch.

        Args:
            dataset: Samples (image, label map), with ``classes``.
        """


class RareClasses(Sampling):
    """Draws images that hold rare classes more often (DAFormer, arXiv 2111.14887, section 3.3).

    First a class is drawn, with P(c) ∝ exp((1 - f_c) / T), where f_c is the class's share of all
    training pixels (equations 4 and 5), then an image that holds it. An epoch has as many samples
    as there are images; some images occur several times, each time with another augmentation.

    The label maps are read once, when the run starts or is resumed.

    Args:
        temperature: T. The lower it is, the more often the rarest class is drawn.
        min_pixels: Least number of a class's pixels in an image that is drawn for it.

    Raises:
        ValueError: If ``temperature`` is not positive, or ``min_pixels`` is below 1.
    """

    def __init__(self, temperature: float = 0.01, min_pixels: int = 100) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}; give a positive number, such as 0.01")
        if min_pixels < 1:
            raise ValueError(f"min_pixels={min_pixels}; give 1 or more")
        self.temperature, self.min_pixels = temperature, min_pixels

    def order(self, dataset: Any) -> Order:
        """Returns what draws the samples of an epoch; reads all label maps, with a progress bar.

        Raises:
            ValueError: If no image holds ``min_pixels`` of any class.
        """
        counts = class_pixels(dataset)
        holders = [(of_class >= self.min_pixels).nonzero()[:, 0] for of_class in counts.T[:-1]]
        self._warn(dataset.classes.names, holders)
        probabilities = self.probabilities(counts)
        self._warn_of_seldom_images(probabilities, holders, len(counts))

        def draw(generator: torch.Generator) -> Tensor:
            length = len(counts)
            classes = torch.multinomial(probabilities, length, True, generator=generator)
            places = torch.rand(length, generator=generator, dtype=torch.float64)
            return torch.stack(
                [
                    holders[k][int(place * len(holders[k]))]
                    for k, place in zip(classes.tolist(), places.tolist(), strict=True)
                ]
            )

        return draw

    def probabilities(self, counts: Tensor) -> Tensor:
        """Returns the probability (K,) of each class, 0 if no image is drawn for it.

        Args:
            counts: Pixels of each class, and ignored ones, in each image (N, K + 1).
        """
        shares = counts.sum(0)[:-1].double() / counts.sum()
        is_drawn = (counts[:, :-1] >= self.min_pixels).any(0)
        scores = ((1 - shares) / self.temperature).masked_fill(~is_drawn, -torch.inf)
        return scores.softmax(0)

    def _warn_of_seldom_images(
        self, probabilities: Tensor, holders: list[Tensor], length: int
    ) -> None:
        draws = torch.zeros(length, dtype=torch.float64)  # that are expected in an epoch
        for probability, images in zip(probabilities, holders, strict=True):
            draws[images] += length * probability / max(1, len(images))
        seldom = int((draws < 1 / LONG).sum())
        if seldom > length / 100:
            rank_zero_warn(
                f"{seldom} of {length} training images are drawn less than once in {LONG} epochs, "
                f"as they hold no rare class; if they should be, raise "
                f"data.sampling.init_args.temperature, which is {self.temperature:g}"
            )

    def _warn(self, names: tuple[str, ...], holders: list[Tensor]) -> None:
        never = [name for name, images in zip(names, holders, strict=True) if not len(images)]
        if len(never) == len(names):
            raise ValueError(
                f"no training image holds {self.min_pixels} pixels of one class; set "
                "data.sampling.init_args.min_pixels lower"
            )
        if never:
            rank_zero_warn(
                f"no training image holds {self.min_pixels} pixels of {', '.join(never)}: no image "
                "is drawn for them; lower data.sampling.init_args.min_pixels if they are that small"
            )


def class_pixels(dataset: Any) -> Tensor:
    """Returns the number of pixels of each class, and of ignored ones, in each sample (N, K + 1).

    Args:
        dataset: Samples (image, label map (H, W)), with ``classes``. A method ``label``, if there
            is one, returns the label map alone.
    """

    def label(index: int) -> Tensor:
        found: Tensor = dataset.label(index) if hasattr(dataset, "label") else dataset[index][1]
        return found

    def count(index: int) -> np.ndarray:
        return count_labels(label(index), len(dataset.classes))

    length = len(dataset)
    with warnings.catch_warnings(), ThreadPoolExecutor(READERS) as readers:
        # Readers of TIFF silence it too, but all threads share the filters that they set and undo.
        warnings.filterwarnings("ignore", "Dataset has no geotransform")
        counts = readers.map(count, range(length))
        is_shown = getattr(rank_zero_only, "rank", 0) == 0  # by one of several processes
        bar = tqdm(counts, "classes", length, unit="image", disable=not is_shown)
        return torch.from_numpy(np.stack(list(bar)))
