"""A training step reads no value from the device, which would wait until it has been computed.

On the meta device there is no value to read: PyTorch raises an error.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from halves import Halves, quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from segformer import SegFormer
from segformer.data.transforms import TrainTransform
from segformer.data.unlabelled import Views
from segformer.losses import OHEM, CrossEntropy, Dice, Focal, Lovasz, Sum
from segformer.train.averaging import Average
from segformer.train.consistency import Consistency
from segformer.train.data import SegmentationData
from segformer.train.distillation import ChannelWise, Distillation, FeatureMaps
from segformer.train.optim import Muon, OfficialAdamW
from segformer.train.task import SegmentationTask

LOSSES: dict[str, partial[nn.Module]] = {
    "cross-entropy": partial(CrossEntropy, [1.0, 2.0, 3.0], label_smoothing=0.1),
    "official": partial(CrossEntropy, over_all_pixels=True),
    "OHEM": partial(OHEM, weight=[1.0, 2.0, 3.0]),
    "Dice": Dice,
    "Lovász": partial(Lovasz, per_image=True),
    "Focal": partial(Focal, weight=[1.0, 2.0, 3.0]),
}


def test_the_meta_device_has_no_values() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.ones((), device="meta").isfinite())


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_waits(name: str) -> None:
    with torch.device("meta"):
        logits = torch.zeros(2, 3, 16, 16, requires_grad=True)
        target = torch.zeros(2, 64, 64, dtype=torch.long)
        Sum([LOSSES[name]()])(logits, target).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("optimizer", [OfficialAdamW, Muon])
def test_no_step_waits(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task's own step, with the teachers', the optimizer's and the average's."""
    trainer = quiet_trainer(Path(), max_steps=9, log_every_n_steps=3)
    with torch.device("meta"):
        teacher = SegFormer(TINY, num_classes=3)
        parts = {"logits": ChannelWise(), "features": FeatureMaps}
        distillation = partial(Distillation, teacher=teacher, **parts)
        network = SegFormer(TINY, num_classes=3)
        task = SegmentationTask(network, distillation=distillation, consistency=Consistency).train()
        batch = torch.zeros(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.uint8)
        inside = torch.ones(2, 64, 96, dtype=torch.bool)
        views = Views(torch.zeros(2, 3, 64, 96), torch.zeros(2, 3, 64, 96), inside, inside)
        made = optimizer(task.parameter_groups())
        average = Average(task, 0.9)
    task._trainer = trainer
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)
    for index in range(2):
        made.zero_grad()
        task.training_step((batch, views), index).backward()
        made.step()
        average.update_parameters(task)
    with pytest.raises(RuntimeError, match="meta"):
        task.training_step((batch, views), 2)  # a logging step reads the losses of all three


def ten_batches() -> SegmentationData:
    """Data with ten batches in an epoch."""
    transform = TrainTransform((32, 32), (0.9, 1.1))
    return SegmentationData(Halves(40), Halves(2), transform, batch_size=4, num_workers=0)


class Diverging(nn.Module):
    """Cross-entropy that is NaN from a call on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.loss, self.first, self.calls = CrossEntropy(), first, 0

    def forward(self, logits: Tensor, *args: Any) -> Tensor:
        self.calls += 1
        loss: Tensor = self.loss(logits, *args)
        return loss * (torch.nan if self.calls > self.first else 1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("every", "stop", "calls"),
    [
        (3, {"max_steps": 50}, 6),  # at the second logging step
        (50, {"max_steps": 50, "val_check_interval": 5, "check_val_every_n_epoch": None}, 5),
        (50, {"max_epochs": 9}, 10),  # at the epoch's end
    ],
)
def test_a_loss_on_a_gpu_is_checked_later_and_named_as_on_a_cpu(
    every: int,
    stop: dict[str, Any],
    calls: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a logging step, a validation or the end of an epoch, and before a checkpoint."""
    monkeypatch.setattr("segformer.train.base.is_on_cpu", lambda x: False)
    task = SegmentationTask(SegFormer(TINY, num_classes=2), Diverging(4))
    trainer = quiet_trainer(tmp_path, log_every_n_steps=every, **stop)
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan at step 4, batch 4 of epoch 0; its images: samp"
    ):
        trainer.fit(task, ten_batches())
    assert isinstance(task.loss, Diverging)
    assert task.loss.calls == calls


@pytest.mark.filterwarnings("ignore")
def test_no_checkpoint_is_written_after_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segformer.train.base.is_on_cpu", lambda x: False)
    task = SegmentationTask(SegFormer(TINY, num_classes=2), Diverging(4))
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3, save_top_k=-1)
    trainer = quiet_trainer(tmp_path, max_steps=9, log_every_n_steps=50)
    trainer.callbacks.append(saving)
    with pytest.raises(FloatingPointError, match="step 4"):
        trainer.fit(task, ten_batches())
    assert len(list((tmp_path / "saved").iterdir())) == 1
