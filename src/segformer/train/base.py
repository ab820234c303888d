"""What all tasks and their data share: a run that is resumed ends as if it had not been stopped."""

from __future__ import annotations

import hashlib
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler, WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset

from segformer.train.optim import apply_lr_mult
from segformer.train.order import (
    Batches,
    Order,
    ResumableLoader,
    Seeded,
    Share,
    combined_seed,
    run_seed,
)
from segformer.train.resume import difference

OPTIMIZER_KEY = "optimizer_class"
GRADIENTS_KEY = "accumulated_gradients"
SCHEDULE_KEY = "schedule"
LAMBDA_SCHEDULES = ("Poly", "OneCycle", "WarmupCosine")  # functions of the step
AVERAGED_KEY = "current_model_state"  # of Lightning's WeightAveraging: the weights before it


@dataclass(frozen=True)
class Place:
    """Where in a run a batch is.

    Args:
        step: Number of optimizer steps before it.
        epoch: Its epoch.
        in_epoch: Its number in the epoch.
        in_run: Its number in the run.
    """

    step: int
    epoch: int
    in_epoch: int
    in_run: int


class ResumableTask(LightningModule):
    """Base of the tasks: seeds, checks of the loss, accumulated gradients, optimizer and schedule.

    A subclass returns :meth:`checked` of its loss from ``training_step``. Its random numbers come
    from PyTorch's global generators.

    Args:
        optimizer: Makes the optimizer from parameter groups.
        scheduler: Makes the schedule from the optimizer and the run's number of optimizer steps.
    """

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler],
    ) -> None:
        super().__init__()
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        # Gradients of a run that is resumed between two batches of an optimizer step.
        self._accumulated: dict[str, Tensor] = {}
        # The optimizer's name and groups, and the schedule, in a checkpoint that is loaded.
        self._resumed: tuple[str | None, list[dict[str, Any]]] | None = None
        self._schedule: str | None = None
        self._resumed_schedule: str | None = None
        self._unchecked: list[tuple[Tensor, Place]] = []  # losses

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the groups of trained parameters; ``lr_mult`` is a factor of the rate."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds dropout by the run's seed, the batch's number in the run and the process."""
        torch.manual_seed(
            combined_seed(run_seed(), self.trainer.fit_loop.total_batch_idx, self.global_rank)
        )

    def checked(self, loss: Tensor, batch_idx: int) -> Tensor:
        """Returns the loss of a training step, logged; checks that it is finite.

        On a CPU it is checked at once. On other devices, where reading it waits for the device, it
        is checked at the next logging step, validation, checkpoint or end of an epoch.

        Raises:
            FloatingPointError: If it, or one before it, is not finite.
        """
        self._unchecked.append((loss.detach(), self._place(batch_idx)))
        if is_on_cpu(loss) or len(self._unchecked) >= self._log_interval():
            self._check_losses()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _log_interval(self) -> int:
        trainer: Any = self.trainer  # Lightning does not declare the attribute
        return int(trainer.log_every_n_steps)

    def _place(self, batch_idx: int) -> Place:
        in_run = self._trainer.fit_loop.total_batch_idx if self._trainer else 0
        return Place(self.global_step, self.current_epoch, batch_idx, in_run)

    def _check_losses(self) -> None:
        """Reads the losses since the last check, which waits until the device has computed them.

        Raises:
            FloatingPointError: If one is not finite.
        """
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        losses, places = zip(*unchecked, strict=True)
        for loss, place in zip(torch.stack(losses).tolist(), places, strict=True):
            if not math.isfinite(loss):
                raise FloatingPointError(self._diverged(loss, place))

    def _diverged(self, loss: float, place: Place) -> str:
        data: Any = getattr(self.trainer, "datamodule", None)
        files = (
            f"; its images: {', '.join(data.names_of(place.in_run))}"
            if hasattr(data, "names_of")
            else ""
        )
        return (
            f"the loss is {loss} at step {place.step}, batch {place.in_epoch} of epoch "
            f"{place.epoch}{files}; check the images, lower the learning rate, set "
            "trainer.gradient_clip_val, or set trainer.precision to bf16-mixed or 32"
        )

    def on_train_epoch_end(self) -> None:
        self._check_losses()

    def on_validation_epoch_start(self) -> None:
        """Gives all processes the first one's buffers, such as BatchNorm's statistics.

        Between the batches of one optimizer step they differ, and each would measure another
        network.
        """
        self._check_losses()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for buffer in self.buffers():
                if buffer.is_floating_point():
                    torch.distributed.broadcast(buffer, 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds gradients that are accumulated, the mean of those of all processes."""
        self._check_losses()
        checkpoint[OPTIMIZER_KEY] = type(self.trainer.optimizers[0]).__name__
        checkpoint[SCHEDULE_KEY] = self._schedule
        if self.trainer.fit_loop._should_accumulate():
            reduce = self.trainer.strategy.reduce
            gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            checkpoint[GRADIENTS_KEY] = {
                name: reduce(grad, reduce_op="mean") for name, grad in gradients.items()
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what a resumed run restores later.

        Raises:
            ValueError: If the checkpoint is of another network, or of a run that averages weights.
        """
        if other := difference(checkpoint["state_dict"], self.state_dict()):
            raise ValueError(f"the checkpoint is of another network than the config's: {other}")
        self._accumulated = checkpoint.get(GRADIENTS_KEY, {})
        states = checkpoint.get("optimizer_states")
        if states:
            self._resumed = checkpoint.get(OPTIMIZER_KEY), states[0]["param_groups"]
            self._resumed_schedule = checkpoint.get(SCHEDULE_KEY)
        trainer: Any = self._trainer
        if trainer is None or trainer.state.fn != "fit" or AVERAGED_KEY not in checkpoint:
            return
        if not any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
            raise ValueError(
                "the run cannot be resumed without the average of its weights, from which it would "
                "go on; restore the callback in trainer.callbacks, such as "
                "segformer.train.averaging.EMA"
            )

    def on_train_start(self) -> None:
        """Restores accumulated gradients; Lightning sets all gradients to zero before this."""
        parameters = dict(self.named_parameters())
        for name, gradient in self._accumulated.items():
            parameters[name].grad = gradient.to(parameters[name])
        self._accumulated = {}

    def configure_optimizers(self) -> Any:
        trainer: Any = self.trainer
        if any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):
            raise ValueError(
                "schedules and resuming need the same number of batches in each step; leave "
                "GradientAccumulationScheduler out, and set trainer.accumulate_grad_batches"
            )
        optimizer = apply_lr_mult(self.make_optimizer(self.parameter_groups()))
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "the schedule needs the run's length; set trainer.max_steps or trainer.max_epochs"
            )
        scheduler = self.make_scheduler(optimizer, int(steps))
        self._schedule = f"{type(scheduler).__name__} of {int(steps)} steps"
        self._check_resumed(optimizer)
        self._compare_schedule(scheduler)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _compare_schedule(self, scheduler: LRScheduler) -> None:
        """Warns that a resumed run has another schedule, if that can go on from any step.

        Raises:
            ValueError: If it cannot: a checkpoint restores the old length of PyTorch's schedules.
        """
        was, now = self._resumed_schedule, self._schedule
        if was in (None, now):
            return
        both = f"the schedule was {was} and is {now}"
        if not isinstance(scheduler, LambdaLR) or str(was).split()[0] not in LAMBDA_SCHEDULES:
            raise ValueError(f"the run cannot be resumed with another schedule: {both}; restore it")
        rank_zero_warn(f"{both}: the learning rate goes on from where the new one is at this step")

    def _check_resumed(self, optimizer: Optimizer) -> None:
        """Checks that a resumed run keeps its optimizer, whose settings its checkpoint restores.

        Raises:
            ValueError: If the optimizer, its parameters, rates or other settings are others.
        """
        if self._resumed is None:
            return
        (name, before), now = self._resumed, optimizer.param_groups
        self._resumed = None
        changed = []
        if name not in (None, type(optimizer).__name__):
            changed.append(f"the optimizer was {name} and is {type(optimizer).__name__}")
        elif (sizes := _sizes(before)) != _sizes(now):
            changed.append(f"its groups had {sizes} parameters and have {_sizes(now)}")
        else:
            for key in sorted(_settings(before) & _settings(now)):
                was, own = ([group.get(key) for group in groups] for groups in (before, now))
                if was != own:
                    changed.append(f"{key} of its groups was {was} and is {own}")
        if changed:
            data = getattr(self.trainer, "datamodule", None)
            raise ValueError(
                f"the run cannot be resumed with another optimizer ({'; '.join(changed)}); restore "
                "its settings, or start a new run from its weights"
                + (f" with {data.FROM_WEIGHTS}" if isinstance(data, ResumableData) else "")
            )


