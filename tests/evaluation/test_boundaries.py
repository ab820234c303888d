"""Boundary IoU is that of the paper's definition: each mask without its erosion, by scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from segformer.evaluation.boundaries import boundary_pixels, boundary_width

CLASSES = 4


def blobs(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Labels of smooth areas, some of which reach the border."""
    noise = np.random.default_rng(seed).normal(size=(CLASSES, *size))
    return ndimage.gaussian_filter(noise, (0, 4, 4)).argmax(0)


def band(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask within a distance of its contour; outside of the image is no mask."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), width, border_value=0)


@pytest.mark.parametrize(("size", "width"), [((61, 48), None), ((40, 97), 1), ((33, 50), 5)])
def test_boundary_iou_is_that_of_eroded_masks(size: tuple[int, int], width: int | None) -> None:
    label, predicted = blobs(1, size), blobs(2, size)
    predicted[:, : size[1] // 2] = np.roll(label, 2, 0)[:, : size[1] // 2]
    label[5:20, 10:22] = 255
    is_ignored = label == 255
    d = width or max(1, round(0.02 * math.sqrt(size[0] ** 2 + size[1] ** 2)))
    of_label = [band(label == k, d) for k in range(CLASSES)]
    of_prediction = [band((predicted == k) & ~is_ignored, d) for k in range(CLASSES)]
    expected = [
        [np.sum(a & b) for a, b in zip(of_label, of_prediction, strict=True)],
        [np.sum(a | b) for a, b in zip(of_label, of_prediction, strict=True)],
    ]
    found = boundary_pixels(
        torch.from_numpy(predicted), torch.from_numpy(label.astype(np.uint8)), CLASSES, width
    )
    assert found.tolist() == expected
    assert 0 < found[0].sum() < found[1].sum()


def test_only_the_boundary_counts() -> None:
    """A square of 40 that is shifted by one pixel: IoU hardly falls, boundary IoU by much."""
    label = torch.zeros(100, 100, dtype=torch.int64)
    label[30:70, 30:70] = 1
    shifted = label.roll(1, 1)
    assert boundary_width(label.shape) == 3
    intersection, union = boundary_pixels(shifted, label, 2)[:, 1].tolist()
    frame = 40**2 - 34**2
    # Rows of the frame, above and below, lack a column; of its columns, all but one are shared.
    shared = 2 * 3 * 39 + 2 * 34 * 2
    assert (intersection, union) == (shared, 2 * frame - shared)


def test_classes_in_neither_map_have_no_pixels() -> None:
    label = torch.full((20, 20), 1)
    assert boundary_pixels(label, label, 3).tolist() == [[0, 76, 0], [0, 76, 0]]


def test_the_width_is_at_least_a_pixel() -> None:
    assert boundary_width((10, 10)) == 1
    assert boundary_width((1024, 2048)) == 46
