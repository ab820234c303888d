"""Runs that survive interruptions: checkpoints that are whole or absent, and the way back to the newest of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and only then into it: what was there before is there until then."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write it.

        Raises:
            OSError: naming the file, when it cannot be written; nothing of it is left then.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(".*.ckpt.part"):  # by a run that was killed while it wrote
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
            if isinstance(error, OSError | RuntimeError):  # PyTorch's own writer tells a full disk as a RuntimeError
                raise OSError(
                    f"cannot write the checkpoint {str(path)!r} ({error}); earlier ones are whole: make room and resume"
                ) from error
            raise


class Resumable(ModelCheckpoint):
    """The run's newest two states, for resuming: every so many steps, and when it is told to stop (SIGTERM, Ctrl-C).

    Args:
        every_n_train_steps: optimizer steps between two of them.
    """

    def __init__(self, every_n_train_steps: int = 200) -> None:
        super().__init__(
            filename="resume-{step}",
            monitor="step",
            mode="max",
            save_top_k=2,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save when the run was asked to stop; after an error its state may be none to go on from."""
        if isinstance(exception, SIGTERMException | KeyboardInterrupt) and trainer.state.fn == "fit" and trainer.global_step:
            path = Path(self.dirpath or trainer.default_root_dir) / f"resume-step={trainer.global_step}.ckpt"
            trainer.save_checkpoint(path)
            rank_zero_info(f"stopped at step {trainer.global_step}; go on with --ckpt_path last")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that can be read; those that cannot are named aloud."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a truncated file raises whatever the unpickler trips over
            rank_zero_warn(f"the checkpoint {str(path)!r} is broken ({type(error).__name__}); falling back to the one before it")
        else:
            return path
    return None


def find_checkpoint(ckpt_path: str, runs: Path) -> Path | None:
    """What ``--ckpt_path`` means: a file, or with ``last`` the newest readable checkpoint of the newest of a folder's runs that has one.

    Raises:
        FileNotFoundError: when a file is named that is not there.
    """
    if ckpt_path != "last":
        if not Path(ckpt_path).is_file():
            raise FileNotFoundError(
                f"no checkpoint {ckpt_path!r}; --ckpt_path last finds the newest one of the newest run in {str(runs)!r}"
            )
        return Path(ckpt_path)
    numbers = {path: path.name.removeprefix("version_") for path in runs.glob("version_*")}
    versions = sorted((path for path, number in numbers.items() if number.isdigit()), key=lambda path: int(numbers[path]), reverse=True)
    found = (newest_checkpoint(version / "checkpoints") for version in versions)
    return next((path for path in found if path is not None), None)
