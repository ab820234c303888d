"""Each loss equals its definition at full size, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from segformer import SegFormer
from segformer.losses import OHEM, CrossEntropy, Dice, Focal, Lovasz, Sum
from segformer.ops import upsample_cross_entropy

LOSSES: dict[str, Callable[[], nn.Module]] = {
    "cross-entropy": CrossEntropy,
    "OHEM": lambda: OHEM(min_kept=50),
    "Dice": Dice,
    "focal": Focal,
    "Lovász": Lovasz,
    "cross-entropy and Dice": lambda: Sum([CrossEntropy(), Dice()], [1.0, 0.5]),
}


def sample(classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    logits = (2 * torch.randn(2, classes, 8, 8, dtype=torch.double)).requires_grad_()
    target = torch.randint(0, max(2, classes), (2, 32, 32))
    target[:, :4] = 255
    return logits, target, F.interpolate(logits, size=(32, 32), mode="bilinear")


def test_cross_entropy_is_torchs_at_full_size() -> None:
    logits, target, full = sample()
    for weight in (None, [1.0, 2.0, 3.0]):
        expected = F.cross_entropy(
            full,
            target,
            None if weight is None else torch.tensor(weight).double(),
            ignore_index=255,
        )
        torch.testing.assert_close(CrossEntropy(weight)(logits, target), expected)
    over_all = F.cross_entropy(full, target, ignore_index=255, reduction="sum") / target.numel()
    torch.testing.assert_close(CrossEntropy(over_all_pixels=True)(logits, target), over_all)


@pytest.mark.parametrize(
    ("threshold", "min_kept"), [(0.7, 0), (0.05, 300), (1.0, 10), (0.3, 10**9)]
)
def test_ohem_is_the_mean_over_the_hard_pixels(threshold: float, min_kept: int) -> None:
    logits, target, full = sample()
    losses = F.cross_entropy(full, target, ignore_index=255, reduction="none")[target != 255]
    probabilities = full.softmax(1).gather(1, target.where(target != 255, 0)[:, None])[:, 0][
        target != 255
    ]
    order = probabilities.argsort()
    count = max(int((probabilities <= threshold).sum()), min(min_kept, len(order)))
    torch.testing.assert_close(
        OHEM(threshold, min_kept)(logits, target), losses[order[:count]].mean()
    )


def test_dice_is_its_definition_and_ignores_255() -> None:
    logits, target, full = sample()
    valid = target != 255
    probabilities, truth = (
        full.softmax(1).movedim(1, -1)[valid],
        F.one_hot(target[valid], 3).double(),
    )
    coefficients = [
        (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        for p, t in zip(probabilities.T, truth.T, strict=True)
    ]
    torch.testing.assert_close(Dice()(logits, target), 1 - torch.stack(coefficients).mean())


@pytest.mark.parametrize("classes", [4, 150])
def test_dice_of_correct_labels_is_near_0(classes: int) -> None:
    """Three classes occur; the small probabilities of the others add nothing."""
    target = (torch.arange(64) // 22).expand(2, 64, 64).clone()
    target[:, :4] = 255
    logits = (
        (20 * F.one_hot(target.where(target != 255, 0), classes).movedim(-1, 1))
        .double()
        .requires_grad_()
    )
    loss = Dice()(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert 0 <= loss < 1e-5
    assert gradient.isfinite().all()


def test_dice_is_the_mean_over_the_classes_that_occur() -> None:
    logits, target, full = sample(5)
    target[(target == 1) | (target == 3)] = 0
    valid = target != 255
    probabilities, truth = (
        full.softmax(1).movedim(1, -1)[valid],
        F.one_hot(target[valid], 5).double(),
    )
    costs = [
        1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        for p, t in zip(probabilities.T, truth.T, strict=True)
    ]
    torch.testing.assert_close(Dice()(logits, target), (costs[0] + costs[2] + costs[4]) / 3)


def test_focal_is_its_definition() -> None:
    logits, target, full = sample()
    losses = F.cross_entropy(full, target, ignore_index=255, reduction="none")[target != 255]
    torch.testing.assert_close(
        Focal(2.0)(logits, target), ((1 - (-losses).exp()) ** 2 * losses).mean()
    )
    weight = [1.0, 2.0, 3.0]
    torch.testing.assert_close(
        Focal(0.0, weight)(logits, target), CrossEntropy(weight)(logits, target)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_a_gradient_where_a_class_is_certain(gamma: float) -> None:
    logits = torch.tensor([30.0, -5.0]).expand(1, 4, 4, 2).movedim(3, 1).clone().requires_grad_()
    target = torch.zeros(1, 16, 16, dtype=torch.long)
    target[0, 0, 0] = 1
    Focal(gamma)(logits, target).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0, 0, 0] > 0


def test_a_sum_is_weighted() -> None:
    logits, target, _ = sample()
    expected = CrossEntropy()(logits, target) + 0.5 * Dice()(logits, target)
    torch.testing.assert_close(LOSSES["cross-entropy and Dice"]()(logits, target), expected)
    with pytest.raises(ValueError, match="2 weights for 1 losses"):
        Sum([Dice()], [1.0, 2.0])


def test_one_logit_is_binary_cross_entropy() -> None:
    logits, target, full = sample(1)
    valid = target != 255
    expected = F.binary_cross_entropy_with_logits(full[:, 0][valid], target[valid].double())
    torch.testing.assert_close(CrossEntropy()(logits, target), expected)


def test_one_logit_labels_pixels_with_a_probability_above_a_half() -> None:
    model = SegFormer(TINY, num_classes=1).eval()
    images = torch.randn(2, 3, 64, 64)
    labels = model.predict(images)
    assert torch.equal(labels, (model(images)[:, 0].sigmoid() > 0.5).long())
    assert set(labels.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_gradient_and_is_0_for_a_batch_without_labels(
    name: str, classes: int
) -> None:
    logits, target, _ = sample(classes)
    loss = LOSSES[name]()
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    nothing = loss(logits, torch.full_like(target, 255))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing == 0
    assert not gradient.any()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"over_all_pixels": True}])
def test_weights_of_low_precision_change_little(options: dict[str, Any]) -> None:
    """Their sum over the pixels exceeds the greatest float16, 65504."""
    logits, target = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 256, 256))
    loss = CrossEntropy([0.5, 1.0, 2.0], **options)
    exact = loss(logits, target)
    torch.testing.assert_close(loss.half()(logits, target), exact)
    assert loss(logits, torch.full_like(target, 255)) == 0


def test_weights_that_ask_for_a_gradient_are_refused() -> None:
    logits, target, _ = sample(3)
    weight = torch.ones(3, dtype=logits.dtype, requires_grad=True)
    with pytest.raises(ValueError, match="class weights are constants, and these ask"):
        upsample_cross_entropy(logits, target, weight)


def test_a_batch_of_a_class_without_weight_has_no_loss() -> None:
    logits, target = torch.randn(2, 2, 8, 8, requires_grad=True), torch.zeros(2, 32, 32).long()
    loss = CrossEntropy([0.0, 1.0], label_smoothing=0.1)(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert not gradient.any()


def test_cross_entropy_does_not_wait_for_the_device() -> None:
    """Reading the value of a fake tensor raises an error."""
    with FakeTensorMode():
        logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 32, 32))
        assert CrossEntropy([1.0, 2.0, 3.0])(logits, target).shape == ()


@pytest.mark.parametrize("name", LOSSES)
def test_low_precision_and_narrow_labels_are_widened(name: str) -> None:
    logits, target, _ = sample()
    exact = LOSSES[name]()(logits.detach().half().double(), target)
    loss = LOSSES[name]()(8 * logits.detach().half() / 8, target.to(torch.uint8))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)


def test_equal_weights_change_nothing() -> None:
    logits, target, _ = sample()
    torch.testing.assert_close(
        OHEM(min_kept=50, weight=[2.0] * 3)(logits, target), OHEM(min_kept=50)(logits, target)
    )


def test_class_weights_are_not_in_the_state_dict() -> None:
    assert CrossEntropy([1.0, 2.0]).state_dict() == {}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_with_300_classes_255_is_a_class_and_65535_is_ignored(
    loss: Callable[[], nn.Module],
) -> None:
    logits = torch.randn(1, 300, 4, 4, dtype=torch.double)
    target = torch.randint(256, 300, (1, 8, 8))
    target[:, :2] = 255
    target[:, 2:4] = 65535
    assert loss()(logits, target.to(torch.int32)) == loss()(logits, target)
    assert loss()(logits, target).isfinite()
    assert loss()(logits, target) != loss()(logits, target.where(target != 255, 65535))


def lovasz_by_definition(probability: Tensor, target: Tensor) -> Tensor:
    """The Lovász extension of the Jaccard loss of sets of wrong pixels (equations 5, 8 and 9).

    Of probabilities (K, N) and labels (N,).
    """
    losses = []
    for k, p in enumerate(probability):
        truth = target == k
        error = torch.where(truth, 1 - p, p)
        jaccard = [torch.zeros(())]
        wrong = torch.zeros_like(truth)
        for pixel in error.argsort(descending=True).tolist():
            wrong[pixel] = True
            jaccard.append(wrong.sum() / (truth | wrong).sum())
        if truth.any():
            steps = torch.stack(jaccard).double().diff()
            losses.append((error.sort(descending=True).values * steps).sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "per image"])
def test_lovasz_is_its_definition(per_image: bool) -> None:
    """Of labels with ignored pixels, and without one of the classes."""
    logits = torch.randn(2, 4, 9, 7).double()
    target = torch.randint(0, 3, (2, 9, 7))
    target[:, :4] = 255
    target[1, 4:] = 0
    images = [
        lovasz_by_definition(x[:, y != 255].softmax(0), y[y != 255])
        for x, y in zip(logits, target, strict=True)
    ]
    pixels = logits.transpose(0, 1)[:, target != 255].softmax(0), target[target != 255]
    expected = torch.stack(images).mean() if per_image else lovasz_by_definition(*pixels)
    torch.testing.assert_close(Lovasz(per_image)(logits, target), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "per image"])
@pytest.mark.parametrize("classes", [3, 7])
def test_lovasz_and_its_gradient_are_smps(classes: int, per_image: bool) -> None:
    """In single precision, the only one that it computes in."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    _, target, _ = sample(classes)
    target[target == classes - 1] = 0  # a class that does not occur
    logits = torch.randn(2, classes, 32, 32, requires_grad=True)
    judge = smp.losses.LovaszLoss("multiclass", per_image=per_image, ignore_index=255)
    losses = Lovasz(per_image)(logits, target), judge(logits, target)
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)


