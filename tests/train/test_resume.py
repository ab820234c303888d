"""Runs that are interrupted, and end as if they had not been."""

from __future__ import annotations

import copy
import errno
import hashlib
import os
import random
import signal
import time
from contextlib import nullcontext
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import yaml
from conftest import TINY
from halves import Halves, halves, quiet_trainer, write_folder
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

from segformer import SegFormer
from segformer.data.mixing import ClassMix, CutMix
from segformer.data.transforms import TrainTransform
from segformer.train.averaging import EMA
from segformer.train.data import FolderData, SegmentationData
from segformer.train.optim import Muon, OfficialAdamW
from segformer.train.order import Batches, Seeded
from segformer.train.resume import AtomicCheckpointIO, Resumable, find_checkpoint, newest_checkpoint
from segformer.train.task import SegmentationTask

quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*number of training batches"
)


def short_fit(folder: Path, steps: int = 24) -> Path:
    """A config of a short fit with dropout, averages, a scheduler and workers."""
    settings: dict[str, Any] = yaml.safe_load(
        (Path(__file__).parents[2] / "configs" / "scenes.yaml").read_text()
    )
    settings["data"]["init_args"].update(batch_size=2, num_workers=1)
    for split, length in (("train", 9), ("val", 2)):
        settings["data"]["init_args"][split]["init_args"].update(length=length, size=[64, 96])
    settings["data"]["init_args"]["train_transform"]["init_args"]["crop_size"] = [32, 32]
    variant = {
        name: list(values) if isinstance(values, tuple) else values
        for name, values in vars(TINY).items()
    }
    settings["model"]["network"]["init_args"]["backbone"] = {
        "class_path": "segformer.Variant",
        "init_args": variant,
    }
    settings["trainer"].update(
        max_steps=steps,
        val_check_interval=6,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        num_sanity_val_steps=0,
    )
    settings["trainer"]["callbacks"] = [
        {"class_path": "segformer.train.averaging.EMA", "init_args": {"decay": 0.9}}
    ]
    settings["trainer"]["logger"] = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(folder / "runs"), "name": "short"},
    }
    settings["resume"] = {"every_n_train_steps": 4}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(config: Path, *more: str) -> ForkServerProcess:
    code = "import torch; torch.set_num_threads(1); from segformer.cli import main; main()"
    return processes.start(code, "fit", "--config", config, *more, output=config.parent / "log.txt")


def finish(process: ForkServerProcess, folder: Path) -> None:
    process.join()
    assert process.exitcode == 0, (folder / "log.txt").read_text()[-3000:]


def digest(folder: Path) -> str:
    (path,) = (folder / "runs" / "short").glob("version_*/model.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def killed_and_resumed(
    folder: Path, what: signal.Signals, after: float | None = None, *more: str
) -> str:
    """The final weights of a run that is stopped, after a time or a checkpoint, then resumed."""
    folder.mkdir()
    config = short_fit(folder)
    more = tuple(option.format(folder=folder) for option in more)
    process = start(config, *more)
    if after is None:
        while process.is_alive() and not list(folder.glob("runs/*/*/checkpoints/resume-*.ckpt")):
            time.sleep(0.01)
        after = 0.2
    time.sleep(after)
    if process.is_alive() and process.pid:
        os.kill(process.pid, what)
    process.join()
    finish(start(config, *more, "--ckpt_path", "last"), folder)
    return digest(folder)


def uninterrupted(folder: Path, *more: str) -> tuple[str, float]:
    folder.mkdir()
    begun = time.monotonic()
    finish(start(short_fit(folder), *(option.format(folder=folder) for option in more)), folder)
    return digest(folder), time.monotonic() - begun


