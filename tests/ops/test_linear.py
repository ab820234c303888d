"""Linear layers over maps as 1×1 convolutions, beside PyTorch's linear layers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from segformer import SegFormer
from segformer.ops.linear import convolution_is_faster, linear

LINEAR = import_module("segformer.ops.linear")  # of the same name as its operator


@pytest.fixture
def by_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every processor, in every precision and of every size."""
    monkeypatch.setattr(LINEAR, "affine_by_convolution", lambda x, weight: x.ndim == 4)


@pytest.mark.usefixtures("by_convolution")
@pytest.mark.parametrize("shape", [(2, 5, 7, 12), (2, 35, 12), (1, 1, 1, 12)], ids=str)
def test_the_convolution_is_the_linear_layer(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(12, 20).double()
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    d = torch.randn(*shape[:-1], 20, dtype=torch.double)
    ours, plain = linear(x, layer), layer(x)
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(y, [x, *layer.parameters()], d) for y in (ours, plain)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("recorded", [True, False], ids=["with gradients", "without"])
def test_a_model_is_the_same_either_way(
    tiny: SegFormer, recorded: bool, request: pytest.FixtureRequest
) -> None:
    model = tiny.double().eval()
    images = torch.randn(1, 3, 64, 96, dtype=torch.double)
    expected = model(images)
    request.getfixturevalue("by_convolution")
    with torch.set_grad_enabled(recorded):
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-12)


class Functions(TorchFunctionMode):
    """Notes which functions of PyTorch are called."""

    def __init__(self) -> None:
        self.called: set[Any] = set()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.called.add(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("by_convolution")
def test_every_product_over_a_map_is_a_convolution(tiny: SegFormer) -> None:
    with torch.no_grad(), Functions() as functions:
        tiny(torch.randn(1, 3, 64, 96))
    assert F.conv2d in functions.called
    assert F.linear not in functions.called


@pytest.mark.parametrize(
    ("capability", "vendor", "faster"),
    [
        ("AVX512", "vendor_id: AuthenticAMD", True),
        ("AVX2", "vendor_id: AuthenticAMD", False),
        ("AVX512", "vendor_id: GenuineIntel", False),
    ],
)
def test_the_rule(
    capability: str, vendor: str, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr(LINEAR, "_processor", lambda: vendor)
    assert convolution_is_faster.__wrapped__() == faster
