"""The operators from cells to pixels beside PyTorch's, in float64.

Hypothesis chooses sizes, ratios and values.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import interpolate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segformer.ops import (
    cross_entropy,
    upsample,
    upsample_argmax,
    upsample_cross_entropy,
    upsample_sum,
)

sides = st.integers(1, 9)
targets = st.integers(1, 40)


@pytest.fixture(autouse=True)
def small_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that even these maps are worked in several pieces."""
    monkeypatch.setattr("segformer.ops.memory.PIECE", 8 << 10)


@st.composite
def maps(draw: st.DrawFn, channels: tuple[int, int] = (1, 12)) -> Tensor:
    """Smooth or noisy maps (B, K, h, w) in float64, in any memory order."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(*channels)), draw(sides), draw(sides))
    x = torch.randn(
        shape,
        generator=torch.Generator().manual_seed(draw(st.integers(0, 999))),
        dtype=torch.double,
    )
    if draw(st.booleans()):
        x = x + torch.arange(shape[1])[:, None, None] * draw(
            st.sampled_from([0.1, 3.0])
        )  # few boundaries
    order = draw(st.sampled_from(["contiguous", "channels_last", "strided"]))
    if order == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.repeat_interleave(2, 3)[..., ::2] if order == "strided" else x


def test_upsample_is_bilinear_with_half_pixel_centres() -> None:
    x = torch.tensor([[[[0.0, 1.0]]]])
    torch.testing.assert_close(upsample(x, (1, 4)), torch.tensor([[[[0.0, 0.25, 0.75, 1.0]]]]))


def test_sum_is_the_sum_of_the_upsampled_maps() -> None:
    levels = [
        torch.randn(2, 3, h, w, dtype=torch.double, requires_grad=True)
        for h, w in ((9, 14), (5, 7), (3, 4))
    ]
    total, expected = upsample_sum(levels), sum(interpolate(m, (9, 14)) for m in levels)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-12)
    d = torch.randn_like(total)
    torch.testing.assert_close(
        torch.autograd.grad(total, levels, d),
        torch.autograd.grad(expected, levels, d),
        rtol=0,
        atol=1e-12,
    )


@settings(deadline=None, max_examples=200)
@given(logits=maps(), height=targets, width=targets, align_corners=st.booleans())
def test_argmax_is_the_argmax_of_the_upsampled_logits(
    logits: Tensor, height: int, width: int, align_corners: bool
) -> None:
    labels = upsample_argmax(logits, (height, width), align_corners)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, interpolate(logits, (height, width), align_corners).argmax(1))


@settings(deadline=None, max_examples=200)
@given(
    logits=maps(),
    values=st.lists(
        st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e308]), min_size=1, max_size=6
    ),
    height=targets,
    width=targets,
    seed=st.integers(0, 999),
)
def test_argmax_of_logits_that_are_not_finite_is_the_plain_one(
    logits: Tensor, values: list[float], height: int, width: int, seed: int
) -> None:
    logits = logits.clone(memory_format=torch.contiguous_format)
    places = torch.randint(
        logits.numel(), (len(values),), generator=torch.Generator().manual_seed(seed)
    )
    logits.view(-1)[places] = torch.tensor(values, dtype=torch.double)
    plain = interpolate(logits, (height, width))
    if plain.isfinite().all():
        return
    labels = upsample_argmax(logits, (height, width))
    # Half way between two cells of 1e308 in two classes these tie, and the last bit decides.
    greatest, chosen = plain.amax(1), plain.gather(1, labels[:, None])[:, 0]
    same = (labels == plain.argmax(1)) | (greatest - chosen <= 1e-12 * greatest.abs())
    # Where a pixel lies on a cell to the last bit, rounding decides whether 0 · ∞ or ε · ∞ of its
    # neighbour is added.
    assert (
        same
        | lies_on_a_cell(logits.shape[2], height)[:, None]
        | lies_on_a_cell(logits.shape[3], width)
    ).all()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(12, 12), (3, 12), (5, 9)], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nothing_times_infinity_is_not_a_number_and_the_greatest(
    value: float, size: tuple[int, int], align_corners: bool
) -> None:
    """Pixels at the border of the map take nothing of the second cell, which may be infinite."""
    for cell in ((0, 0), (1, 1), (0, 1), (2, 2)):
        logits = torch.zeros(1, 3, 3, 3, dtype=torch.double)
        logits[:, 2] = 1
        logits[0, 1][cell] = value
        plain = interpolate(logits, size, align_corners).argmax(1)
        assert torch.equal(upsample_argmax(logits, size, align_corners), plain)


def test_of_equal_classes_the_first_counts() -> None:
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.double).view(1, 2, 1, 2)
    for x in (logits, logits.flip(1)):  # each class is first on the left once
        assert upsample_argmax(x, (1, 3))[0, 0, 1] == 0


def lies_on_a_cell(cells: int, pixels: int) -> Tensor:
    position = ((torch.arange(pixels).double() + 0.5) * cells / pixels - 0.5).clamp_min(0)
    return (position - position.round()).abs() < 1e-9


@pytest.mark.parametrize("classes", [1, 2, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_argmax_in_any_precision_is_a_greatest_class(classes: int, dtype: torch.dtype) -> None:
    """In low precision many classes tie once rounded; the label's value is still the greatest."""
    logits = torch.randn(2, classes, 8, 12).to(dtype)
    labels = upsample_argmax(logits, (30, 50))
    full = interpolate(logits.float(), (30, 50))
    torch.testing.assert_close(
        full.gather(1, labels[:, None])[:, 0], full.amax(1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 4, 5)])