def test_lovasz_of_certain_predictions_is_one_minus_the_mean_iou() -> None:
    """The Lovász extension equals the set function at the corners (arXiv 1705.08790, section 2)."""
    labels, target = torch.randint(0, 4, (2, 2, 16, 16))
    target[:, 0] = 255
    certain = 1e4 * F.one_hot(labels, 4).permute(0, 3, 1, 2).double()
    valid = target != 255
    ious = []
    for k in range(4):
        truth, found = target[valid] == k, labels[valid] == k
        ious.append((truth & found).sum() / (truth | found).sum())
    expected = 1 - torch.stack(ious).double().mean()
    torch.testing.assert_close(Lovasz()(certain, target), expected, rtol=0, atol=1e-7)


def test_lovasz_with_a_stride_is_that_of_fewer_pixels() -> None:
    logits, target = torch.randn(1, 3, 32, 32).double(), torch.randint(0, 3, (1, 32, 32))
    fewer = logits[..., 1::2, 1::2], target[..., 1::2, 1::2]
    torch.testing.assert_close(Lovasz(stride=2)(logits, target), Lovasz()(*fewer))
    narrow = logits[..., :3], target[..., :3]
    torch.testing.assert_close(
        Lovasz(stride=8)(*narrow), Lovasz()(*(x[..., 4::8, 1:2] for x in narrow))
    )
    with pytest.raises(ValueError, match="stride=0"):
        Lovasz(stride=0)


