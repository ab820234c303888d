"""Every implementation of every operator beside its plain definition, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import randomized
from torch import Tensor, nn

from segformer.networks.all_mlp import AllMLPHead, MMSegHead
from segformer.networks.convolutional import LinearHead
from segformer.networks.mit import MixFFN
from segformer.ops import OPERATORS, memory
from segformer.ops.registry import Implementation, Operator

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def maps(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]


def of_linear() -> Iterator[Arguments]:
    for bias in (True, False):
        yield (*maps((2, 5, 7, 12)), nn.Linear(12, 20, bias=bias).double()), {}


def of_mix_ffn() -> Iterator[Arguments]:
    for size in ((1, 9, 4, 4), (2, 33, 17, 4), (5, 1, 3, 4), (1, 1, 1, 4)):
        ffn = randomized(MixFFN(4, 16, nn.GELU())).double()
        yield (*maps(size), ffn.fc1, ffn.dwconv, ffn.act, ffn.fc2), {}


def of_all_mlp() -> Iterator[Arguments]:
    for channels, side in ((32, 16), (200, 40)):
        head = randomized(AllMLPHead((8, 16, 20, 24), 7, channels)).double()
        sides = [-(-side // 2**level) for level in range(4)]
        shapes = [(2, c, s, s + 1) for c, s in zip((8, 16, 20, 24), sides, strict=True)]
        layers = (head.projections, head.fuse, head.norm, head.dropout, head.classifier)
        yield (maps(*shapes), *layers), {}


def of_upsample_and_fuse() -> Iterator[Arguments]:
    head = randomized(MMSegHead((8, 8, 8), 3, 8)).double()
    yield (maps((2, 8, 9, 14), (2, 8, 5, 7), (2, 8, 3, 4)), head.fuse), {}


def of_linear_head() -> Iterator[Arguments]:
    head = randomized(LinearHead((8, 16), 3, 8)).double()
    features = maps((2, 8, 9, 14), (2, 16, 5, 7))
    yield (features, head.projections, head.fuse, head.classifier), {}


def of_upsample_sum() -> Iterator[Arguments]:
    yield (maps((2, 40, 9, 14), (2, 40, 5, 7), (2, 40, 3, 4)),), {}
    yield (maps((1, 3, 4, 4)),), {}


def of_upsample_argmax() -> Iterator[Arguments]:
    for classes, size, target, align_corners in (
        (5, (4, 6), (16, 24), False),
        (40, (5, 3), (11, 19), True),
        (2, (1, 7), (9, 9), False),
    ):
        yield (*maps((2, classes, *size)), target, align_corners), {}


def of_upsample_cross_entropy() -> Iterator[Arguments]:
    for classes, weighted, align_corners, options in (
        (3, False, False, {}),
        (40, True, True, {"label_smoothing": 0.1}),
        (5, True, False, {"over_all_pixels": True}),
    ):
        target = torch.randint(classes, (2, 11, 7))
        target[:, :3] = 255
        weight = 0.5 + torch.rand(classes, dtype=torch.double) if weighted else None
        yield (*maps((2, classes, 4, 3)), target, weight, 255, align_corners), options


EXAMPLES: dict[str, Callable[[], Iterator[Arguments]]] = {
    "linear": of_linear,
    "mix_ffn": of_mix_ffn,
    "all_mlp": of_all_mlp,
    "upsample_and_fuse": of_upsample_and_fuse,
    "linear_head": of_linear_head,
    "upsample_sum": of_upsample_sum,
    "upsample_argmax": of_upsample_argmax,
    "upsample_cross_entropy": of_upsample_cross_entropy,
}
# These record no gradient: their conditions ask for that.
WITHOUT_GRADIENT = (
    "in_strips",
    "in_groups_of_channels",
    "sum_by_triton",
    "argmax_by_triton",
    "argmax_in_strips",
    "argmax_between_cells",
)
IMPLEMENTATIONS = [
    pytest.param(made, implementation, id=f"{name}-{implementation.function.__name__}")
    for name, made in OPERATORS.items()
    for implementation in made.implementations
]


def test_every_operator_has_examples() -> None:
    assert EXAMPLES.keys() == OPERATORS.keys()


@pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero):RuntimeWarning"  # NumPy's, in Triton's interpreter
)
@pytest.mark.parametrize(("made", "implementation"), IMPLEMENTATIONS)
def test_an_implementation_is_its_plain_definition(
    made: Operator[..., Tensor],
    implementation: Implementation[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values, and gradients with respect to the maps and every parameter."""
    name = implementation.function.__name__
    if "triton" in name:
        pytest.importorskip("triton", reason="reason: Triton is not installed")
    pieces = [8 << 20] if "triton" in name else [2 << 10, 64 << 10, 8 << 20]
    for piece, (args, options) in itertools.product(pieces, EXAMPLES[made.__name__]()):
        monkeypatch.setattr(memory, "PIECE", piece)
        with torch.set_grad_enabled(name not in WITHOUT_GRADIENT):
            ours, theirs = implementation.function(*args, **options), made.plain(*args, **options)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        if ours.requires_grad:
            leaves = [x for x in flat(args) if x.requires_grad]
            d = torch.randn_like(ours)
            gradients = [torch.autograd.grad(y, leaves, d) for y in (ours, theirs)]
            torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


def flat(args: Any) -> list[Tensor]:
    """The tensors among arguments, parameters of modules included."""
    if isinstance(args, Tensor):
        return [args]
    if isinstance(args, nn.Module):
        return list(args.parameters())
    return [x for arg in args for x in flat(arg)] if isinstance(args, list | tuple) else []
