"""Chooses how to train from the number and size of the images, as the settings of a config."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segformer.data.classes import Classes

# Number of steps by the greatest number of training images: from weights, and from random ones.
STEPS = (
    (15, 400, 1_000),
    (50, 800, 2_000),
    (500, 2_000, 4_000),
    (5_000, 10_000, 20_000),
    (None, 40_000, 80_000),
)
CPU_STEPS = 20_000  # at most, on a CPU
CPU_CROP, GPU_CROP = 256, 512  # greatest side of a crop in pixels
CROP_MULTIPLE = 32  # the network's coarsest features have this stride
BATCH, LARGE_BATCH = 8, 16
LARGE = 5_000  # training images from which a GPU takes large batches
FEW = 1_000  # training images, for a network from random weights
VALIDATIONS = 8  # of a run
LARGEST_WHOLE = 2048  # longer side of images that are read and validated whole
TILE = [1024, 1024]  # of larger images of other bands than photographs
ONE_CLASS = 0.75  # share of a class from which crops of one class are allowed
WEIGHT_POWER = -0.25  # of a class's share of the pixels


@dataclass(frozen=True)
class Situation:
    """What a recipe depends on.

    Args:
        images: Number of training images; of their tiles, if these are read.
        size: Median height and width.
        longest: Longest side of any image.
        classes: Names and colours.
        pixels: Number of pixels of each class.
        on_gpu: Whether there is a GPU.
        cores: Number of CPU cores.
        weights: Weights to start from, None for random ones.
        variant: Size of the network from random weights.
        augmentation: Class in :mod:`segformer.data.augmentation` for images of other bands than
            photographs; None for photographs.
        given: Settings that the user gave, by their key: those of the length of the run and the
            size of a batch.
    """

    images: int
    size: tuple[int, int]
    longest: int
    classes: Classes
    pixels: Sequence[int]
    on_gpu: bool
    cores: int
    weights: str | None = None
    variant: str = "b0"
    augmentation: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tile(self) -> list[int] | None:
        """Height and width of the tiles of large images; None if images are read whole."""
        is_large = self.augmentation is not None and self.longest > LARGEST_WHOLE
        return self.given.get("data.tile") or (TILE if is_large else None)

    @property
    def steps(self) -> int:
        steps, passes = self._number("trainer.max_steps"), self._number("trainer.max_epochs")
        if steps or passes:
            return steps or passes * self.steps_of_pass
        chosen = next(
            tuned if self.weights else new
            for most, tuned, new in STEPS
            if most is None or self.images <= most
        )
        return chosen if self.on_gpu else min(chosen, CPU_STEPS)

    @property
    def steps_of_pass(self) -> int:
        """Number of steps of a pass over the training images."""
        return max(1, self.images // (self.batch_size * self.batches_of_step))

    @property
    def batches_of_step(self) -> int:
        """Number of batches whose gradients a step accumulates."""
        return self._number("trainer.accumulate_grad_batches") or 1

    @property
    def crop_size(self) -> list[int]:
        """Height and width of a crop: multiples of 32 that are not larger than most images."""
        greatest = GPU_CROP if self.on_gpu else CPU_CROP
        return [
            max(CROP_MULTIPLE, min(greatest, side // CROP_MULTIPLE * CROP_MULTIPLE))
            for side in self.size
        ]

    @property
    def batch_size(self) -> int:
        wanted = LARGE_BATCH if self.on_gpu and self.images >= LARGE else BATCH
        return self._number("data.batch_size") or min(wanted, self.images)

    def _number(self, key: str) -> int:
        """Returns a positive number that the user gave; 0 without one, or for another value."""
        value = self.given.get(key)
        return value if isinstance(value, int) and value > 0 else 0

    @property
    def num_workers(self) -> int:
        return min(8, self.cores - 1) if self.on_gpu else 0 if self.cores <= 2 else 2


def decisions(situation: Situation) -> list[str]:
    """Returns one sentence for each decision of the recipe."""
    height, width = situation.crop_size
    is_few = situation.images < FEW
    passes = situation.steps * situation.batches_of_step * situation.batch_size / situation.images
    lines = [
        f"{situation.steps} steps of {situation.batch_size} crops of {height}×{width}: "
        f"{passes:.0f} passes over {situation.images} training "
        f"{'tiles' if situation.tile else 'images'}, on "
        f"{'a GPU' if situation.on_gpu else 'the CPU'}"
    ]
    if situation.weights:
        lines.append(f"from the weights {situation.weights!r}: AdamW, learning rate 6e-5")
    else:
        lines.append(
            f"{situation.variant} from random weights: Muon, learning rate 2e-3"
            + ("; it learns little from so few images: pass --weights FILE" * is_few)
        )
    return lines


def settings(situation: Situation) -> dict[str, Any]:
    """Returns the settings ``model`` and ``trainer`` of a config."""
    return {"model": _model(situation), "trainer": _trainer(situation)}


def data_settings(situation: Situation) -> dict[str, Any]:
    """Returns the settings of the data that depend on the recipe."""
    transform: dict[str, Any] = {"crop_size": situation.crop_size}
    if _greatest_share(situation) > ONE_CLASS:
        transform["cat_max_ratio"] = 1.0
    name = situation.augmentation
    of_class = f"augmentation.{name}" if name else "transforms.TrainTransform"
    chosen: dict[str, Any] = {
        "train_transform": {"class_path": f"segformer.data.{of_class}", "init_args": transform},
        "batch_size": situation.batch_size,
        "num_workers": situation.num_workers,
    }
    return {**chosen, "tile": situation.tile} if situation.tile else chosen


def _model(situation: Situation) -> dict[str, Any]:
    from_random = {
        "class_path": "segformer.SegFormer",
        "init_args": {"backbone": situation.variant, "drop_path": 0.1},
    }
    pretrained = {"class_path": "segformer.Pretrained", "init_args": {"source": situation.weights}}
    muon = {
        "class_path": "segformer.train.optim.Muon",
        "init_args": {"lr": 2.0e-3, "weight_decay": 0.05},
    }
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 6.0e-5, "weight_decay": 0.01}}
    model: dict[str, Any] = {
        "network": pretrained if situation.weights else from_random,
        "loss": _loss(situation),
        "optimizer": adamw if situation.weights else muon,
        "scheduler": {"class_path": "segformer.train.optim.OneCycle", "init_args": {"warmup": 0.1}},
        "head_lr_mult": 10.0 if situation.weights else 1.0,
    }
    if situation.longest > LARGEST_WHOLE and not situation.augmentation:
        model["protocol"] = _windows()
    return model


def _windows() -> dict[str, Any]:
    """Returns the protocol that validates large images in windows."""
    slide = {"crop_size": [1024, 1024], "stride": [768, 768]}
    mode = {"class_path": "segformer.evaluation.protocols.Slide", "init_args": slide}
    return {"class_path": "segformer.evaluation.Protocol", "init_args": {"mode": mode}}


def _loss(situation: Situation) -> dict[str, Any]:
    cross_entropy = {"class_path": "segformer.losses.CrossEntropy"}
    if len(situation.classes) == 2 and _greatest_share(situation) > ONE_CLASS:
        losses = [cross_entropy, {"class_path": "segformer.losses.Dice"}]
        return {"class_path": "segformer.losses.Sum", "init_args": {"losses": losses}}
    return {**cross_entropy, "init_args": {"weight": class_weights(situation.pixels)}}


def class_weights(pixels: Sequence[int]) -> list[float]:
    """Returns each class's share of the pixels to the power -1/4, with a mean of 1.

    Classes without a pixel have the greatest weight of the others.
    """
    powers = [count**WEIGHT_POWER if count else None for count in pixels]
    greatest = max(power for power in powers if power is not None)
    filled = [greatest if power is None else power for power in powers]
    mean = math.fsum(filled) / len(filled)
    return [round(power / mean, 2) for power in filled]


def _greatest_share(situation: Situation) -> float:
    return max(situation.pixels) / max(1, sum(situation.pixels))


def _trainer(situation: Situation) -> dict[str, Any]:
    steps = situation.steps
    decay = max(0.0, round(1 - 8 / max(1, steps), 4))
    trainer: dict[str, Any] = {
        "max_steps": steps,
        # of batches, which may be several a step
        "val_check_interval": max(1, steps // VALIDATIONS) * situation.batches_of_step,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": min(20, situation.steps_of_pass),
        "accelerator": "auto",
        "devices": 1,
        "callbacks": [
            {"class_path": "segformer.train.averaging.EMA", "init_args": {"decay": decay}}
        ],
    }
    return {**trainer, "precision": "bf16-mixed"} if situation.on_gpu else trainer
