from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import nn

from segformer import SegFormer
from segformer.train.optim import (
    Muon,
    OneCycle,
    Poly,
    WarmupCosine,
    apply_lr_mult,
    orthogonalize,
    param_groups,
)


def optimizer(lr: float = 6e-5) -> torch.optim.Optimizer:
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: set[int]) -> dict[int, float]:
    found = {}
    for step in range(max(steps) + 1):
        if step in steps:
            found[step] = scheduler.get_last_lr()[0]
        scheduler.optimizer.step()
        if step < max(steps):
            scheduler.step()
    return found


def test_groups_are_the_published_ones() -> None:
    """LayerNorms have no decay, biases have; the head has ten times the rate, BatchNorm too."""
    model = SegFormer(TINY, num_classes=3)
    adamw = apply_lr_mult(torch.optim.AdamW(param_groups(model), lr=6e-5, weight_decay=0.01))
    names = {id(p): name for name, p in model.named_parameters()}
    settings = {
        names[id(p)]: (g["lr"], g["weight_decay"]) for g in adamw.param_groups for p in g["params"]
    }
    assert settings.keys() == set(names.values())
    for name, (lr, decay) in settings.items():
        if name.startswith("decode_head"):
            assert (lr, decay) == (pytest.approx(6e-4), 0.01), name
        elif "norm" in name:
            assert (lr, decay) == (6e-5, 0.0), name
        else:
            assert (lr, decay) == (6e-5, 0.01), name


def test_poly_follows_the_published_schedule() -> None:
    """mmcv's poly policy with linear warm-up: 1,500 steps from 1e-6, multiplied with 1 - t/T."""
    total = 160_000
    expected = {
        0: 6e-5 * 1e-6,
        1: 6e-5 * (1 - 1 / total) * (1 - (1 - 1 / 1500) * (1 - 1e-6)),
        1499: 6e-5 * (1 - 1499 / total) * (1 - (1 - 1499 / 1500) * (1 - 1e-6)),
        1500: 6e-5 * (1 - 1500 / total),
        3000: 6e-5 * (1 - 3000 / total),
    }
    assert rates(Poly(optimizer(), total), set(expected)) == pytest.approx(expected, rel=1e-9)


def test_poly_ends_at_zero_and_shortens_its_warm_up_in_short_runs() -> None:
    found = rates(Poly(optimizer(1.0), 100), {10, 50, 100})
    assert found == pytest.approx({10: 0.9, 50: 0.5, 100: 0.0})


@pytest.mark.parametrize("schedule", [Poly, WarmupCosine])
def test_the_least_rate_is_at_most_that_of_a_group(schedule: Any) -> None:
    """With layer_decay, the first layers have rates below min_lr; none rises at the end."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-4, 1e-7)]
    found = schedule(torch.optim.AdamW(groups), 100, min_lr=1e-5)
    for _ in range(100):
        found.optimizer.step()
        found.step()
        assert found.get_last_lr()[1] <= 1e-7 * (1 + 1e-9)
    assert found.get_last_lr() == pytest.approx([1e-5, 1e-7])


def test_one_cycle_equals_torchs() -> None:
    """PyTorch counts its total to one past the last step, and its peak from one before."""
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer(),
        max_lr=1e-3,
        total_steps=101,
        pct_start=11 / 101,
        div_factor=25,
        final_div_factor=40,
        cycle_momentum=False,
    )
    steps = set(range(101))
    ours = OneCycle(optimizer(1e-3), 100, warmup=0.1, start=1 / 25, end=1e-3)
    assert rates(ours, steps) == pytest.approx(rates(torchs, steps), rel=1e-9)


@pytest.mark.parametrize("schedule", [OneCycle, WarmupCosine])
@pytest.mark.parametrize("warmup", [-0.1, 1.0, 500])
def test_a_warm_up_is_a_share_of_the_run(schedule: Any, warmup: float) -> None:
    with pytest.raises(ValueError, match=rf"warmup={warmup} is a share of the run; give a number"):
        schedule(optimizer(), 100, warmup=warmup)


def trained(
    make: Callable[[nn.Module], torch.optim.Optimizer], net: nn.Module
) -> dict[str, torch.Tensor]:
    """The state of a copy of the network after five steps."""
    net = copy.deepcopy(net)
    optimizer = make(net)
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.ones(7, 6, dtype=torch.double).cumsum(1)).square().mean().backward()
        optimizer.step()
    return net.state_dict()


def test_muon_moves_matrices_as_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own Muon, made to work in float64."""
    import timm.optim.muon as timms

    monkeypatch.setattr(
        timms,
        "zeropower_via_newtonschulz",
        functools.partial(timms.zeropower_via_newtonschulz, dtype=torch.float64),
    )
    net = nn.Sequential(
        nn.Linear(6, 10, bias=False), nn.GELU(), nn.Linear(10, 4, bias=False)
    ).double()
    ours = trained(lambda n: Muon(n.parameters(), lr=0.01, weight_decay=0.05), net)
    theirs = trained(
        lambda n: timms.Muon(
            n.parameters(), lr=0.01, weight_decay=0.05, nesterov=True, ns_coefficients="original"
        ),
        net,
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_muon_in_bfloat16_moves_matrices_as_pytorchs() -> None:
    net = nn.Linear(40, 24, bias=False)
    ours, theirs = copy.deepcopy(net), copy.deepcopy(net)
    muon = Muon(ours.parameters(), lr=0.01, dtype="bfloat16")
    pytorchs = torch.optim.Muon(
        theirs.parameters(), lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(3):
        gradient = torch.randn(24, 40)
        for network, optimizer in ((ours, muon), (theirs, pytorchs)):
            network.weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs.weight - net.weight).abs().max().item()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=0.02 * moved)


