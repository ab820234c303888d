"""The Triton kernels beside the plain definitions.

They run on a CUDA device, or in Triton's interpreter, which runs on CPUs too (tests/conftest.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import interpolate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segformer import ops
from segformer.ops import argmax, bilinear, cross_entropy, triton

kernels = pytest.importorskip(
    "segformer.ops.triton_kernels", reason="reason: Triton is not installed", exc_type=ImportError
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
]  # NumPy's, under the interpreter
if DEVICE.type == "cuda":
    pytestmark.append(pytest.mark.cuda)


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (argmax, bilinear, cross_entropy):
        monkeypatch.setattr(module, "runs_on", lambda x: True)


@st.composite
def maps(draw: st.DrawFn) -> Tensor:
    """(B, K, h, w) in float64: one block of classes or several."""
    shape = (
        draw(st.integers(1, 2)),
        draw(st.sampled_from([1, 2, 5, 40])),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
    )
    x = torch.randn(
        shape,
        generator=torch.Generator().manual_seed(draw(st.integers(0, 999))),
        dtype=torch.double,
    )
    return x.to(DEVICE)


sizes = st.tuples(st.integers(1, 10), st.integers(1, 20))


@settings(deadline=None, max_examples=15)
@given(logits=maps(), size=sizes, align_corners=st.booleans())
def test_argmax_is_that_of_the_upsampled_logits(
    logits: Tensor, size: tuple[int, int], align_corners: bool
) -> None:
    labels = kernels.argmax(
        logits.permute(0, 2, 3, 1).contiguous(),
        bilinear.places(logits.permute(0, 2, 3, 1), size, align_corners),
    )
    assert torch.equal(labels, interpolate(logits, size, align_corners).argmax(1))


@pytest.mark.usefixtures("by_kernels")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_argmax_of_what_is_not_finite_is_the_plain_one(value: float) -> None:
    logits = torch.randn(1, 40, 4, 4, device=DEVICE)
    logits[0, 35, 1, 2] = logits[0, 3, 3, 0] = logits[0, 9, 0, 0] = value
    logits[0, :, 2, 2] = value
    labels, plain = ops.upsample_argmax(logits, (14, 14)), interpolate(logits, (14, 14))
    assert torch.equal(labels, plain.argmax(1))


@pytest.mark.usefixtures("by_kernels")
@settings(deadline=None, max_examples=4)
@given(
    logits=maps(),
    size=sizes,
    align_corners=st.booleans(),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1]),
    over_all_pixels=st.booleans(),
    seed=st.integers(0, 99),
)
def test_cross_entropy_is_torchs_over_the_upsampled_logits(
    logits: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    weighted: bool,
    smoothing: float,
    over_all_pixels: bool,
    seed: int,
) -> None:
    generator, classes = torch.Generator().manual_seed(seed), logits.shape[1]
    target = torch.randint(0, classes, (len(logits), *size), generator=generator).to(DEVICE)
    target[:, : size[0] // 3] = 255
    weight = (
        (0.5 + torch.rand(classes, generator=generator, dtype=torch.double)).to(DEVICE)
        if weighted
        else None
    )
    logits.requires_grad_()
    options: dict[str, Any] = {"ignore_index": 255, "label_smoothing": smoothing}
    full = interpolate(logits, size, align_corners)
    if over_all_pixels:
        expected = (
            F.cross_entropy(full, target, weight, reduction="sum", **options) / target.numel()
        )
    else:
        expected = F.cross_entropy(full, target, weight, **options)
    loss = ops.upsample_cross_entropy(
        logits,
        target,
        weight,
        align_corners=align_corners,
        over_all_pixels=over_all_pixels,
        **options,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    (gradient,), (wanted,) = (
        torch.autograd.grad(3 * loss, logits),
        torch.autograd.grad(3 * expected, logits),
    )
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        same = ops.upsample_cross_entropy(
            logits,
            target,
            weight,
            align_corners=align_corners,
            over_all_pixels=over_all_pixels,
            **options,
        )
    assert same == loss


@pytest.mark.usefixtures("by_kernels")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 5, 3, 4, device=DEVICE).to(dtype).requires_grad_()
    target = torch.randint(0, 5, (1, 12, 16), device=DEVICE)
    loss, expected = (
        ops.upsample_cross_entropy(logits, target),
        F.cross_entropy(interpolate(logits.float(), (12, 16)), target),
    )
    torch.testing.assert_close(loss, expected)
    (gradient,), (wanted,) = (
        torch.autograd.grad(loss, logits),
        torch.autograd.grad(expected, logits),
    )
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, wanted)
    assert torch.equal(
        ops.upsample_argmax(logits, (12, 16)), interpolate(logits.float(), (12, 16)).argmax(1)
    )


@pytest.mark.usefixtures("by_kernels")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_counts_where_it_is_seen(value: float) -> None:
    logits = torch.randn(1, 3, 4, 4, device=DEVICE)
    logits[0, 0, 2, 2] = value
    target = torch.zeros(1, 16, 16, dtype=torch.int64, device=DEVICE)
    assert not ops.upsample_cross_entropy(logits, target).isfinite()
    target[:, 4:] = 255
    expected = F.cross_entropy(interpolate(logits, (16, 16)), target, ignore_index=255)
    torch.testing.assert_close(ops.upsample_cross_entropy(logits, target), expected)
    logits[0, :, 0, 0] = float("-inf")  # one whole block of classes
    assert ops.upsample_cross_entropy(logits, target).isnan()


@pytest.mark.usefixtures("by_kernels")
@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_without_labels_costs_nothing(batch: int) -> None:
    logits = torch.randn(batch, 3, 2, 2, device=DEVICE, requires_grad=True)
    loss = ops.upsample_cross_entropy(logits, torch.full((batch, 8, 8), 255, device=DEVICE))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
    assert ops.upsample_argmax(logits, (8, 8)).shape == (batch, 8, 8)


@pytest.mark.usefixtures("by_kernels")
@pytest.mark.skipif(
    DEVICE.type == "cuda",
    reason="reason: on a CUDA device it ends the process, as PyTorch's own does",
)
def test_a_target_outside_the_classes_is_refused() -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        ops.upsample_cross_entropy(torch.zeros(1, 3, 4, 4), torch.full((1, 16, 16), 7))


@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("by_kernels")
def test_sum_is_the_sum_of_the_upsampled_maps(dtype: torch.dtype) -> None:
    levels = [
        torch.randn(2, 40, h, w, device=DEVICE).to(dtype) for h, w in ((5, 18), (3, 7), (2, 2))
    ]
    copies = [level.clone() for level in levels]
    expected = sum(interpolate(level.double(), (5, 18)) for level in levels)
    with torch.no_grad():
        total = ops.upsample_sum(levels)
    tolerance = 1e-12 if dtype == torch.double else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(total.double(), expected, rtol=tolerance, atol=tolerance)
    assert total.dtype == dtype
    assert all(map(torch.equal, levels, copies))


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_kernels_that_agree_are_taken(autocast: bool) -> None:
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
        assert triton.agrees_on.__wrapped__(DEVICE)


def test_kernels_that_fail_are_replaced_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> Tensor:
        return right(*args) + 1

    right = kernels.argmax
    monkeypatch.setattr(kernels, "argmax", wrong)
    with pytest.warns(UserWarning, match=r"slower implementations are used\. AssertionError"):
        assert not triton.agrees_on.__wrapped__(DEVICE)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from segformer.ops import triton_kernels as kernels

for name, constants in {
    "_argmax": dict(pixels=16, at_once=32),
    "_cross_entropy": dict(smooth=True, pixels=16, at_once=32),
    "_gradient": dict(pixels=8, at_once=32),
    "_add_upsampled": dict(pixels=16, at_once=32),
}.items():
    kernel = getattr(kernels, name)
    types = dict.fromkeys(constants, "constexpr")
    for kind, arguments in {
        "*bf16": "logits x out coarse",
        "*i64": "labels low_y low_x target first_row first_column",
        "*fp32": "shares_y shares_x share spread spread_sum loss log_sum gradient",
    }.items():
        types |= dict.fromkeys(arguments.split(), kind)
    signature = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places)
    for capability in (80, 90):
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        print(name, capability, len(compiled.asm["cubin"]))
"""


def test_they_compile_to_machine_code(tmp_path: Any) -> None:
    """For an A100 and an H100, without one: the interpreter accepts more than the compiler."""
    if version("triton").startswith("3.2."):
        pytest.skip("reason: Triton 3.2 describes a kernel to its compiler in another way")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 8