def test_lovasz_keeps_probabilities_of_the_chosen_pixels_only() -> None:
    """All other pixels would cost their softmax, and its memory until the backward pass."""
    logits, target = torch.randn(1, 3, 8, 8, requires_grad=True), torch.randint(0, 3, (1, 32, 32))
    kept: list[int] = []

    def note(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        Lovasz(stride=4)(logits, target).backward()
    assert max(kept) == 3 * 8 * 8


def test_lovasz_is_exact_in_single_precision() -> None:
    logits, target = torch.randn(1, 3, 400, 500).double(), torch.randint(0, 3, (1, 400, 500))
    double, single = (
        torch.autograd.grad(Lovasz()(x, target), x)[0]
        for x in (logits.requires_grad_(), logits.detach().float().requires_grad_())
    )
    assert (single - double).norm() < 1e-4 * double.norm()


@pytest.mark.parametrize("kind", [CrossEntropy, OHEM, Focal])
def test_weights_of_another_number_of_classes_are_refused(kind: Any) -> None:
    logits, target, _ = sample()
    for weight in ([1.0, 2.0], [1.0, 2.0, 3.0, 4.0]):
        with pytest.raises(ValueError, match=rf"\({len(weight)},\) class weights for 3 classes"):
            kind(weight=weight)(logits, target)


@pytest.mark.parametrize("name", LOSSES)
def test_a_target_that_is_no_class_is_refused(name: str) -> None:
    logits, target, _ = sample()
    target[:, 5:9] = 77
    with pytest.raises((IndexError, RuntimeError), match=r"77|out of bounds"):
        LOSSES[name]()(logits, target)
