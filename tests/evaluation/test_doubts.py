"""Planted annotation faults are ranked before what a model merely finds hard."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segformer.data.components import components
from segformer.evaluation.doubts import (
    Region,
    doubt,
    inwardness,
    regions,
    surprise,
    window_of,
)
from segformer.evaluation.metrics import confusion_of

IGNORED = 255


def street(seed: int, classes: int = 4) -> Tensor:
    """Labels (96, 128) of a few rectangles."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(96, 128, dtype=torch.int64)
    for k in torch.randint(classes, (8,), generator=generator).tolist():
        top, left = torch.randint(70, (2,), generator=generator).tolist()
        label[top : top + 40, left : left + 50] = k
    return label


def seen(truth: Tensor, seed: int, classes: int = 4, noise: float = 1.5) -> Tensor:
    """Probabilities (K, H, W) of a model that is right on average, with noise in every pixel."""
    generator = torch.Generator().manual_seed(seed)
    logits = 7.0 * torch.nn.functional.one_hot(truth, classes).permute(2, 0, 1)
    return (logits + noise * torch.randn(logits.shape, generator=generator)).softmax(0)


def ranking(probabilities: list[Tensor], labels: list[Tensor]) -> list[float]:
    """Score of the most doubted region of each image."""
    found = [regions(*pair) for pair in zip(probabilities, labels, strict=True)]
    confusion = sum(
        confusion_of(p.argmax(0), label, len(p))
        for p, label in zip(probabilities, labels, strict=True)
    )
    surprises = surprise(confusion)  # type: ignore[arg-type]
    return [max((doubt(r, surprises) for r in of_image), default=0.0) for of_image in found]


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_fault_of_a_noisy_set_is_ranked_first(seed: int) -> None:
    truth = [street(100 * seed + k) for k in range(12)]
    probabilities = [seen(label, k) for k, label in enumerate(truth)]
    labels = [label.clone() for label in truth]
    box = labels[7][30:54, 40:64]
    box[:] = (box + 1) % 4
    scores = ranking(probabilities, labels)
    assert scores.index(max(scores)) == 7
    assert max(scores) > 10 * max(score for k, score in enumerate(scores) if k != 7)


