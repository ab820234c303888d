"""Tables of images, and bootstrap intervals as scipy computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from segformer import Classes
from segformer.evaluation.metrics import Scores, counts_of
from segformer.evaluation.per_image import ImageScores, lost_most, paired_bootstrap, table

CLASSES = Classes(["road", "car", "sign"])


def confusions(images: int, seed: int, right: float) -> torch.Tensor:
    """Confusion matrices of images that differ in their pixels, and in how many are right."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 100, (images, 3, 3)) * random.uniform(0, 1, (images, 1, 1))
    correct = np.eye(3) * random.uniform(right, right + 300, (images, 3, 1))
    return torch.from_numpy((pixels + correct).astype(np.int64))


def counts(confusions: torch.Tensor) -> torch.Tensor:
    """Correct, labelled and predicted pixels (…, 3, K) of confusion matrices."""
    correct = confusions.diagonal(dim1=-2, dim2=-1)
    return torch.stack([correct, confusions.sum(-1), confusions.sum(-2)], dim=-2)


def miou(confusion: np.ndarray) -> float:
    correct = np.diag(confusion)
    return float(np.mean(correct / (confusion.sum(0) + confusion.sum(1) - correct)))


def test_intervals_are_those_of_scipy() -> None:
    first, second = confusions(25, 0, 120), confusions(25, 1, 90)
    a, b = first.double().numpy(), second.double().numpy()

    def difference(indices: np.ndarray) -> float:
        return miou(a[indices].sum(0)) - miou(b[indices].sum(0))

    expected = stats.bootstrap(
        (np.arange(25),),
        difference,
        n_resamples=4000,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(2),
    ).confidence_interval
    first, second = counts(first), counts(second)
    found = paired_bootstrap(first, second).miou
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.06 * width)
    assert found.high == pytest.approx(expected.high, abs=0.06 * width)
    assert found.first == pytest.approx(miou(a.sum(0)), abs=1e-12)
    assert found.difference == pytest.approx(difference(np.arange(25)), abs=1e-12)
    narrower = paired_bootstrap(first, second, level=0.5).miou
    assert found.low < narrower.low < narrower.high < found.high


def test_the_same_images_are_drawn_for_both() -> None:
    """Unpaired, the difference of a model from itself would vary; paired, it is 0 in each draw."""
    own = counts(confusions(9, 0, 100))
    comparison = paired_bootstrap(own, own, samples=100)
    for d in (comparison.miou, *comparison.iou):
        assert (d.difference, d.low, d.high) == (0, 0, 0)
    assert paired_bootstrap(own, own.flip(0), samples=100).miou.high > 0.01


def test_a_seed_fixes_the_draws() -> None:
    pair = counts(confusions(9, 0, 100)), counts(confusions(9, 1, 50))
    one, again, other = (paired_bootstrap(*pair, samples=700, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.miou.low != other.miou.low


def test_a_class_that_is_nowhere_has_no_interval() -> None:
    first, second = confusions(9, 0, 100), confusions(9, 1, 50)
    for confusion in (first, second):
        confusion[:, 2], confusion[:, :, 2] = 0, 0
    road, car, sign = paired_bootstrap(counts(first), counts(second), samples=100).iou
    assert road.low < road.difference < road.high
    assert car.low < car.difference < car.high
    assert all(np.isnan([sign.first, sign.second, sign.low, sign.high]))


@pytest.mark.parametrize("other", [confusions(8, 0, 1), confusions(9, 0, 1)[:, :2, :2]])
def test_other_images_are_refused(other: torch.Tensor) -> None:
    other = counts(other)
    with pytest.raises(ValueError, match="must have labelled the same images, at least two"):
        paired_bootstrap(counts(confusions(9, 0, 1)), other)
    with pytest.raises(ValueError, match="at least two"):
        paired_bootstrap(other[:1], other[:1])


def test_a_table_has_a_row_an_image_and_empty_cells_for_absent_classes() -> None:
    confusion = torch.tensor([[6, 2, 0], [0, 2, 0], [0, 0, 0]])
    boundary = torch.tensor([[3, 1, 0], [4, 4, 0]])
    header, row = table([ImageScores("a.png", counts(confusion), boundary)], CLASSES)
    assert dict(zip(header, row, strict=True)) == {
        "image": "a.png",
        "labelled pixels": "10",
        "mIoU": "0.625000",
        "boundary mIoU": "0.500000",
        "pixel accuracy": "0.800000",
        "IoU road": "0.750000",
        "IoU car": "0.500000",
        "IoU sign": "",
        "boundary IoU road": "0.750000",
        "boundary IoU car": "0.250000",
        "boundary IoU sign": "",
    }


def test_what_was_lost_comes_in_the_order_of_the_loss() -> None:
    def of(right: list[int]) -> list[ImageScores]:
        return [
            ImageScores("", counts(torch.tensor([[k, 10 - k], [0, 5]])), torch.zeros(2, 2))
            for k in right
        ]

    assert lost_most(of([5, 2, 9, 4]), of([7, 8, 3, 4])) == [1, 0]


def test_the_scores_of_an_image_are_those_of_its_confusion_matrix() -> None:
    """From vectors: 5,000 images of 171 classes take 20 MB, and their matrices 1.2 GB."""
    confusion = confusions(1, 0, 50)[0]
    confusion[1], confusion[:, 1] = 0, 0
    expected = Scores.of(confusion)
    image = ImageScores("", counts_of(confusion), torch.zeros(2, 3))
    assert image.iou.tolist() == pytest.approx(expected.iou, rel=1e-12, nan_ok=True)
    assert image.miou == pytest.approx(expected.miou, rel=1e-12)
    assert image.pixel_accuracy == pytest.approx(expected.pixel_accuracy, rel=1e-12)
    assert image.labelled == confusion.sum()
    assert image.counts.numel() == 3 * 3