def _settings(groups: Sequence[dict[str, Any]]) -> set[str]:
    """Returns the names of an optimizer's settings that neither schedule nor device changes."""
    changed = {"params", "lr", "foreach", "fused", "capturable", "differentiable"}
    if any("max_momentum" in group for group in groups):  # by PyTorch's OneCycleLR
        changed |= {"betas", "momentum", "max_momentum", "base_momentum", "max_lr", "min_lr"}
    return {key for group in groups for key in group} - changed


def _sizes(groups: Sequence[dict[str, Any]]) -> list[int]:
    """Returns the number of parameters of each group of an optimizer."""
    return [len(group["params"]) for group in groups]


class ResumableData(LightningDataModule):
    """Base of the data: training batches in an order that depends on the run's seed alone.

    A resumed run gets the same batches as an uninterrupted one, and several processes share each
    batch, and each measurement, without a sample twice.

    Args:
        train: Training samples, augmented by random numbers of the global generators.
        batch_size: Training samples per step and device.
        num_workers: Number of loader processes for training, and of as many for validation, which
            wait meanwhile.
        root: Folder of the files, which may have another name when a run is resumed.
    """

    FROM_WEIGHTS: ClassVar[str]  # options that start a new run from a checkpoint's weights

    def __init__(
        self,
        train: Dataset,
        batch_size: int,
        num_workers: int,
        root: str | os.PathLike[str] = "",
    ) -> None:
        super().__init__()
        self._root = str(Path(root))
        self.train: Any = train
        self.batch_size = batch_size
        self.num_workers = num_workers

    def order(self) -> Order | None:
        """Returns the order of an epoch's samples; None for each sample once, at random."""
        return None

    def train_dataloader(self) -> DataLoader:
        self.batches = self._batches(
            *(len(self.train), self.batch_size, run_seed()), order=self.order()
        )
        return self.training_loader(self.batches)

    def training_loader(self, batches: Batches) -> ResumableLoader:
        """Returns the loader of the training batches; each draw has its own random numbers."""
        return ResumableLoader(Seeded(self.train), batch_sampler=batches, **self._options())

    def _batches(
        self,
        length: int,
        batch_size: int,
        seed: int,
        kind: str = "training",
        setting: str = "data.batch_size",
        multiple: int = 1,
        order: Order | None = None,
    ) -> Batches:
        """Returns the batches of this process.

        Raises:
            ValueError: If there are none. It advises a size that is a multiple of ``multiple``.
        """
        rank, world_size = self._rank_and_processes
        if length < batch_size * world_size:
            possible = length // world_size // multiple * multiple
            raise ValueError(
                f"{length} {kind} images make no batch of {batch_size}"
                + (f" on each of {world_size} devices" if world_size > 1 else "")
                + (f"; set {setting} to {possible} or less" if possible else "; add images")
                + (" or use fewer devices" if not possible and world_size > 1 else "")
            )
        return Batches(length, batch_size, seed, rank, world_size, self._start, order)

    def _share_loader(
        self, samples: Any, batch_size: int, collate_fn: Callable[[Any], Any] | None = None
    ) -> DataLoader:
        """Returns the batches of the samples that this process measures, in their order.

        Raises:
            ValueError: If it has none.
        """
        rank, processes = self._rank_and_processes
        if len(samples) < processes:
            raise ValueError(
                f"{len(samples)} images to measure on {processes} devices, and each needs one; use "
                "fewer devices"
            )
        sampler = Share(len(samples), rank, processes)
        options = {"sampler": sampler, "collate_fn": collate_fn, **self._options()}
        return DataLoader(samples, batch_size, **options)

    def _options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    @property
    def _rank_and_processes(self) -> tuple[int, int]:
        """The index of this process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _start(self) -> tuple[int, int]:
        """Returns the next epoch and batch."""
        if not self.trainer:
            return 0, 0
        return self._epoch_and_batch(self.trainer.fit_loop.total_batch_idx + 1)

    def _epoch_and_batch(self, taken: int) -> tuple[int, int]:
        """Returns the epoch and the number of the batch that follows ``taken`` others."""
        trainer: Any = self.trainer
        epoch, number = divmod(taken, min(len(self.batches), trainer.num_training_batches))
        return (0 if trainer.overfit_batches else epoch), number  # overfit_batches repeats its few

    def files(self) -> Sequence[str | Path]:
        """Returns the files of all training samples; none if these have no files."""
        return []

    @cached_property
    def _digest_of_files(self) -> str:
        names = "\n".join(str(path).removeprefix(self._root) for path in self.files())
        return hashlib.blake2b(names.encode(), digest_size=8).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Returns the settings on which the batches depend."""
        trainer: Any = self.trainer
        return {
            "seed_everything": run_seed(),
            "training images": len(self.train),
            "the digest of their files' names": self._digest_of_files,
            "images a step of all devices": self.batch_size * trainer.world_size,
            "trainer.limit_train_batches": trainer.limit_train_batches,
            "trainer.overfit_batches": trainer.overfit_batches,
            "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that a resumed run gets the batches that it would have had.

        Raises:
            ValueError: If the run had another seed, batch size or other files.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        changed = [
            f"{name} was {state_dict[name]} and is {now}"
            for name, now in self.state_dict().items()
            if name in state_dict and state_dict[name] != now
        ]
        if changed:
            raise ValueError(
                f"the run cannot be resumed with other batches ({'; '.join(changed)}); restore "
                f"these settings, or start a new run from its weights with {self.FROM_WEIGHTS}"
            )

    def names_of(self, taken: int) -> list[str]:
        """Returns the files of the batch that follows ``taken`` others, or its samples' indices."""
        draws = self.batches.batch(*self._epoch_and_batch(taken))
        return [self.name_of(draw.index) for draw in draws]

    def name_of(self, index: int) -> str:
        """Returns the file of a training sample, or its index."""
        return f"sample {index}"


def is_on_cpu(x: Tensor) -> bool:
    """Whether reading a value waits for no device."""
    return x.device.type == "cpu"
