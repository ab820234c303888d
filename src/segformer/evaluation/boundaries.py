"""Boundary IoU (Cheng et al., arXiv 2103.16562) of label maps.

The IoU of a large area hardly depends on its boundary. Boundary IoU counts only pixels near it: of
G_d and P_d, the pixels of label and prediction within a distance d of their own contours, it is
``|G_d ∩ P_d| / |G_d ∪ P_d|``. The distance is the paper's, 2 % of the image's diagonal, in a square
neighbourhood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer.evaluation.metrics import check_predictions

WIDTH = 0.02  # of a boundary, as a share of the image's diagonal


def boundary_width(size: Sequence[int]) -> int:
    """Returns the width in pixels of the boundaries in an image of a height and width."""
    return max(1, round(WIDTH * math.hypot(*size)))


def on_boundary(labels: Tensor, width: int) -> Tensor:
    """Returns whether each pixel lies on the boundary of its own area, bool (H, W).

    It does if the square of 2 · width + 1 pixels around it has another label, or reaches out of the
    image. This is the area without its erosion, of the areas of all classes at once.

    Args:
        labels: Whole numbers (H, W), from 0 to 2²⁴.
        width: Width of the boundary in pixels.
    """
    padded = F.pad(labels[None, None].float(), [width] * 4, value=-1)

    def greatest(values: Tensor) -> Tensor:
        of_rows = F.max_pool2d(values, (1, 2 * width + 1), 1)
        return F.max_pool2d(of_rows, (2 * width + 1, 1), 1)[0, 0]

    return greatest(padded) != -greatest(-padded)


def boundary_pixels(
    predicted: Tensor, label: Tensor, classes: int, width: int | None = None
) -> Tensor:
    """Returns the pixels in the intersection and the union of boundaries, int64 (2, K).

    Ignored pixels are no part of any area, in the label map and in the prediction alike. The sums
    of several images give the boundary IoU of all of them.

    Args:
        predicted: Predicted classes (H, W).
        label: Class indices (H, W); values from K on are ignored.
        classes: Number of classes K.
        width: Width of the boundaries in pixels; by default :func:`boundary_width`.

    Raises:
        ValueError: If a prediction is none of the classes.
    """
    check_predictions(predicted, classes)
    width = width or boundary_width(label.shape)
    label = label.long().to(predicted.device).clamp(max=classes)
    predicted = predicted.long().where(label < classes, classes)
    of_label, of_prediction = (
        labels.where(on_boundary(labels, width), classes) for labels in (label, predicted)
    )
    shared = of_label.where(of_label == of_prediction, classes)
    counts = [
        pixels.flatten().bincount(minlength=classes + 1)[:classes]
        for pixels in (shared, of_label, of_prediction)
    ]
    intersection, first, second = (count.cpu() for count in counts)
    return torch.stack([intersection, first + second - intersection])
