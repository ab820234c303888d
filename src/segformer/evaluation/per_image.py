"""Scores of each image, and whether the difference of two models is more than chance.

Two mIoUs of one data set differ by chance, too: with other images they would be others. The paired
bootstrap (Efron, 1979) draws images with replacement, the same ones for both models, and takes the
mIoU of the summed pixel counts of each draw. Of all differences, the interval holds the
middle 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segformer.data.classes import Classes

FIRST_COLUMNS = ("image", "labelled pixels", "mIoU", "boundary mIoU", "pixel accuracy")
SAMPLES_AT_ONCE = 500  # of a bootstrap, to bound its memory


@dataclass(frozen=True)
class ImageScores:
    """What was counted in an image.

    Args:
        name: Name of the image.
        counts: Correct, labelled and predicted pixels of each class (3, K), from
            :func:`~segformer.evaluation.metrics.counts_of`.
        boundary: Pixels in the intersections and the unions of boundaries (2, K), from
            :func:`~segformer.evaluation.boundaries.boundary_pixels`.
    """

    name: str
    counts: Tensor
    boundary: Tensor

    @property
    def iou(self) -> Tensor:
        """IoU of each class (K,); NaN for classes that are in neither map."""
        intersection, union = intersections_and_unions(self.counts)
        return intersection / union

    @property
    def miou(self) -> float:
        """Mean of the IoU of the classes that are in one of the maps."""
        return float(self.iou.nanmean())

    @property
    def labelled(self) -> int:
        """Number of labelled pixels."""
        return int(self.counts[1].sum())

    @property
    def pixel_accuracy(self) -> float:
        """Share of correct pixels in the labelled ones; NaN if there are none."""
        correct, labelled, _ = self.counts.double().sum(1)
        return float(correct / labelled)

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
        if number == 0:
            names = classes.of_labels().names
            of_classes = [f"{what} {name}" for what in ("IoU", "boundary IoU") for name in names]
            yield [*FIRST_COLUMNS, *of_classes]
        boundary = image.boundary_iou
        means = (image.miou, float(boundary.nanmean()), image.pixel_accuracy)
        values = [*means, *image.iou.tolist(), *boundary.tolist()]
        yield [image.name, str(image.labelled), *map(cell, values)]


def cell(score: float) -> str:
    """Returns the cell of a score in a table, empty for NaN."""
    return "" if math.isnan(score) else f"{score:.6f}"


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
        first: Pixels that the first model counts in each image (N, 3, K): correct, labelled and
            predicted ones of each class.
        second: Those of the second model, for the same images.
        samples: Number of draws.
        seed: Random seed of the draws.
        level: Share of the draws in the interval.

    Raises:
        ValueError: If the two have other shapes, or there are fewer than two images.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"pixel counts of {tuple(first.shape)} and {tuple(second.shape)}; both models "
            "must have labelled the same images, at least two"
        )
    counts = [intersections_and_unions(counted) for counted in (first, second)]
    drawn = torch.cat([_ious(of_draws, counts) for of_draws in _draws(len(first), samples, seed)])
    measured = _ious(torch.ones(1, len(first), dtype=torch.float64), counts)[0]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    intervals = (drawn[:, 0] - drawn[:, 1]).nanquantile(ends, dim=0)
    miou, *iou = (Difference(*values) for values in torch.cat([measured, intervals]).T.tolist())
    return Comparison(miou, tuple(iou))


def intersections_and_unions(counts: Tensor) -> Tensor:
    """Returns the pixels in the intersection and the union of each class (…, 2, K), float64.

    Args:
        counts: Correct, labelled and predicted pixels of each class (…, 3, K).
    """
    correct, labelled, predicted = counts.double().unbind(-2)
    return torch.stack([correct, labelled + predicted - correct], dim=-2)


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
    losses = [b.miou - a.miou for a, b in zip(first, second, strict=True)]
    worse = [index for index, loss in enumerate(losses) if loss > 0]
    return sorted(worse, key=lambda index: -losses[index])