def test_thin_boundaries_rank_below_a_region_of_as_many_pixels() -> None:
    """The label of one image is moved by two pixels everywhere; that of another has a box wrong."""
    truth = [street(k) for k in range(6)]
    probabilities = [seen(label, k) for k, label in enumerate(truth)]
    labels = [label.clone() for label in truth]
    labels[2] = truth[2].roll((1, 1), (0, 1))
    moved = int((labels[2] != truth[2]).sum())
    side = math.isqrt(moved // 2)
    assert side > 8
    labels[4][20 : 20 + side, 30 : 30 + side] += 1
    labels[4] %= 4
    scores = ranking(probabilities, labels)
    assert scores.index(max(scores)) == 4
    assert scores[2] < scores[4] / 20


def test_a_usual_confusion_ranks_below_an_unusual_one() -> None:
    """Two equal regions; in the other images, the model takes class 0 for class 1 as well."""
    truth = [torch.zeros(80, 80, dtype=torch.int64) for _ in range(8)]
    predicted = [label.clone() for label in truth]
    for other in predicted[2:]:
        other[:40] = 1
    predicted[0][20:40, 20:40] = 1
    predicted[1][20:40, 20:40] = 2
    scores = ranking([seen(p, 0, noise=0) for p in predicted], truth)
    assert 0 < scores[0] < scores[1]


def test_an_unsure_model_is_no_evidence() -> None:
    """The same regions, once predicted with 90 % and once with 99.9 %."""
    label = torch.zeros(60, 60, dtype=torch.int64)
    wrong = torch.zeros(60, 60)
    wrong[10:40, 10:40] = 1
    for probability, evidence in ((0.9, 0.0), (0.999, 1.0)):
        second = 0.001 + (probability - 0.001) * wrong
        (found,) = regions(torch.stack([1 - second, second]), label)
        assert (found.evidence > 0) == (evidence > 0)
        assert found.confidence == pytest.approx(probability, rel=1e-4)


def test_an_image_without_labelled_pixels_has_no_region() -> None:
    label = torch.full((40, 50), IGNORED, dtype=torch.uint8)
    probabilities = seen(torch.zeros(40, 50, dtype=torch.int64), 0)
    assert regions(probabilities, label) == []
    assert confusion_of(probabilities.argmax(0), label, 4).sum() == 0


def test_a_region_is_measured_as_it_is_drawn() -> None:
    label = torch.full((50, 70), 2)
    predicted = label.clone()
    predicted[8:20, 30:37] = 1
    label[10, 33] = IGNORED
    (found,) = regions(seen(predicted, 0, noise=0), label)
    assert (found.labelled, found.predicted) == (2, 1)
    assert found.box == (30, 8, 7, 12)
    assert found.pixels == 7 * 12 - 1


def test_evidence_is_the_sum_over_all_pixels_of_its_definition() -> None:
    """Pixel by pixel, in Python."""
    label, window = street(3), 5
    predicted = label.clone()
    predicted[30:60, 50:90] = (label[30:60, 50:90] + 2) % 4
    p = seen(predicted, 1, noise=2.5).double()
    wrong = (p.argmax(0) != label).tolist()
    rows, columns = label.shape
    total = 0.0
    for y, x in itertools.product(range(rows), range(columns)):
        if not wrong[y][x]:
            continue
        near = itertools.product(range(y - 2, y + 3), range(x - 2, x + 3))
        share = sum(0 <= i < rows and 0 <= j < columns and wrong[i][j] for i, j in near) / 25
        ratio = math.log(float(p[:, y, x].max()) / max(1e-6, float(p[label[y, x], y, x])))
        total += max(0.0, ratio - 3) * max(0.0, 2 * share - 1)
    assert sum(r.evidence for r in regions(p, label, window)) == pytest.approx(total, rel=1e-5)


def test_narrow_areas_have_no_inside() -> None:
    wrong = torch.zeros(40, 40, dtype=torch.bool)
    wrong[:, 10:14] = True  # 4 of 9 pixels
    assert inwardness(wrong, 9).max() == 0
    wrong[:, 10:25] = True
    assert inwardness(wrong, 9)[20, 17] == 1
    assert inwardness(wrong, 9)[20, 10] == pytest.approx(2 * 5 / 9 - 1)


def test_the_inside_reaches_to_the_border_of_the_image() -> None:
    assert (inwardness(torch.ones(12, 9, dtype=torch.bool), 7) == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (90, 120)], ids=str)
def test_the_neighbourhood_is_odd_and_grows_with_the_image(size: tuple[int, int]) -> None:
    window = window_of(size)
    assert window % 2 == 1
    assert abs(window - min(size) / 40) <= 3
    label = torch.ones(size, dtype=torch.int64)
    assert sum(r.pixels for r in regions(torch.rand(2, *size).softmax(0), label)) <= label.numel()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(0, 10**6))
def test_components_are_those_of_a_search(rows: int, columns: int, kinds: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-1, kinds, (rows, columns), generator=generator)
    assert torch.equal(components(values), searched(values))


def searched(values: Tensor) -> Tensor:
    """Components by flood fill from each pixel, in the order of the rows."""
    found = torch.full_like(values, -1)
    count = 0
    for y, x in itertools.product(*map(range, values.shape)):
        if values[y, x] < 0 or found[y, x] >= 0:
            continue
        stack = [(y, x)]
        while stack:
            i, j = stack.pop()
            inside = 0 <= i < values.shape[0] and 0 <= j < values.shape[1]
            if inside and found[i, j] < 0 and values[i, j] == values[y, x]:
                found[i, j] = count
                stack += [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
        count += 1
    return found


def test_components_of_a_long_spiral_are_one() -> None:
    """A path through all of a map, which neighbours alone would need 10,000 rounds for."""
    values = torch.full((101, 101), -1)
    values[::2] = 0
    for row in range(1, 101, 2):
        values[row, -1 if row % 4 == 1 else 0] = 0
    assert components(values).max() == 0


def test_a_pair_that_never_occurs_does_not_spoil_the_score() -> None:
    surprises = surprise(torch.tensor([[5, 0], [0, 0]]))
    assert doubt(Region(0, 1, (0, 0, 1, 1), 1, 0.0, 0.5), surprises) == 0
    assert surprises[0, 0] == 0
