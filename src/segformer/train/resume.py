"""Resuming an interrupted run: how checkpoints are written, and how the newest one is found."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from segformer.train.folders import CHECKPOINTS, Runs


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, and renames it once it is complete on the disk.

    A run that is killed while it writes leaves the previous file intact.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint.

        Raises:
            OSError: If the file cannot be written; no part of it is left.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(".*.ckpt.part"):  # of a run that was killed while it wrote
            left.unlink(missing_ok=True)
        partial = path.with_name(f".{path.name}.part")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError | RuntimeError):  # PyTorch's error for a full disk
                raise OSError(
                    f"cannot write the checkpoint {str(path)!r} ({error}); earlier ones are whole: "
                    "make room and resume"
                ) from error
            raise


class Resumable(ModelCheckpoint):
    """Saves the state of a run for resuming, at regular steps and at SIGTERM or Ctrl-C.

    The newest two states are kept. A state is saved after an optimizer step, or after the
    validation that follows this step. After a signal the run completes the current step, saves its
    state and exits. After a second signal it stops at once, without a checkpoint.

    Args:
        every_n_train_steps: Number of optimizer steps between two states.

    Raises:
        ValueError: If ``every_n_train_steps`` is below 1.
    """

    def __init__(self, every_n_train_steps: int = 200) -> None:
        if every_n_train_steps < 1:
            raise ValueError(
                f"resume.every_n_train_steps={every_n_train_steps}; give at least 1, and more than "
                "the run has for no state but at a signal"
            )
        super().__init__(
            filename="resume-{step}",
            monitor="step",
            mode="max",
            save_top_k=2,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.signal = 0  # number of the signal that stops the run
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            self.signal = 0
            self._handlers = {
                number: signal.signal(number, self._note)
                for number in (signal.SIGTERM, signal.SIGINT)
            }

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        self._give_handlers_back()
        rank_zero_info(
            "stopping after this step; a second signal stops at once, without a checkpoint"
        )

    def _give_handlers_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_handlers_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves nothing: a run cannot continue from the middle of a step."""
        self._give_handlers_back()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop: Any = trainer.fit_loop
        if not loop._should_accumulate() and not loop.epoch_loop._should_check_val_fx(
            loop._data_fetcher
        ):
            self._save_between_steps(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (
            trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and not trainer.fit_loop._should_accumulate()
        ):
            self._save_between_steps(trainer)

    def _save_between_steps(self, trainer: Trainer) -> None:
        stop = trainer.strategy.reduce_boolean_decision(bool(self.signal), all=False)
        due = trainer.global_step % self._every_n_train_steps == 0
        if (due or stop) and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        if stop:
            rank_zero_info(f"stopped at step {trainer.global_step}; go on with --ckpt_path last")
            raise SystemExit(128 + (self.signal or signal.SIGTERM))  # as a shell reports a signal


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint of a folder that can be read; warns of those that cannot."""
    for path in sorted(
        folder.glob("*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True
    ):
        try:
            read_checkpoint(path)
        except ValueError as error:
            rank_zero_warn(f"{error}; falling back to the one before it")
        else:
            return path
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint; its tensors are mapped, not read.

    Raises:
        ValueError: If the file is truncated or is no checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a truncated file raises errors of many classes
        raise ValueError(
            f"the checkpoint {str(path)!r} is broken ({type(error).__name__})"
        ) from error


def difference(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Returns how weights of a checkpoint differ in name or shape, and the cure; empty if not.

    Args:
        state: The weights of the checkpoint.
        own: Those of the network or task that would load them.
    """
    cure = "give the config.yaml of its run"
    if not state:
        return f"it has no network that segments, as one of segformer pretrain; {cure}"
    if any(".lora_A." in key for key in state) != any(".lora_A." in key for key in own):
        return f"one of them has the adapters of model.lora; {cure}"
    lists = {
        "missing weights": own.keys() - state.keys(),
        "unexpected weights": state.keys() - own.keys(),
        "weights of another shape": {
            key for key in own.keys() & state.keys() if own[key].shape != state[key].shape
        },
    }
    differences = [
        f"{what}: {len(keys)}, such as {', '.join(sorted(keys)[:3])}"
        for what, keys in lists.items()
        if keys
    ]
    return f"{'; '.join(differences)}; {cure}" if differences else ""


def best_checkpoint(newest: Path, monitor: str | None = None) -> Path | None:
    """Returns the best checkpoint of a run, None before the first validation.

    Args:
        newest: The newest checkpoint of the run, which names the best.
        monitor: The score by which it is the best; callbacks of the user may have others.
    """
    callbacks = read_checkpoint(newest)["callbacks"].items()
    states = [state for key, state in callbacks if key.startswith("ModelCheckpoint")]
    own = [state for state in states if state.get("monitor") == monitor] or states
    named = [Path(state["best_model_path"]) for state in reversed(own) if state["best_model_path"]]
    # Beside the newest, if the run's folder was moved, or where a callback of the user has it.
    paths = [path for best in named for path in (newest.with_name(best.name), best)]
    return next((path for path in paths if path.is_file()), None)


def find_checkpoint(
    ckpt_path: str,
    runs: Path,
    folders: Sequence[Path] | None = None,
    monitor: str | None = None,
) -> Path | None:
    """Returns the checkpoint that ``--ckpt_path`` names, None if no run has one yet.

    Args:
        ckpt_path: Path of a file; or ``last`` or ``best``, for the newest run with a checkpoint.
        runs: Folder of the runs.
        folders: Folders of the runs, the newest first; by default each ``version_N`` in ``runs``.
        monitor: The score by which a checkpoint is the best.

    Raises:
        FileNotFoundError: If the file does not exist, or the newest run has no best checkpoint.
    """
    if ckpt_path not in ("last", "best"):
        if not Path(ckpt_path).is_file():
            raise FileNotFoundError(
                f"no checkpoint {ckpt_path!r}; --ckpt_path last finds the newest one of the newest "
                f"run in {str(runs)!r}"
            )
        return Path(ckpt_path)
    folders = Runs(runs, None).folders() if folders is None else folders
    newest = next(
        (path for folder in folders if (path := newest_checkpoint(folder / CHECKPOINTS))), None
    )
    if newest is None or ckpt_path == "last":
        return newest
    best = best_checkpoint(newest, monitor)
    if best is None:
        raise FileNotFoundError(
            f"--ckpt_path best: the newest run, {str(newest.parent.parent)!r}, has no best "
            "checkpoint, as it was not validated yet; use --ckpt_path last"
        )
    return best
