"""Scores of each image, and whether the difference of two models is more than chance.

Two mIoUs of one data set differ by chance, too: with other images they would be others. The paired
bootstrap (Efron, 1979) draws images with replacement, the same ones for both models, and takes the
mIoU of the summed confusion matrices of each draw. Of all differences, the interval holds the
middle 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segformer.data.classes import Classes
from segformer.evaluation.metrics import Scores

FIRST_COLUMNS = ("image", "labelled pixels", "mIoU", "boundary mIoU", "pixel accuracy")
SAMPLES_AT_ONCE = 500  # of a bootstrap, to bound its memory


@dataclass(frozen=True)
class ImageScores:
    """What was counted in an image.

    Args:
        name: Name of the image.
        confusion: Number of pixels (K, K): rows are labels, columns are predictions.
        boundary: Pixels in the intersections and the unions of boundaries (2, K), from
            :func:`~segformer.evaluation.boundaries.boundary_pixels`.
    """

    name: str
    confusion: Tensor
    boundary: Tensor

    @property
    def scores(self) -> Scores:
        """The scores of this image alone."""
        return Scores.of(self.confusion)

    @property
    def boundary_iou(self) -> Tensor:
        """Boundary IoU of each class (K,); NaN for classes that are in neither map."""
        intersection, union = self.boundary.double()
        return intersection / union


def table(images: Iterable[ImageScores], classes: Classes) -> Iterator[list[str]]:
    """Yields the cells of a table: its header, then a row for each image.

    The scores are from 0 to 1. The cell of a class that is in neither map of an image is empty.
    """
    for number, image in enumerate(images):
        scores = image.scores
        if number == 0:
            names = scores.names(classes)
            of_classes = [f"{what} {name}" for what in ("IoU", "boundary IoU") for name in names]
            yield [*FIRST_COLUMNS, *of_classes]
        boundary = image.boundary_iou
        means = (scores.miou, float(boundary.nanmean()), scores.pixel_accuracy)
        values = [*means, *scores.iou, *boundary.tolist()]
        cells = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
        yield [image.name, str(int(image.confusion.sum())), *cells]


@dataclass(frozen=True)
class Difference:
    """A score of two models, and the bootstrap interval of its difference.

    Args:
        first: Score of the first model, from 0 to 1.
        second: Score of the second model.
        low: Lower end of the interval of ``first - second``.
        high: Upper end of the interval.
    """

    first: float
    second: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """How much higher the score of the first model is."""
        return self.first - self.second


@dataclass(frozen=True)
class Comparison:
    """The difference of two models on the same images.

    Args:
        miou: Of the mean of the classes' IoU.
        iou: Of each class.
    """

    miou: Difference
    iou: tuple[Difference, ...]

    def rows(self, names: Sequence[str]) -> Iterator[tuple[str, Difference]]:
        """Yields the difference of the mean, and of each class, with their names."""
        yield "mIoU", self.miou
        yield from zip(names, self.iou, strict=True)


def paired_bootstrap(
    first: Tensor, second: Tensor, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Comparison:
    """Returns the percentile intervals of the differences of two models on the same images.

    A class that is in no map of a draw is left out of that draw's mean.

    Args:
        first: Confusion matrices of the first model (N, K, K): rows are labels, columns are
            predictions.
        second: Those of the second model, for the same images.
        samples: Number of draws.
        seed: Random seed of the draws.
        level: Share of the draws in the interval.

    Raises:
        ValueError: If the two have other shapes, or there are fewer than two images.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"confusion matrices of {tuple(first.shape)} and {tuple(second.shape)}; both models "
            "must have labelled the same images, at least two"
        )
    counts = [intersections_and_unions(confusions) for confusions in (first, second)]
    drawn = torch.cat([_ious(of_draws, counts) for of_draws in _draws(len(first), samples, seed)])
    measured = _ious(torch.ones(1, len(first), dtype=torch.float64), counts)[0]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    intervals = (drawn[:, 0] - drawn[:, 1]).nanquantile(ends, dim=0)
    miou, *iou = (Difference(*values) for values in torch.cat([measured, intervals]).T.tolist())
    return Comparison(miou, tuple(iou))


def intersections_and_unions(confusions: Tensor) -> Tensor:
    """Returns the pixels in the intersections and the unions of each class (N, 2, K)."""
    confusions = confusions.double()
    correct = confusions.diagonal(dim1=1, dim2=2)
    return torch.stack([correct, confusions.sum(1) + confusions.sum(2) - correct], dim=1)


def _draws(images: int, samples: int, seed: int) -> Iterator[Tensor]:
    """Yields how often each image is in each draw, float64 (at most 500, N)."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, samples, SAMPLES_AT_ONCE):
        shape = min(SAMPLES_AT_ONCE, samples - start), images
        drawn = torch.randint(images, shape, generator=generator)
        ones = torch.ones(shape, dtype=torch.float64)
        yield torch.zeros_like(ones).scatter_add_(1, drawn, ones)


def _ious(draws: Tensor, counts: Sequence[Tensor]) -> Tensor:
    """Returns mIoU and the classes' IoU of both models in each draw (S, 2, 1 + K).

    Args:
        draws: How often each image is in each draw (S, N).
        counts: Intersections and unions (N, 2, K) of each model.
    """
    sums = torch.stack([torch.einsum("sn,nck->csk", draws, count) for count in counts], dim=2)
    iou = sums[0] / sums[1]  # (S, 2, K)
    return torch.cat([iou.nanmean(-1, keepdim=True), iou], dim=-1)


def lost_most(first: Sequence[ImageScores], second: Sequence[ImageScores]) -> list[int]:
    """Returns the indices of the images whose mIoU is lower by the first model, most lost first.

    Args:
        first: Scores of the first model.
        second: Scores of the second model, for the same images.
    """
    losses = [b.scores.miou - a.scores.miou for a, b in zip(first, second, strict=True)]
    worse = [index for index, loss in enumerate(losses) if loss > 0]
    return sorted(worse, key=lambda index: -losses[index])