@pytest.mark.parametrize(
    "what", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_stopped_run_ends_with_the_same_weights(what: signal.Signals, tmp_path: Path) -> None:
    expected, _ = uninterrupted(tmp_path / "whole")
    assert killed_and_resumed(tmp_path / "stopped", what) == expected
    assert "Restored all states" in (tmp_path / "stopped" / "log.txt").read_text()


def test_a_run_whose_first_weights_are_gone_is_resumed(tmp_path: Path) -> None:
    """The weights are of other classes, so that the classifier is new and random."""
    config, weights = short_fit(tmp_path, steps=8), tmp_path / "first.safetensors"
    SegFormer(TINY, num_classes=2).save(weights)
    settings = yaml.safe_load(config.read_text())
    settings["model"]["network"] = {
        "class_path": "segformer.Pretrained",
        "init_args": {"source": str(weights), "layout": "native"},
    }
    config.write_text(yaml.safe_dump(settings))
    finish(start(config), tmp_path)
    expected = digest(tmp_path)
    weights.unlink()
    (checkpoint,) = tmp_path.glob("runs/short/*/checkpoints/resume-*4.ckpt")
    finish(start(config, f"--ckpt_path={checkpoint}"), tmp_path)
    assert digest(tmp_path) == expected


OTHER_CHECKPOINTS = (
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.every_n_train_steps=1",
    "--trainer.callbacks.save_top_k=-1",
)


def test_the_best_is_that_of_validation_beside_other_checkpoints(tmp_path: Path) -> None:
    """The best is the one of the fewest steps here, so that it is not the last."""
    fewest = ("--checkpoint.monitor=step", "--checkpoint.mode=min")
    expected, _ = uninterrupted(tmp_path / "one", *fewest)
    found, _ = uninterrupted(tmp_path / "two", *fewest, *OTHER_CHECKPOINTS)
    assert found == expected
    names = [
        find_checkpoint("best", tmp_path / name / "runs" / "short", monitor="step")
        for name in ("one", "two")
    ]
    assert [path and path.stem.removesuffix("-v1") for path in names] == ["epoch=1-step=6"] * 2


TWO_LOGGERS = (
    "--trainer.logger+=lightning.pytorch.loggers.CSVLogger",
    "--trainer.logger.save_dir={folder}/other",
)
EPOCHS = (
    "--trainer.max_steps=-1",
    "--trainer.max_epochs=6",
    "--trainer.val_check_interval=1.0",
    "--trainer.check_val_every_n_epoch=1",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [(), EPOCHS, (*EPOCHS, "--trainer.accumulate_grad_batches=3", *TWO_LOGGERS)],
    ids=["steps", "epochs", "accumulation"],
)
def test_twenty_kills_leave_twenty_identical_files(more: tuple[str, ...], tmp_path: Path) -> None:
    expected, seconds = uninterrupted(tmp_path / "whole", *more)
    moments = random.Random(0)
    for place in range(20):
        moment = moments.uniform(0.2, 1.0) * seconds
        assert (
            killed_and_resumed(tmp_path / str(place), signal.SIGKILL, moment, *more) == expected
        ), place


class Seen(Callback):
    """What a run trained on, and the scores of its validations."""

    def __init__(self) -> None:
        self.batches: list[float] = []
        self.scores: list[tuple[int, float]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch[0].sum().item())

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.scores.append((trainer.global_step, float(trainer.callback_metrics["val/miou"])))


class Signal(Callback):
    """Tells the run to stop while it trains on a batch, or during the first validation after it."""

    def __init__(self, batch: int, number: signal.Signals, validating: bool = False) -> None:
        self.batch, self.number, self.validating = batch, number, validating

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch and not self.validating:
            signal.raise_signal(self.number)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 >= self.batch and self.validating:
            signal.raise_signal(self.number)
            self.validating = False
            self.batch = -1


class Die(Callback):
    """Ends the process's run without a word, before a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            raise RuntimeError("killed")


def fit(folder: Path, *interruption: Callback, workers: int = 0, **options: Any) -> tuple[Any, ...]:
    """The weights, the batches and the best score of a run, or of its rest."""
    seed_everything(0)
    seen, best = Seen(), ModelCheckpoint(folder, monitor="val/miou", mode="max", save_last=True)
    resume = Resumable(3)
    resume.dirpath = str(folder)
    task = SegmentationTask(SegFormer(TINY, num_classes=2, dropout=0.1, drop_path=0.1))
    data = SegmentationData(
        Halves(18), Halves(2, seed=1), TrainTransform((32, 32)), batch_size=4, num_workers=workers
    )
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[
            seen,
            EMA(0.9),
            best,
            resume,
            *interruption,
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        use_distributed_sampler=False,
        **options,
    )
    checkpoint = newest_checkpoint(folder)
    with pytest.raises((SystemExit, RuntimeError)) if interruption else nullcontext():
        trainer.fit(task, data, ckpt_path=checkpoint and str(checkpoint))
    return task.network.state_dict(), seen, best.best_model_score


# These run with the slow tests only, as each takes ten seconds.
LONG_STOPS = (
    *("the end of an epoch", "part of an epoch", "before a validation", "overfit_batches"),
    "Ctrl-C",
)
STOPS: dict[str, tuple[dict[str, Any], list[Callback]]] = {
    "max_epochs": ({"max_epochs": 3}, [Signal(6, signal.SIGTERM)]),
    "the end of an epoch": ({"max_epochs": 3}, [Signal(8, signal.SIGTERM)]),
    "workers": ({"max_epochs": 3, "workers": 2}, [Signal(5, signal.SIGTERM)]),
    "Ctrl-C": ({"max_epochs": 3}, [Signal(6, signal.SIGINT)]),
    "an accumulation window": (
        {"max_epochs": 3, "accumulate_grad_batches": 3},
        [Signal(6, signal.SIGTERM)],
    ),
    "gradients half accumulated": (
        {
            "max_steps": 5,
            "accumulate_grad_batches": 3,
            "val_check_interval": 5,
            "check_val_every_n_epoch": None,
        },
        [Die(6)],
    ),
    "a validation": ({"max_epochs": 3}, [Signal(8, signal.SIGTERM, validating=True)]),
    "before a validation": (
        {"max_steps": 11, "val_check_interval": 3, "check_val_every_n_epoch": None},
        [Signal(6, signal.SIGTERM)],
    ),
    "part of an epoch": ({"max_epochs": 3, "limit_train_batches": 3}, [Signal(5, signal.SIGTERM)]),
    "overfit_batches": ({"max_epochs": 3, "overfit_batches": 2}, [Signal(3, signal.SIGTERM)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG_STOPS else []) for name in STOPS],
)
def test_a_run_stopped_in_the_midst_of_something_ends_the_same(name: str, tmp_path: Path) -> None:
    options, interruption = STOPS[name]
    weights, seen, best = fit(tmp_path / "whole", **options)
    _, first, _ = fit(tmp_path / "stopped", *copy.deepcopy(interruption), **options)
    resumed, second, best_of_both = fit(tmp_path / "stopped", **options)
    torch.testing.assert_close(resumed, weights, rtol=0, atol=0)
    assert seen.batches[-len(second.batches) :] == second.batches
    assert first.batches == seen.batches[: len(first.batches)]
    assert len(first.batches) + len(second.batches) >= len(seen.batches) > len(second.batches)
    assert {**dict(first.scores), **dict(second.scores)} == dict(seen.scores)
    assert best_of_both == best


@pytest.mark.filterwarnings("ignore")
def test_overfit_batches_are_the_same_in_every_epoch(tmp_path: Path) -> None:
    _, seen, _ = fit(tmp_path, max_epochs=3, overfit_batches=2)
    assert seen.batches == 3 * seen.batches[:2]
    assert seen.batches[0] != seen.batches[1]


def test_a_changing_accumulation_is_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(
        tmp_path, max_epochs=3, callbacks=[GradientAccumulationScheduler({0: 1, 1: 3})]
    )
    with pytest.raises(ValueError, match=r"leave GradientAccumulationScheduler out, and set train"):
        trainer.fit(SegmentationTask(SegFormer(TINY, num_classes=2)), halves())


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_not_resumed_with_other_batches(tmp_path: Path) -> None:
    fit(tmp_path, Signal(2, signal.SIGTERM), max_epochs=2)
    checkpoint = str(newest_checkpoint(tmp_path))
    for length, batch_size, accumulated, message in (
        (18, 2, 1, "images a step of all devices was 4 and is 2"),
        (20, 4, 1, "training images was 18 and is 20"),
        (18, 4, 2, "trainer.accumulate_grad_batches was 1 and is 2"),
    ):
        data = SegmentationData(
            Halves(length),
            Halves(2),
            TrainTransform((32, 32)),
            batch_size=batch_size,
            num_workers=0,
        )
        options: dict[str, Any] = {"accumulate_grad_batches": accumulated, "callbacks": [EMA(0.9)]}
        with pytest.raises(ValueError, match=message):
            quiet_trainer(tmp_path, max_epochs=2, **options).fit(
                SegmentationTask(SegFormer(TINY, num_classes=2)), data, ckpt_path=checkpoint
            )


def resume(folder: Path, task: SegmentationTask, epochs: int = 2, **options: Any) -> Trainer:
    """Goes on with another task from the newest checkpoint of :func:`fit`."""
    data = SegmentationData(
        Halves(18), Halves(2), TrainTransform((32, 32)), batch_size=4, num_workers=0
    )
    trainer = quiet_trainer(folder, max_epochs=epochs, **{"callbacks": [EMA(0.9)], **options})
    trainer.fit(task, data, ckpt_path=str(newest_checkpoint(folder)))
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_not_resumed_without_its_average_and_says_another_schedule(tmp_path: Path) -> None:
    fit(tmp_path, Signal(2, signal.SIGTERM), max_epochs=2)
    task = partial(SegmentationTask, SegFormer(TINY, num_classes=2))
    with pytest.raises(ValueError, match=r"without the average of its weights.*averaging\.EMA"):
        resume(tmp_path, task(), callbacks=[])
    larger = SegmentationTask(SegFormer(TINY, num_classes=3))
    with pytest.raises(ValueError, match=r"another network than .*: weights of another shape: 2,"):
        resume(tmp_path, larger)
    cosine = task(scheduler=torch.optim.lr_scheduler.CosineAnnealingLR)
    with pytest.raises(ValueError, match=r"was Poly of 8 steps and is CosineAnnealingLR of 8 st"):
        resume(tmp_path, cosine)
    with pytest.warns(UserWarning, match="schedule was Poly of 8 steps and is Poly of 12 steps"):
        longer = resume(tmp_path, task(), epochs=3)
    assert longer.global_step == 12


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_not_resumed_with_another_optimizer(tmp_path: Path) -> None:
    fit(tmp_path, Signal(2, signal.SIGTERM), max_epochs=2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"optimizer": Muon}, "the optimizer was OfficialAdamW and is Muon"),
        ({"optimizer": partial(OfficialAdamW, lr=1e-3)}, r"initial_lr .* was \[6e.* is \[0.001"),
        ({"optimizer": partial(OfficialAdamW, weight_decay=0.1)}, "weight_decay of its groups was"),
        (
            {"optimizer": lambda own: OfficialAdamW([{**g, "betas": (0.5, 0.6)} for g in own])},
            r"betas of its groups was .*0.999.* and is .*0.6",
        ),
        ({"head_lr_mult": 1.0}, r"initial_lr of its groups was \[6e-05, 6e-05, 0.0006"),
        ({"frozen": ["backbone.stages.0"]}, r"its groups had \[.*\] parameters and have \["),
    ]
    for options, message in cases:
        task = SegmentationTask(SegFormer(TINY, num_classes=2), **options)
        with pytest.raises(ValueError, match=f"resumed with another optimizer.*{message}"):
            resume(tmp_path, task)


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_not_resumed_with_other_files_or_mixing(tmp_path: Path) -> None:
    """The folder itself may have another name."""

    def fit(root: Path, checkpoint: str | None = None, **options: Any) -> Trainer:
        data = FolderData(
            *(root, Halves.classes, TrainTransform((32, 32))),
            **{"ignore_index": 11, "batch_size": 2, "num_workers": 0, **options},
        )
        trainer = quiet_trainer(tmp_path, max_steps=1 if checkpoint is None else 2)
        trainer.fit(SegmentationTask(SegFormer(TINY, num_classes=2)), data, ckpt_path=checkpoint)
        return trainer

    root = write_folder(tmp_path / "data", train=4, val=1)
    checkpoint = str(tmp_path / "last.ckpt")
    fit(root, mixing=CutMix(0.2)).save_checkpoint(checkpoint)
    for mixing, said in ((None, "None"), (ClassMix(0.2), "ClassMix"), (CutMix(0.3), "CutMix")):
        message = rf"data.mixing was CutMix\(p=0.2, alpha=1.0\) and is {said}"
        with pytest.raises(ValueError, match=message):
            fit(root, checkpoint, mixing=mixing)
    moved = root.rename(tmp_path / "moved")
    fit(moved, checkpoint, mixing=CutMix(0.2))
    for kind in ("images", "labels"):
        first, *_ = sorted((moved / kind / "train").iterdir())
        first.rename(first.with_stem("another"))
    with pytest.raises(ValueError, match=r"the digest of their files' names was \w+ and is"):
        fit(moved, checkpoint, mixing=CutMix(0.2))


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_without_the_datas_state_resumes_at_its_place(tmp_path: Path) -> None:
    """As version 0.1.0 wrote them: the place is Lightning's count of batches."""
    weights, *_ = fit(tmp_path / "whole", max_epochs=2)
    fit(tmp_path / "old", Signal(5, signal.SIGTERM), max_epochs=2)
    path = newest_checkpoint(tmp_path / "old")
    assert path is not None
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["SegmentationData"]
    torch.save(checkpoint, path)
    torch.testing.assert_close(fit(tmp_path / "old", max_epochs=2)[0], weights, rtol=0, atol=0)


@quiet
def test_the_order_is_the_seeds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")

    def data(workers: int) -> SegmentationData:
        return SegmentationData(
            Halves(), Halves(2), TrainTransform((32, 32)), batch_size=4, num_workers=workers
        )

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
    drawn = [
        draw.index
        for share in shares
        for number in range(len(share))
        for draw in share.batch(1, number)
    ]
    assert len(drawn) == len(set(drawn)) == 18
    assert drawn != [
        draw.index
        for share in shares
        for number in range(len(share))
        for draw in share.batch(2, number)
    ]
    assert list(Batches(23, 2, 0, start=lambda: (1, 9))) == [
        Batches(23, 2, 0).batch(1, number) for number in (9, 10)
    ]


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
    with pytest.warns(
        UserWarning, match=r"resume-step=2.ckpt' is broken .*falling back to the one before"
    ):
        assert newest_checkpoint(folder) == folder / "resume-step=1.ckpt"
    with pytest.warns(UserWarning, match="broken"):
        assert find_checkpoint("last", tmp_path) == folder / "resume-step=1.ckpt"
    assert find_checkpoint("last", tmp_path / "nothing") is None
    (tmp_path / "version_best").mkdir()
    with pytest.warns(UserWarning, match="broken"):
        assert find_checkpoint("last", tmp_path) is not None
    assert (
        folder / "resume-step=1.ckpt"
    ).stat().st_mode & 0o044 == 0o044 & ~_umask()  # others may read what the umask lets them
    with pytest.raises(FileNotFoundError, match="no checkpoint 'gone.ckpt'"):
        find_checkpoint("gone.ckpt", tmp_path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_full_disk_loses_no_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, path)

    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        OSError, match=r"cannot write .*last.ckpt.*No space left on device.*make room and resume"
    ):
        AtomicCheckpointIO().save_checkpoint({"global_step": 2}, path)
    assert torch.load(path, weights_only=True) == {"global_step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@quiet
def test_a_loss_that_is_no_number_names_the_batchs_images(tmp_path: Path) -> None:
    task = SegmentationTask(SegFormer(TINY, num_classes=2))
    with torch.no_grad():
        task.network.decode_head.classifier.bias.fill_(torch.nan)
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is nan at step 0, batch 0 of epoch 0; its images: sample \d+, sample .*"
        r"learning rate",
    ):
        quiet_trainer(tmp_path, max_epochs=1).fit(task, halves())
