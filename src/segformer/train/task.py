"""The training task, the same for all networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from segformer.checkpoint import METADATA_KEY, describe
from segformer.data.classes import ignore_index, number_of_labels
from segformer.evaluation import Protocol, own_size_labels
from segformer.evaluation.metrics import Scores, confusion_matrix
from segformer.losses import CrossEntropy
from segformer.models import SegmentationModel
from segformer.ops.conditions import calls_forward_of
from segformer.train.auxiliary import Auxiliary
from segformer.train.base import ResumableTask
from segformer.train.consistency import Consistency
from segformer.train.distillation import Distillation
from segformer.train.freezing import freeze
from segformer.train.lora import LoRA
from segformer.train.optim import OfficialAdamW, Poly, param_groups

TEACHER_KEY = "consistency_teacher"
LOSSES = (CrossEntropy.__module__, nn.CrossEntropyLoss.__module__)  # weights are of classes


class SegmentationTask(ResumableTask):
    """Trains and measures a network.

    The defaults are the official recipe (arXiv 2105.15203, section 4.1): AdamW at 6e-5 with weight
    decay 0.01, the decode head at ten times the rate, linear warm-up over 1,500 steps and linear
    decay to 0. The loss is the mean over the valid pixels.

    Args:
        network: The model to train.
        loss: Computes a scalar from stride-4 logits (B, K, h, w), the target (B, H, W) and the
            network's ``align_corners``; by default cross-entropy. Parameters of its own are trained
            at the rate of the heads.
        optimizer: Makes the optimizer from parameter groups.
        scheduler: Makes the schedule from the optimizer and the run's number of optimizer steps.
        head_lr_mult: Learning rate of the decode head and the auxiliary heads over that of the
            optimizer.
        auxiliary: Makes auxiliary heads from the network; by default there are none.
        protocol: How images are measured; by default whole and at their own size.
        distillation: Makes, from the network, losses that compare it with a teacher; by default
            there is no teacher.
        layer_decay: Factor of the learning rate from each layer of the backbone to the one before;
            that of the last layer is ``layer_decay`` times the optimizer's. See
            :func:`~segformer.train.optim.layer_factors`.
        frozen: Modules or parameters of the network that stay as they are, by name or pattern, such
            as ``backbone.stages.0`` or ``backbone.*.norm*``; see
            :func:`~segformer.train.freezing.freeze`.
        lora: Trains adapters of low rank in place of the backbone's weights; see
            :class:`~segformer.train.lora.LoRA`.
        consistency: Makes, from the network, the loss of images without labels, which the data
            have as ``unlabelled_images``; by default there are none.
        grad_checkpointing: Whether the backbone's blocks are computed again in the backward pass,
            which takes less memory and more time.

    Raises:
        ValueError: If the network has a forward pass of its own; the loss has weights for another
            number of classes, or ignores another value than label maps have for no class; or
            ``frozen`` names nothing in the network, or all of it.
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
        distillation: Callable[[SegmentationModel], Distillation] | None = None,
        layer_decay: float = 1.0,
        frozen: Sequence[str] = (),
        lora: LoRA | None = None,
        consistency: Callable[[SegmentationModel], Consistency] | None = None,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if isinstance(network, SegmentationModel):
            _check_forward(network)
        self.network = network
        self.loss = loss or CrossEntropy()
        labels = number_of_labels(network.num_classes)
        _check_loss(self.loss, labels)
        if grad_checkpointing:
            network.set_grad_checkpointing()
        self.head_lr_mult = head_lr_mult
        self.layer_decay = layer_decay
        if lora is not None:
            lora.adapt(network)
        self.frozen = freeze(network, frozen)
        self.protocol = protocol
        self.auxiliary = auxiliary and auxiliary(network)
        self.distillation = distillation and distillation(network)
        self.consistency = consistency and consistency(network)
        self.confusion = confusion_matrix(labels)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all modules but those that are frozen, which stay in evaluation mode."""
        super().train(mode)
        if mode:  # a network that is measured may be another one, without these modules
            for name in self.frozen:
                self.network.get_submodule(name).eval()
        return self

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
        if stage == "fit":
            self._check_unlabelled(data)
            self._check_precision()
            if self.distillation is not None:
                self.distillation.adapt_to(self.network)

    def _check_unlabelled(self, data: Any) -> None:
        """Raises ValueError if there are images without labels and no loss for them, or reverse."""
        is_given = getattr(data, "unlabelled", None) is not None
        if is_given and self.consistency is None:
            raise ValueError(
                "data.unlabelled_images are given and nothing learns from them; set "
                "model.consistency, or leave them out"
            )
        if self.consistency is not None and data is not None and not is_given:
            raise ValueError(
                "model.consistency needs images without labels; set data.unlabelled_images, or "
                "leave it out"
            )

    def _check_precision(self) -> None:
        """Raises ValueError if a teacher that is a moving average would not move."""
        precision = str(self.trainer.precision)
        if self.consistency is not None and precision in ("bf16-true", "16-true"):
            half = precision.removesuffix("-true")
            raise ValueError(
                f"trainer.precision is {precision}, which rounds away the steps of the teacher of "
                f"model.consistency, a moving average; give {half}-mixed or 32-true"
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the loss of a batch.

        Args:
            batch: Images (B, C, H, W) and target (B, H, W). With ``consistency`` it is this pair,
                and the :class:`~segformer.data.unlabelled.Views` of images without labels.
            batch_idx: Number of the batch in its epoch.
        """
        (images, target), views = (batch, None) if self.consistency is None else batch
        if self.consistency is not None:
            self.consistency.update(self.network, self.global_step)
        target = target.long()

        def measured(logits: Tensor) -> Tensor:
            return self.loss(logits, target, self.network.align_corners)

        watching: Any = self.auxiliary.watching(self.network) if self.auxiliary else nullcontext([])
        with watching as maps:
            features = self.network.backbone(images)
            logits = self.network.decode_head(features)
        loss = measured(logits)
        if self.auxiliary is not None:
            loss = loss + self.auxiliary(maps, measured)
        if self.distillation is not None:
            distilled = self.distillation(images, features, logits, target)
            self.log("train/distillation", distilled)
            loss = loss + distilled
        if self.consistency is not None:
            consistent, share = self.consistency(self.network, views)
            self.log_dict({"train/consistency": consistent, "train/confident": share})
            loss = loss + self.consistency.weight * consistent
        return self.checked(loss, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, list[Tensor]]:
        return self._measure(batch)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, list[Tensor]]:
        return self._measure(batch)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.confusion.reset()

    def on_test_epoch_start(self) -> None:
        self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the network's description, for ``from_pretrained``, and accumulated gradients."""
        super().on_save_checkpoint(checkpoint)
        with suppress(ValueError):  # a network with parts of the user's has no description
            checkpoint[METADATA_KEY] = json.dumps(describe(self.network))
        if self.consistency is not None:
            checkpoint[TEACHER_KEY] = self.consistency.teacher.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.consistency is not None and TEACHER_KEY in checkpoint:
            self.consistency.teacher.load_state_dict(checkpoint[TEACHER_KEY])

    def _measure(self, batch: Any) -> dict[str, list[Tensor]]:
        """Adds a batch to the confusion matrix; returns its targets and labels, for callbacks.

        Args:
            batch: Images (B, C, H, W) and target (B, H, W), or a list of such pairs.
        """
        pairs = [batch] if isinstance(batch[0], Tensor) else batch
        targets = [target.long() for _, target in pairs]
        labels = [self.labels(images) for images, _ in pairs]
        for predicted, target in zip(labels, targets, strict=True):
            self.confusion.update(predicted, target)
        return {"targets": targets, "labels": labels}

    def labels(self, images: Tensor) -> Tensor:
        """Returns the labels (B, H, W) of images (B, C, H, W), by the protocol."""
        if self.protocol is not None:
            return self.protocol.predict(self.network, images)
        return own_size_labels(self.network, images)

    def _log_scores(self, split: str) -> None:
        self.scores = Scores.of(self.confusion.compute())
        self.log(f"{split}/miou", self.scores.miou, prog_bar=True)
        self.log(f"{split}/pixel_accuracy", self.scores.pixel_accuracy)

    def parameter_groups(self) -> list[dict[str, Any]]:
        parts = nn.ModuleList(
            part for part in (self.loss, self.auxiliary, self.distillation) if part is not None
        )
        return param_groups(self.network, self.head_lr_mult, parts, self.layer_decay)


def _check_forward(network: SegmentationModel) -> None:
    """Raises ValueError if a network has a forward pass that its training would not call."""
    if not calls_forward_of(network, SegmentationModel):
        raise ValueError(
            f"the {type(network).__name__} has hooks or a forward of its own, which training does "
            "not call: it takes the loss of the decode head's logits; change the head instead"
        )


def _check_loss(loss: nn.Module, labels: int) -> None:
    """Raises ValueError if a loss is made for another number of classes, or other label maps."""
    for module in loss.modules():
        is_known = type(module).__module__ in LOSSES
        weight = getattr(module, "weight", None) if is_known else None
        if weight is not None and len(weight) != labels:
            raise ValueError(
                f"the loss weighs {len(weight)} classes, the network has {labels}; "
                "give one weight for each class"
            )
        ignored = getattr(module, "ignore_index", None)
        if ignored not in (None, ignore_index(labels)):
            raise ValueError(
                f"the loss ignores {ignored}, but label maps reach it with {ignore_index(labels)} "
                "for no class, whatever their files have; leave the loss's ignore_index out, and "
                f"set data.ignore_index to {ignored} if the files have it"
            )
