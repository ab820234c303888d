"""Mix-FFN in strips in training: what it keeps, and every kind of differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import randomized
from torch import Tensor, nn

from segformer import SegFormer
from segformer.networks.mit import MixFFN
from segformer.ops import memory, plain


@pytest.fixture(autouse=True)
def two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of two rows of the maps below."""
    monkeypatch.setattr(memory, "PIECE", 2 * 2 * 5 * 8 * 8)


@pytest.fixture
def ffn() -> MixFFN:
    return randomized(MixFFN(2, 8, nn.GELU())).double().train()


def maps() -> Tensor:
    return torch.randn(2, 7, 5, 2, dtype=torch.double, requires_grad=True)


def gradients(ffn: nn.Module, x: Tensor) -> list[Tensor | None]:
    leaves = [x, *ffn.parameters()]
    d = torch.linspace(-1, 1, 2 * 7 * 5 * 2, dtype=torch.double).view(2, 7, 5, 2)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return list(torch.autograd.grad(ffn(x), wanted, d.to(x.dtype)))


def kept(function: Any, *args: Any) -> int:
    """Bytes that a call keeps for the backward pass."""
    storages: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        result = function(*args)
    del result
    return sum(storages.values())


def test_only_the_input_and_the_weights_are_kept(ffn: MixFFN) -> None:
    x = maps()
    weights = sum(p.nbytes for p in ffn.parameters())
    assert kept(ffn, x) == x.nbytes + weights
    with plain():
        assert kept(ffn, x) > 3 * 4 * x.nbytes  # hidden maps are four times as wide


def test_derivatives_are_those_of_finite_differences(ffn: MixFFN) -> None:
    x = torch.randn(1, 4, 5, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(ffn, x)
    assert torch.autograd.gradgradcheck(ffn, x)


def test_second_derivatives_of_the_weights(ffn: MixFFN) -> None:
    """A penalty on the gradient of the input, which depends on all weights but the last bias."""

    def penalty() -> list[Tensor]:
        x = torch.linspace(-1, 1, 140, dtype=torch.double).view(2, 7, 5, 2).requires_grad_()
        (d,) = torch.autograd.grad(ffn(x).square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(d.square().sum(), list(ffn.parameters())))

    ours = penalty()
    with plain():
        torch.testing.assert_close(ours, penalty(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("frozen", ["fc1", "dwconv", "fc2", "input", "but fc2.bias"])
def test_parts_may_be_frozen(ffn: MixFFN, frozen: str) -> None:
    x = maps().detach().requires_grad_(frozen in ("fc1", "dwconv", "fc2"))
    if frozen == "but fc2.bias":
        ffn.requires_grad_(False).fc2.bias.requires_grad_()
    elif frozen != "input":
        getattr(ffn, frozen).requires_grad_(False)
    ours = gradients(ffn, x)
    with plain():
        torch.testing.assert_close(ours, gradients(ffn, x), rtol=1e-9, atol=1e-10)


def test_layers_may_have_no_bias(ffn: MixFFN) -> None:
    for layer in (ffn.fc1, ffn.dwconv, ffn.fc2):
        layer.bias = None
    x = maps()
    ours = gradients(ffn, x)
    with plain():
        torch.testing.assert_close(ours, gradients(ffn, x), rtol=1e-9, atol=1e-10)


def test_a_parameters_hook_runs_once(ffn: MixFFN) -> None:
    calls = []
    ffn.fc1.weight.register_hook(lambda gradient: calls.append(gradient))
    ffn(maps()).sum().backward()
    assert len(calls) == 1
    torch.testing.assert_close(calls[0], ffn.fc1.weight.grad)


def test_autocast_holds_in_the_backward_pass(ffn: MixFFN) -> None:
    """As PyTorch's own checkpoints: the strips are computed again in the same precision."""
    ffn, x = ffn.float(), maps().detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = ffn(x)
    y.float().sum().backward()
    seen, x.grad = [x.grad, *(p.grad for p in ffn.parameters())], None
    ffn.zero_grad()
    with plain(), torch.autocast("cpu", torch.bfloat16):
        y = ffn(x)
    y.float().sum().backward()
    expected = [x.grad, *(p.grad for p in ffn.parameters())]
    torch.testing.assert_close(seen, expected, rtol=0.05, atol=0.05)
    assert not torch.equal(seen[0], torch.autograd.grad(ffn(x).sum(), x)[0])


def test_half_precision_adds_strips_in_float32(ffn: MixFFN) -> None:
    ffn, x = ffn.bfloat16(), torch.ones(1, 400, 5, 2, dtype=torch.bfloat16, requires_grad=True)
    ffn(x).sum().backward()
    assert ffn.fc2.bias.grad is not None
    assert ffn.fc2.bias.grad.tolist() == [2000, 2000]  # in bfloat16, 512 + 1 is 512


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of PyTorch itself
def test_transforms_of_functions_see_the_plain_definition(ffn: MixFFN) -> None:
    x = maps().detach()
    jacobian = torch.func.jacrev(lambda x: ffn(x).sum((1, 2, 3)))(x)
    torch.testing.assert_close(
        jacobian, torch.autograd.functional.jacobian(lambda x: ffn(x).sum((1, 2, 3)), x)
    )
    _, tangent = torch.func.jvp(ffn, (x,), (torch.ones_like(x),))
    _, expected = torch.autograd.functional.jvp(ffn, x, torch.ones_like(x))
    torch.testing.assert_close(tangent, expected)


def test_a_step_of_a_model_is_the_same_either_way(tiny: SegFormer) -> None:
    """With checkpoints of blocks, too."""
    model = tiny.double().train()
    images = torch.randn(2, 3, 64, 96, dtype=torch.double)

    def step() -> list[Tensor | None]:
        torch.manual_seed(0)
        model.zero_grad()
        model(images).square().mean().backward()
        return [p.grad for p in model.parameters()]

    ours = step()
    with plain():
        torch.testing.assert_close(ours, step(), rtol=1e-8, atol=1e-10)
    model.backbone.set_grad_checkpointing()
    torch.testing.assert_close(ours, step(), rtol=1e-10, atol=1e-12)
