"""What a log file says of a run while it goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from halves import halves
from lightning import Trainer
from torch import Tensor

from segformer import SegFormer
from segformer.train.progress import ProgressLines, _duration
from segformer.train.task import SegmentationTask

pytestmark = pytest.mark.filterwarnings("ignore")


def lines(
    folder: Path,
    minutes: float,
    capsys: pytest.CaptureFixture[str],
    task: type[SegmentationTask] = SegmentationTask,
) -> list[str]:
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[ProgressLines(minutes)],
        max_epochs=2,
        accumulate_grad_batches=2,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    trainer.fit(task(SegFormer(TINY, num_classes=2)), halves())
    return [line for line in capsys.readouterr().out.splitlines() if line]


def test_a_line_a_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = lines(tmp_path, 60, capsys)
    assert [
        re.sub(r"[\d.]+ min.*", "…", re.sub(r"(loss|mIoU) [\d.]+", r"\1 …", line))
        for line in printed
    ] == [
        "step 2 of 4, loss …, mIoU … %, …",
        "step 4 of 4, loss …, mIoU … %, …",
    ]
    assert printed[-1].endswith("0 min 0 s left")


def test_a_line_every_few_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = lines(tmp_path, 0, capsys)
    assert sum(line.startswith("step ") for line in printed) == 8 + 2
    assert "validation, batch 2 of 3" in printed


def test_the_loss_is_the_batchs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the half of it that a step of two batches takes of each."""
    losses: list[float] = []

    class Task(SegmentationTask):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            losses.append(float(loss := super().training_step(batch, batch_idx)))
            return loss

    printed = [line for line in lines(tmp_path, 0, capsys, Task) if line.startswith("step ")]
    assert re.findall(r"loss ([\d.]+)", printed[0]) == [f"{losses[0]:.4f}"]


def test_durations() -> None:
    assert [_duration(seconds) for seconds in (59.6, 3599, 3600, 90061)] == [
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "25 h 1 min",
    ]