class Positions(nn.Module):
    """Embeddings of positions (1, N, C), as a Vision Transformer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.linspace(-1, 1, 42).view(1, 7, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.positions[0]


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(nn.LayerNorm(6), id="vectors"),
        pytest.param(Positions(), id="positions"),
        pytest.param(nn.Linear(6, 1), id="one output"),
        pytest.param(nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 6, 1, groups=6)), id="dw"),
    ],
)
def test_muon_moves_all_but_matrices_as_adamw(net: nn.Module) -> None:
    net = net.double()
    ours = trained(lambda n: Muon(n.parameters(), lr=0.01, weight_decay=0.05), net)
    adamw = trained(
        lambda n: torch.optim.AdamW(n.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.05),
        net,
    )
    torch.testing.assert_close(ours, adamw, rtol=1e-9, atol=1e-12)


def test_an_orthogonalised_matrix_has_singular_values_near_one() -> None:
    for shape in ((5, 30, 12), (5, 12, 30)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), Muon.QUINTIC, Muon.STEPS))
        assert values.min() > 0.5
        assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(2, 16, 16), (2, 40, 9), (2, 9, 40), (1, 6, 64)], ids=str)
def test_orthogonalising_is_the_published_iteration(shape: tuple[int, ...]) -> None:
    """Five times X ← a X + b X Xᵀ X + c (X Xᵀ)² X, for singular values of eight decades, too."""
    a, b, c = Muon.QUINTIC
    u, values, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    decades = {0: torch.randn(shape, dtype=torch.float64)}
    decades |= {n: (u * torch.logspace(0, -n, values.shape[-1])) @ v for n in (2, 8)}
    for number, matrices in decades.items():
        expected = []
        for x in matrices:
            x = x / x.norm()
            for _ in range(Muon.STEPS):
                gram = x @ x.T
                x = a * x + b * gram @ x + c * gram @ gram @ x
            expected.append(x)
        torch.testing.assert_close(
            orthogonalize(matrices, Muon.QUINTIC, Muon.STEPS),
            torch.stack(expected),
            rtol=0,
            atol=1e-10,
        )
        single = orthogonalize(matrices.float(), Muon.QUINTIC, Muon.STEPS)
        torch.testing.assert_close(single.double(), torch.stack(expected), rtol=0, atol=1e-3)
        if number <= 2:  # bfloat16 has eight bits
            half = orthogonalize(matrices.bfloat16(), Muon.QUINTIC, Muon.STEPS).double()
            pair = (matrix.flatten() for matrix in (half, torch.stack(expected)))
            assert nn.functional.cosine_similarity(*pair, 0) > 0.99


def test_tables_of_positions_are_no_matrices() -> None:
    """As in timm's Swin: a direct parameter, in place of a layer's weight."""
    model = SegFormer(TINY, num_classes=3)
    model.backbone.relative_position_bias_table = nn.Parameter(torch.randn(25, 4))
    groups = param_groups(model)
    (tables,) = [group for group in groups if not group.get("is_matrix", True)]
    (table,) = tables["params"]
    assert table is model.backbone.relative_position_bias_table
    before = table.detach().clone()
    table.grad = torch.randn(25, 4)
    Muon(groups, lr=0.01, weight_decay=0.0).step()
    # AdamW's first step has the size of the rate for each value.
    torch.testing.assert_close(table.detach(), before - 0.01 * table.grad.sign())


def test_muon_moves_every_parameter_of_a_segformer() -> None:
    model = SegFormer(TINY, num_classes=3)
    before = [p.clone() for p in model.parameters()]
    muon = Muon(param_groups(model), lr=0.01)
    model(
        torch.randn(2, 3, 64, 64)
    ).square().mean().backward()  # at 32 the last stage has one key, whose softmax has no gradient
    muon.step()
    assert all(not torch.equal(b, p) for b, p in zip(before, model.parameters(), strict=True))