def test_empty_batches_and_same_sizes(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape)
    for size in ((4, 5), (16, 20)):
        assert torch.equal(upsample_argmax(logits, size), interpolate(logits, size).argmax(1))


@st.composite
def losses(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, a target with ignored pixels, and options."""
    logits = draw(maps())
    height, width, classes = draw(targets), draw(targets), logits.shape[1]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    target = torch.randint(classes, (len(logits), height, width), generator=generator)
    target[
        torch.rand(target.shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.95]))
    ] = 255
    target.view(-1)[0] = 0  # one valid pixel at least
    weight = (
        torch.rand(classes, generator=generator, dtype=torch.double) + 0.1
        if draw(st.booleans())
        else None
    )
    return (
        logits,
        target,
        {"weight": weight, "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0]))},
    )


@settings(deadline=None, max_examples=200)
@given(case=losses(), align_corners=st.booleans(), over_all_pixels=st.booleans())
def test_cross_entropy_is_torchs_over_the_upsampled_logits(
    case: tuple[Tensor, Tensor, dict[str, Any]], align_corners: bool, over_all_pixels: bool
) -> None:
    logits, target, options = case
    logits = logits.requires_grad_()
    full = interpolate(logits, target.shape[-2:], align_corners)
    expected = F.cross_entropy(
        full, target, ignore_index=255, reduction="sum" if over_all_pixels else "mean", **options
    )
    if over_all_pixels:
        expected = expected / target.numel()
    loss = upsample_cross_entropy(
        logits, target, align_corners=align_corners, over_all_pixels=over_all_pixels, **options
    )
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    (gradient,), (wanted,) = (torch.autograd.grad(3 * value, logits) for value in (loss, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        assert (
            upsample_cross_entropy(
                logits,
                target,
                align_corners=align_corners,
                over_all_pixels=over_all_pixels,
                **options,
            )
            == loss
        )


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_gradient_of_cross_entropy_is_the_numerical_one(align_corners: bool) -> None:
    logits = torch.randn(2, 3, 3, 4, dtype=torch.double, requires_grad=True)
    target = torch.randint(0, 3, (2, 11, 9))
    target[0, :4] = 255
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.double)

    def loss(x: Tensor) -> Tensor:
        return upsample_cross_entropy(
            x, target, weight, align_corners=align_corners, label_smoothing=0.1
        )

    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cross_entropy_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 5, 6, 6).to(dtype).requires_grad_()
    target = torch.randint(0, 5, (1, 24, 24))
    loss = upsample_cross_entropy(logits, target)
    expected = F.cross_entropy(interpolate(logits.float(), (24, 24)), target)
    torch.testing.assert_close(loss, expected)
    (gradient,), (wanted,) = (
        torch.autograd.grad(loss, logits),
        torch.autograd.grad(expected, logits),
    )
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("needed", [True, False])
def test_a_gradient_is_computed_only_where_it_is_needed(
    needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    summed = cross_entropy.summed_in_strips

    def noted(*args: Any) -> tuple[Tensor, Tensor | None]:
        loss, gradient = summed(*args)
        gradients.append(gradient)
        return loss, gradient

    monkeypatch.setattr(cross_entropy, "summed_in_strips", noted)
    logits = torch.randn(1, 3, 4, 4, requires_grad=needed)
    upsample_cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.int64))
    assert [gradient is not None for gradient in gradients] == [needed]


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("weight", [None, torch.ones(3)], ids=["", "weighted"])
def test_a_batch_without_labels_costs_nothing(weight: Tensor | None, batch: int) -> None:
    logits = torch.randn(batch, 3, 4, 4, requires_grad=True)
    loss = upsample_cross_entropy(logits, torch.full((batch, 16, 16), 255), weight)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("ignored", [16, 12, 4], ids="rows {} to 16 ignored".format)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_count_as_in_the_plain_way(value: float, ignored: int) -> None:
    """The loss is not finite where such a value reaches a pixel that counts.

    It is finite where it reaches ignored pixels alone.
    """
    logits = torch.randn(1, 3, 4, 4)
    logits[0, 0, 2, 2] = value
    logits.requires_grad_()
    target = torch.zeros(1, 16, 16, dtype=torch.int64)
    target[:, ignored:] = 255
    expected, loss = (
        F.cross_entropy(interpolate(logits, (16, 16)), target, ignore_index=255),
        upsample_cross_entropy(logits, target),
    )
    torch.testing.assert_close(loss, expected, equal_nan=True)
    assert loss.isfinite() == (ignored == 4)
    (gradient,), (wanted,) = (
        torch.autograd.grad(loss, logits),
        torch.autograd.grad(expected, logits),
    )
    torch.testing.assert_close(gradient, wanted, equal_nan=True)


def test_a_target_outside_the_classes_is_refused() -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        upsample_cross_entropy(torch.zeros(1, 3, 4, 4), torch.full((1, 16, 16), 7))


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits = torch.zeros(2, 3, 4, 4)
    for target in (
        torch.zeros(1, 16, 16, dtype=torch.int64),
        torch.zeros(2, 1, 16, 16, dtype=torch.int64),
    ):
        with pytest.raises(
            ValueError, match=r"is not \(B, H, W\) with the batch of the logits, \(2, 3, 4, 4\)"
        ):
            upsample_cross_entropy(logits, target)
    with pytest.raises(ValueError, match="class weights for 3 classes"):
        upsample_cross_entropy(logits, torch.zeros(2, 16, 16, dtype=torch.int64), torch.ones(2))


def test_autocast_does_not_lower_their_precision() -> None:
    """It would round every matrix product inside to 8 bits."""
    logits = torch.randn(1, 5, 6, 6, requires_grad=True)
    target = torch.randint(0, 5, (1, 24, 24))
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = upsample_cross_entropy(logits, target)
            results.append(
                (loss, torch.autograd.grad(loss, logits)[0], upsample_argmax(logits, (24, 24)))
            )
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_graphs_hold_the_plain_ways() -> None:
    """Exported and compiled, the operators do not depend on values."""

    class Labels(torch.nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return upsample_argmax(logits, (16, 20))

    logits = torch.randn(1, 3, 4, 5)
    exported = torch.export.export(Labels(), (logits,))
    assert torch.equal(exported.module()(logits), upsample_argmax(logits, (16, 20)))
    assert not [node for node in exported.graph.nodes if "nonzero" in str(node.target)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("over_all_pixels", [False, True])
def test_the_loss_has_second_derivatives(weighted: bool, over_all_pixels: bool) -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True)
    target = torch.randint(3, (2, 9, 11))
    target[0, :2] = 255
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.double) if weighted else None

    def loss(logits: Tensor) -> Tensor:
        return upsample_cross_entropy(
            logits, target, weight, label_smoothing=0.1, over_all_pixels=over_all_pixels
        )

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


def test_a_gradient_penalty_is_the_plain_losss() -> None:
    """The gradient's own gradient, with respect to the layer that made the logits."""
    layer, x = (
        torch.nn.Conv2d(4, 3, 1).double(),
        torch.randn(1, 4, 5, 6, dtype=torch.double, requires_grad=True),
    )
    target = torch.randint(3, (1, 20, 24))
    penalties = []
    for loss in (
        lambda logits: upsample_cross_entropy(logits, target),
        lambda logits: torch.nn.functional.cross_entropy(interpolate(logits, (20, 24)), target),
    ):
        (d_x,) = torch.autograd.grad(loss(layer(x)), x, create_graph=True)
        penalties.append(torch.autograd.grad(d_x.square().sum(), layer.weight)[0])
    torch.testing.assert_close(penalties[0], penalties[1], rtol=1e-10, atol=1e-14)
    assert penalties[0].abs().max() > 1e-6


def test_transforms_of_torch_func_follow_the_loss() -> None:
    """Gradients of each sample, and a Hessian-vector product in forward over reverse mode."""
    logits, target = torch.randn(3, 4, 5, 6, dtype=torch.double), torch.randint(4, (3, 13, 17))

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return upsample_cross_entropy(logits[None], target[None])

    each = torch.func.vmap(torch.func.grad(loss))(logits, target)
    for logit, label, gradient in zip(logits, target, each, strict=True):
        leaf = logit.clone().requires_grad_()
        torch.nn.functional.cross_entropy(interpolate(leaf[None], (13, 17)), label[None]).backward()
        torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=1e-12)


def test_the_plain_labels_of_half_precision_are_computed_in_float32() -> None:
    logits = torch.randn(1, 150, 32, 32).bfloat16()
    exact = upsample_argmax.plain(logits.float(), (128, 128))
    assert torch.equal(upsample_argmax.plain(logits, (128, 128)), exact)
