"""Label maps that a model doubts: regions where it is sure, and the label says another class.

The idea is that of confident learning (Northcutt et al., arXiv 1911.00068): a model that is sure of
another class is evidence against a label. Here connected regions are weighed in place of single
pixels, because annotators err in regions, while models err along boundaries and in certain pairs of
classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer.data.components import components

WINDOW = 1 / 40  # side of the neighbourhood, as a share of the image's shorter side
SURE = 3.0  # least log ratio of the two probabilities that counts: a ratio of 20
LEAST_PROBABILITY = 1e-6  # so that no pixel counts for more than log(10⁶)


@dataclass(frozen=True)
class Region:
    """Connected pixels of one class in the label map and of another one in the prediction.

    Args:
        labelled: Class in the label map.
        predicted: Class that the model predicts.
        box: Left column, top row, width and height of the region.
        pixels: Number of pixels.
        evidence: Sum of ``log(p(predicted) / p(labelled)) - 3`` over the pixels where it is
            positive, each weighted by :func:`inwardness`.
        confidence: Mean probability of the predicted class.
    """

    labelled: int
    predicted: int
    box: tuple[int, int, int, int]
    pixels: int
    evidence: float
    confidence: float


def inwardness(wrong: Tensor, window: int) -> Tensor:
    """Returns how far inside of a wrong area each pixel lies, (H, W) from 0 to 1.

    It is 0 where at most half of the neighbourhood is wrong, 1 where all of it is, and linear
    between. Imprecise boundaries, narrower than half a neighbourhood, are 0 throughout.

    Args:
        wrong: Whether the label and the prediction differ, bool (H, W).
        window: Odd side of the neighbourhood, a square, in pixels.
    """
    values = wrong[None].float()
    share = F.avg_pool2d(values, window, 1, window // 2, count_include_pad=False)[0]
    return (2 * share - 1).clamp_min(0) * wrong


def regions(probabilities: Tensor, label: Tensor, window: int | None = None) -> list[Region]:
    """Returns the regions where the prediction and the label differ.

    Args:
        probabilities: Class probabilities (K, H, W).
        label: Class indices (H, W); values from K on are ignored.
        window: Side of the neighbourhood of :func:`inwardness`, odd; by default a fortieth of the
            image's shorter side.
    """
    classes = len(probabilities)
    label = label.long().to(probabilities.device)
    is_labelled = label < classes
    known = label.where(is_labelled, 0)
    confidence, predicted = probabilities.max(0)
    of_label = probabilities.gather(0, known[None])[0]
    ratio = confidence.clamp_min(LEAST_PROBABILITY) / of_label.clamp_min(LEAST_PROBABILITY)
    wrong = is_labelled & (predicted != known)
    pairs = (known * classes + predicted).where(wrong, -1).cpu()
    weight = inwardness(wrong, window or window_of(label.shape))
    found = components(pairs)
    evidence = (ratio.log() - SURE).clamp_min(0) * weight
    return _measured(found, pairs, evidence.cpu(), confidence.cpu(), classes)


def window_of(size: Sequence[int]) -> int:
    """Returns the side of the neighbourhood for images of a height and width; it is odd."""
    return max(1, round(WINDOW * min(size) / 2)) * 2 + 1


def _measured(
    found: Tensor, pairs: Tensor, evidence: Tensor, confidence: Tensor, classes: int
) -> list[Region]:
    """Returns the regions of a map of components (H, W)."""
    count = int(found.max()) + 1
    rows, columns = (found >= 0).nonzero(as_tuple=True)
    index = found[rows, columns]
    pixels = index.bincount(minlength=count)

    def total(values: Tensor) -> Tensor:
        return index.bincount(values[rows, columns].double(), minlength=count)

    def extreme(values: Tensor, which: str) -> Tensor:
        return values.new_zeros(count).scatter_reduce(0, index, values, which, include_self=False)

    pair = pairs.new_zeros(count).scatter(0, index, pairs[rows, columns])
    left, top = extreme(columns, "amin"), extreme(rows, "amin")
    width, height = extreme(columns, "amax") - left + 1, extreme(rows, "amax") - top + 1
    boxes = map(tuple, torch.stack([left, top, width, height], 1).tolist())
    measures = (
        pair // classes,
        pair % classes,
        pixels,
        total(evidence),
        total(confidence) / pixels,
    )
    return [
        Region(labelled, predicted, box, size, against, sure)
        for box, labelled, predicted, size, against, sure in zip(
            boxes, *(values.tolist() for values in measures), strict=True
        )
    ]


def surprise(confusion: Tensor) -> Tensor:
    """Returns how rarely the model predicts a class for the pixels of another one, (K, K).

    It is ``√(-log(share))``, where the share is that of a data set's pixels of the first class for
    which the second one is predicted. The root keeps a rare pair from outweighing the region.

    Args:
        confusion: Number of pixels (K, K): rows are labels, columns are predictions.
    """
    shares = confusion.double() / confusion.sum(1, keepdim=True)
    return (-shares.log()).clamp_min(0).sqrt()


def doubt(region: Region, surprises: Tensor) -> float:
    """Returns how much a region looks like a fault of the annotation, from 0.

    Args:
        region: The region.
        surprises: :func:`surprise` of the whole data set, (K, K).
    """
    if region.evidence == 0:  # of a pair that may be as rare as never
        return 0.0
    return region.evidence * float(surprises[region.labelled, region.predicted])
