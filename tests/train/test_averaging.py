"""Averaged weights: by their formula, and near the trained ones after few steps."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY
from halves import halves, quiet_trainer

from segformer import SegFormer
from segformer.train.averaging import EMA, Average
from segformer.train.optim import Muon, OneCycle
from segformer.train.task import SegmentationTask


def test_the_average_is_its_formula() -> None:
    """A copy first, then a = d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n))."""
    net = torch.nn.Linear(3, 2).double()
    average = Average(net, 0.7)
    expected = torch.zeros(2, 3, dtype=torch.double)
    decays = []
    for n in range(40):
        with torch.no_grad():
            net.weight.normal_()
        average.update_parameters(net)
        decays.append(min(0.7, (1 + n) / (10 + n)) if n else 0.0)
        expected = decays[-1] * expected + (1 - decays[-1]) * net.weight.detach()
        torch.testing.assert_close(average.module.weight.detach(), expected, rtol=1e-12, atol=1e-14)
    assert decays[1] == pytest.approx(2 / 11)
    assert decays[-1] == 0.7


def test_the_average_of_16_bit_weights_has_32() -> None:
    """With --trainer.precision bf16-true, the average is made before the weights are converted."""
    net = torch.nn.Linear(3, 2)
    average = Average(net, 0.7)
    net.bfloat16()
    average.update_parameters(net)
    first = net.weight.float()
    with torch.no_grad():
        net.weight.normal_()
    average.update_parameters(net)
    expected = first * 2 / 11 + net.weight.float() * 9 / 11
    torch.testing.assert_close(average.module.weight.detach(), expected.detach())


def test_a_validation_rounds_no_average(tmp_path: Path) -> None:
    """A model of 16 bits is measured with the average rounded, which has 32 before and after."""
    task, ema = SegmentationTask(SegFormer(TINY, num_classes=2)), EMA(0.9)
    ema.setup(quiet_trainer(tmp_path, max_steps=1), task, "fit")
    assert ema._average_model is not None
    task.bfloat16()
    average = {k: x.clone() for k, x in ema._average_model.module.state_dict().items()}
    trained = {k: x.clone() for k, x in task.state_dict().items()}
    ema._swap_models(task)
    for name, tensor in task.state_dict().items():
        torch.testing.assert_close(tensor, average[name].to(tensor), rtol=0, atol=0)
    ema._swap_models(task)
    torch.testing.assert_close(dict(task.state_dict()), trained, rtol=0, atol=0)
    own = dict(ema._average_model.module.state_dict())
    torch.testing.assert_close(own, average, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_a_short_run_does_not_end_near_its_start(tmp_path: Path) -> None:
    """Thirty steps of camvid.yaml's recipe."""
    task = SegmentationTask(
        SegFormer(TINY, num_classes=2), None, partial(Muon, lr=2e-3), OneCycle, head_lr_mult=1.0
    )
    start = copy.deepcopy(dict(task.network.named_parameters()))
    trained: dict[str, torch.Tensor] = {}

    class Keeping(EMA):
        def on_train_end(  # type: ignore[override]
            self, trainer: object, pl_module: SegmentationTask
        ) -> None:
            trained.update(copy.deepcopy(dict(pl_module.network.named_parameters())))
            super().on_train_end(trainer, pl_module)  # type: ignore[arg-type]

    quiet_trainer(tmp_path, max_steps=30, callbacks=[Keeping(0.998)]).fit(task, halves())
    averaged = dict(task.network.named_parameters())
    to_end = sum((averaged[name] - trained[name]).square().sum() for name in trained).sqrt()
    moved = sum((start[name] - trained[name]).square().sum() for name in trained).sqrt()
    assert 0 < to_end < 0.3 * moved


def test_the_average_is_made_where_the_model_will_be(tmp_path: Path) -> None:
    """Lightning sets callbacks up before it moves the model."""
    trainer, ema = quiet_trainer(tmp_path, max_steps=1), EMA(0.9)
    trainer.strategy._root_device = torch.device("meta")  # type: ignore[attr-defined]
    ema.setup(trainer, SegmentationTask(SegFormer(TINY, num_classes=2)), "fit")
    assert ema._average_model is not None
    assert {x.device.type for x in ema._average_model.module.parameters()} == {"meta"}


def test_a_decay_that_keeps_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="decay=1; give a number from 0 to below 1"):
        EMA(1)
