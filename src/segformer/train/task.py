"""The training task, the same for all networks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from segformer.checkpoint import METADATA_KEY, describe
from segformer.evaluation import Protocol, own_size_labels
from segformer.evaluation.metrics import Scores, confusion_matrix
from segformer.losses import CrossEntropy
from segformer.models import SegmentationModel
from segformer.train.auxiliary import Auxiliary
from segformer.train.optim import OfficialAdamW, Poly, apply_lr_mult, param_groups
from segformer.train.order import mixed, run_seed

GRADIENTS_KEY = "accumulated_gradients"


@dataclass(frozen=True)
class Place:
    """Where in a run a batch is: its optimizer step, its epoch, and its number in these."""

    step: int
    epoch: int
    in_epoch: int
    in_run: int


class SegmentationTask(LightningModule):
    """Trains and measures a network.

    The defaults are the official recipe (arXiv 2105.15203, section 4.1): AdamW at 6e-5 with weight
    decay 0.01, the decode head at ten times the rate, linear warm-up over 1,500 steps and linear
    decay to 0. The loss is the mean over the valid pixels.

    Args:
        network: The model to train.
        loss: Computes a scalar from stride-4 logits (B, K, h, w), the target (B, H, W) and the
            network's ``align_corners``; by default cross-entropy.
        optimizer: Makes the optimizer from parameter groups.
        scheduler: Makes the schedule from the optimizer and the run's number of optimizer steps.
        head_lr_mult: Factor of the learning rate of the decode head and the auxiliary heads.
        auxiliary: Makes auxiliary heads from the network; by default there are none.
        protocol: How images are measured; by default whole and at their own size.

    Raises:
        ValueError: If the loss has weights for another number of classes.
    """

    def __init__(
        self,
        network: SegmentationModel,
        loss: nn.Module | None = None,
        optimizer: Callable[[Any], Optimizer] = OfficialAdamW,
        scheduler: Callable[[Optimizer, int], LRScheduler] = Poly,
        head_lr_mult: float = 10.0,
        auxiliary: Callable[[SegmentationModel], Auxiliary] | None = None,
        protocol: Protocol | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss or CrossEntropy()
        labels = max(2, network.num_classes)  # one logit separates two classes
        for module in self.loss.modules():
            weight = getattr(module, "weight", None)
            if weight is not None and len(weight) != labels:
                raise ValueError(
                    f"the loss weighs {len(weight)} classes, the network has {labels}; "
                    "give one weight for each class"
                )
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.head_lr_mult = head_lr_mult
        self.protocol = protocol
        self.auxiliary = auxiliary and auxiliary(network)
        # Gradients of a run that is resumed between two batches of an optimizer step.
        self._accumulated: dict[str, Tensor] = {}
        self._unchecked: list[tuple[Tensor, Place]] = []  # losses
        self.confusion = confusion_matrix(labels)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def setup(self, stage: str) -> None:
        """Sets the normalization of the data to that of the network's weights.

        Where the images have statistics of their own, the network takes these before training.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        statistics = getattr(data, "statistics", None)
        if stage == "fit" and statistics is not None:
            self.network.normalization = statistics
        if hasattr(data, "normalize_as"):
            data.normalize_as(self.network.normalization)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds dropout by the run's seed, the batch's number in the run and the process."""
        torch.manual_seed(
            mixed(run_seed(), self.trainer.fit_loop.total_batch_idx, self.global_rank)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, target = batch
        target = target.long()

        def measured(logits: Tensor) -> Tensor:
            return self.loss(logits, target, self.network.align_corners)

        if self.auxiliary is None:
            loss = measured(self.network.decode_head(self.network.backbone(images)))
        else:
            with self.auxiliary.watching(self.network) as maps:
                loss = measured(self.network.decode_head(self.network.backbone(images)))
            loss = loss + self.auxiliary(maps, measured)
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

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._measure(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._measure(batch)

    def on_validation_epoch_start(self) -> None:
        self._check_losses()
        self.confusion.reset()

    def on_test_epoch_start(self) -> None:
        self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the network's description, for ``from_pretrained``, and accumulated gradients."""
        self._check_losses()
        with suppress(ValueError):  # a network with parts of the user's has no description
            checkpoint[METADATA_KEY] = json.dumps(describe(self.network))
        if self.trainer.fit_loop._should_accumulate():
            reduce = self.trainer.strategy.reduce
            gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            checkpoint[GRADIENTS_KEY] = {
                name: reduce(grad, reduce_op="mean") for name, grad in gradients.items()
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._accumulated = checkpoint.get(GRADIENTS_KEY, {})

    def on_train_start(self) -> None:
        """Restores accumulated gradients; Lightning sets all gradients to zero before this."""
        parameters = dict(self.named_parameters())
        for name, gradient in self._accumulated.items():
            parameters[name].grad = gradient.to(parameters[name])
        self._accumulated = {}

    def _measure(self, batch: Any) -> None:
        """Adds a batch to the confusion matrix.

        Args:
            batch: Images (B, C, H, W) and target (B, H, W), or a list of such pairs.
        """
        for images, target in [batch] if isinstance(batch[0], Tensor) else batch:
            self.confusion.update(self._labels(images), target.long())

    def _labels(self, images: Tensor) -> Tensor:
        if self.protocol is not None:
            return self.protocol.predict(self.network, images)
        return own_size_labels(self.network, images)

    def _log_scores(self, split: str) -> None:
        self.scores = Scores.of(self.confusion.compute())
        self.log(f"{split}/miou", self.scores.miou, prog_bar=True)
        self.log(f"{split}/pixel_accuracy", self.scores.pixel_accuracy)

    def configure_optimizers(self) -> Any:
        optimizer = apply_lr_mult(
            self.make_optimizer(param_groups(self.network, self.head_lr_mult, self.auxiliary))
        )
        steps = optimizer_steps(self.trainer)
        if steps == float("inf"):
            raise ValueError(
                "the schedule needs the run's length; set trainer.max_steps or trainer.max_epochs"
            )
        scheduler = self.make_scheduler(optimizer, int(steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def is_on_cpu(x: Tensor) -> bool:
    """Whether reading a value waits for no device."""
    return x.device.type == "cpu"


def optimizer_steps(trainer: Trainer) -> float:
    """Returns the number of optimizer steps of the whole run, infinite if it has no end.

    Lightning's estimate assumes one number of accumulated batches for all epochs.
    """
    estimate = trainer.estimated_stepping_batches
    if trainer.max_epochs in (None, -1):
        return estimate
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            epochs = range(trainer.max_epochs)
            factors = [callback.get_accumulate_grad_batches(epoch) for epoch in epochs]
            steps = sum(math.ceil(trainer.num_training_batches / factor) for factor in factors)
            return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
    return estimate
