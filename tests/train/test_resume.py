"""Runs that are interrupted, and end as if they had not been."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY
from halves import Halves, halves, quiet_trainer

from segformer import SegFormer
from segformer.data.transforms import TrainTransform
from segformer.train.data import SegmentationData
from segformer.train.order import Batches, Seeded
from segformer.train.resume import AtomicCheckpointIO, find_checkpoint, newest_checkpoint
from segformer.train.task import SegmentationTask

quiet = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")


def short_fit(folder: Path, steps: int = 24) -> Path:
    """A config of a fit of seconds on generated scenes, with everything that has a state: dropout, averages, a scheduler, workers."""
    settings: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "configs" / "scenes.yaml").read_text())
    settings["data"]["init_args"].update(batch_size=2, num_workers=1)
    for split, length in (("train", 9), ("val", 2)):
        settings["data"]["init_args"][split]["init_args"].update(length=length, size=[64, 96])
    settings["data"]["init_args"]["train_transform"]["init_args"]["crop_size"] = [32, 32]
    variant = {name: list(values) if isinstance(values, tuple) else values for name, values in vars(TINY).items()}
    settings["model"]["network"]["init_args"]["backbone"] = {"class_path": "segformer.Variant", "init_args": variant}
    settings["trainer"].update(
        max_steps=steps, val_check_interval=6, check_val_every_n_epoch=None, accelerator="cpu", num_sanity_val_steps=0
    )
    settings["trainer"]["callbacks"] = [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}}]
    settings["trainer"]["logger"] = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(folder / "runs"), "name": "short"},
    }
    settings["resume"] = {"every_n_train_steps": 4}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(config: Path, *more: str) -> subprocess.Popen[bytes]:
    code = "import torch; torch.set_num_threads(1); from segformer.cli import main; main()"
    with (config.parent / "log.txt").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", code, "fit", "--config", str(config), *more], stdout=log, stderr=log)


def digest(folder: Path) -> str:
    (path,) = (folder / "runs" / "short").glob("version_*/model.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def killed_and_resumed(folder: Path, what: signal.Signals, after: float | None = None) -> str:
    """The final weights of a run that is stopped after so many seconds, or soon after its first checkpoint, and then resumed."""
    folder.mkdir()
    config = short_fit(folder)
    process = start(config)
    if after is None:
        while process.poll() is None and not list(folder.glob("runs/*/*/checkpoints/resume-*.ckpt")):
            time.sleep(0.01)
        after = 0.2
    time.sleep(after)
    process.send_signal(what)
    process.wait()
    assert start(config, "--ckpt_path", "last").wait() == 0, (folder / "log.txt").read_text()[-3000:]
    return digest(folder)


def uninterrupted(folder: Path) -> tuple[str, float]:
    folder.mkdir()
    begun = time.monotonic()
    assert start(short_fit(folder)).wait() == 0, (folder / "log.txt").read_text()[-3000:]
    return digest(folder), time.monotonic() - begun


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_ends_with_the_same_weights(what: signal.Signals, tmp_path: Path) -> None:
    expected, _ = uninterrupted(tmp_path / "whole")
    assert killed_and_resumed(tmp_path / "stopped", what) == expected
    assert "Restored all states" in (tmp_path / "stopped" / "log.txt").read_text()


@pytest.mark.slow
def test_twenty_kills_leave_twenty_identical_files(tmp_path: Path) -> None:
    expected, seconds = uninterrupted(tmp_path / "whole")
    moments = random.Random(0)
    for place in range(20):
        assert killed_and_resumed(tmp_path / str(place), signal.SIGKILL, moments.uniform(0.2, 1.0) * seconds) == expected, place


@quiet
def test_the_order_is_the_seeds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")

    def data(workers: int) -> SegmentationData:
        return SegmentationData(Halves(), Halves(2), TrainTransform((32, 32)), batch_size=4, num_workers=workers)

    torch.manual_seed(1)
    one = [batch for batch, _ in zip(data(0).train_dataloader(), range(4), strict=False)]
    torch.manual_seed(2)
    two = [batch for batch, _ in zip(data(2).train_dataloader(), range(4), strict=False)]
    for (images, labels), (others, more) in zip(one, two, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, more)
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    assert not torch.equal(next(iter(data(0).train_dataloader()))[0], one[0][0])


def test_each_process_draws_its_own_share() -> None:
    shares = [Batches(23, 2, seed=0, rank=rank, world_size=3) for rank in range(3)]
    drawn = [draw.index for share in shares for number in range(len(share)) for draw in share.batch(1, number)]
    assert len(drawn) == len(set(drawn)) == 18
    assert drawn != [draw.index for share in shares for number in range(len(share)) for draw in share.batch(2, number)]
    assert list(Batches(23, 2, 0, start=lambda: (1, 9))) == [Batches(23, 2, 0).batch(1, number) for number in (9, 10)]


def test_a_samples_random_numbers_do_not_touch_the_others() -> None:
    class Random(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(())

    state = torch.get_rng_state()
    draw = Batches(5, 1, 0).batch(0, 0)[0]
    dataset = Seeded(Random())
    assert torch.equal(dataset[draw], dataset[draw])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "version_3" / "checkpoints"
    writer = AtomicCheckpointIO()
    for step in (1, 2):
        writer.save_checkpoint({"global_step": step}, folder / f"resume-step={step}.ckpt")
        os.utime(folder / f"resume-step={step}.ckpt", (step, step))
    newest = folder / "resume-step=2.ckpt"
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"resume-step=2.ckpt' is broken .*falling back to the one before"):
        assert newest_checkpoint(folder) == folder / "resume-step=1.ckpt"
    with pytest.warns(UserWarning, match="broken"):
        assert find_checkpoint("last", tmp_path) == folder / "resume-step=1.ckpt"
    assert find_checkpoint("last", tmp_path / "nothing") is None
    (tmp_path / "version_best").mkdir()
    with pytest.warns(UserWarning, match="broken"):
        assert find_checkpoint("last", tmp_path) is not None
    assert (folder / "resume-step=1.ckpt").stat().st_mode & 0o044 == 0o044 & ~_umask()  # others may read what the umask lets them
    with pytest.raises(FileNotFoundError, match="no checkpoint 'gone.ckpt'"):
        find_checkpoint("gone.ckpt", tmp_path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, path)

    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*last.ckpt.*No space left on device.*make room and resume"):
        AtomicCheckpointIO().save_checkpoint({"global_step": 2}, path)
    assert torch.load(path, weights_only=True) == {"global_step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@quiet
def test_a_loss_that_is_no_number_names_the_batchs_images(tmp_path: Path) -> None:
    task = SegmentationTask(SegFormer(TINY, num_classes=2))
    with torch.no_grad():
        task.network.decode_head.classifier.bias.fill_(torch.nan)
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan at step 0, batch 0 of epoch 0; its images: sample \d+, sample .*learning rate"
    ):
        quiet_trainer(tmp_path, max_epochs=1).fit(task, halves())
