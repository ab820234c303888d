"""Classification, with which a backbone is pre-trained: the task, its data and mixed batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from timm.data import Mixup
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from segformer.data.classification import CenterCrop, ClassFolders
from segformer.data.normalization import Normalization
from segformer.timm_models import TimmClassifier
from segformer.train.base import ResumableData, ResumableTask
from segformer.train.optim import WarmupCosine


class MixupCutMix:
    """timm's Mixup: each batch is mixed with itself in reverse order, by mixup or by CutMix.

    Sources: mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899. timm draws from NumPy's generator,
    which is seeded here by PyTorch's, so that a resumed run mixes as an uninterrupted one. Each
    device mixes its own part of a batch.

    Args:
        mixup: Both parameters of the beta distribution of mixup's weight; 0 for no mixup.
        cutmix: Both parameters of the beta distribution of CutMix's share; 0 for no CutMix.
        switch: Share of the batches that CutMix mixes, if there are both.

    Raises:
        ValueError: If both are 0.
    """

    def __init__(self, mixup: float = 0.8, cutmix: float = 1.0, switch: float = 0.5) -> None:
        if mixup <= 0 and cutmix <= 0:
            raise ValueError(
                f"mixup={mixup} and cutmix={cutmix} mix nothing; for no mixing, set mixing to null"
            )
        self.mixup = Mixup(mixup, cutmix, switch_prob=switch, label_smoothing=0.0)

    def __call__(self, images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Returns mixed images (B, C, H, W), and the shares of their classes (B, K).

        Args:
            images: Images (B, C, H, W), which are changed; B is even.
            labels: Classes (B,).
            num_classes: Number K of classes.
        """
        self.mixup.num_classes = num_classes
        state = np.random.get_state()
        # A seed of 32 bits from the generator of the CPU, which waits for no device.
        np.random.seed(int(torch.randint(2**32, ())))
        try:
            images, shares = self.mixup(images, labels)
        finally:
            np.random.set_state(state)
        return images, shares.to(images.dtype)


class ClassificationTask(ResumableTask):
    """Trains and measures a classifier, whose backbone segmentation then starts from.

    NVIDIA published no recipe of MiT's pre-training, and recommends that of PVT v2 (arXiv
    2106.13797), which is DeiT's (arXiv 2012.12877): see ``configs/imagenet.yaml``. Biases and norms
    have no weight decay. Validation logs the top-1 and top-5 accuracy.

    Args:
        network: The classifier.
        optimizer: Makes the optimizer from parameter groups.
        scheduler: Makes the schedule from the optimizer and the run's number of optimizer steps.
        loss: Computes a scalar from logits (B, K), and classes (B,) or their shares (B, K); by
            default cross-entropy with a label smoothing of 0.1.
        mixing: Mixes the images and classes of a training batch; by default they are not mixed.
    """

    def __init__(
        self,
        network: TimmClassifier,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler] = WarmupCosine,
        loss: nn.Module | None = None,
        mixing: MixupCutMix | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.network = network
        self.loss = loss or nn.CrossEntropyLoss(label_smoothing=0.1)
        self.mixing = mixing
        classes = network.num_classes
        # Labels are the indices of folders: checking them again would wait for a GPU.
        self.accuracies = MetricCollection(
            {
                f"top{k}": MulticlassAccuracy(
                    classes, top_k=min(k, classes), average="micro", validate_args=False
                )
                for k in (1, 5)
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def setup(self, stage: str) -> None:
        """Checks the batch size, and sets the normalization of the data to that of the network.

        Raises:
            ValueError: If a batch of an odd number of images is to be mixed.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "normalize_as"):
            data.normalize_as(self.network.normalization)
        size = getattr(data, "batch_size", 0)
        if self.mixing is not None and size % 2:
            raise ValueError(
                f"mixing pairs the images of a batch, and data.batch_size={size} is odd; set an "
                "even one"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        without_decay: set[str] = getattr(self.network.model, "no_weight_decay", set)()
        groups = param_groups_weight_decay(
            self.network.model, weight_decay=1.0, no_weight_decay_list=without_decay
        )
        for group in groups:
            if group["weight_decay"]:
                del group["weight_decay"]  # the optimizer's own
        return groups

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, target = batch
        if self.mixing is not None:
            images, target = self.mixing(images, target, self.network.num_classes)
        return self.checked(self.loss(self.network(images), target), batch_idx)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracies.update(self.network(images), labels)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.accuracies.reset()

    def on_validation_epoch_end(self) -> None:
        self.scores = {name: float(score) for name, score in self.accuracies.compute().items()}
        self.log_dict({f"val/{name}": score for name, score in self.scores.items()}, prog_bar=True)


class ImageFolderData(ResumableData):
    """A folder with ``train`` and ``val``, which have one folder of images for each class.

    ImageNet has this layout once ``torchvision.datasets.ImageNet`` has extracted its archives.

    Args:
        root: The folder.
        train_transform: Makes a training sample (3, H, W) of a fixed size from Pillow's RGB image.
            A transform without a method ``normalize_as``, such as one of torchvision, must
            normalize it as the network needs.
        val_transform: Makes a validation sample likewise.
        batch_size: Training images per step and device.
        val_batch_size: Images per batch in validation.
        num_workers: Number of loader processes for training, and of as many for validation, which
            wait meanwhile.

    Raises:
        FileNotFoundError: If a folder is missing, or one of a class has no image.
        ValueError: If training and validation have different classes.
    """

    FROM_WEIGHTS = "--model.network.checkpoint_path WEIGHTS"

    def __init__(
        self,
        root: str | os.PathLike[str],
        train_transform: Callable[..., Any],
        val_transform: Callable[..., Any] | None = None,
        batch_size: int = 128,
        val_batch_size: int = 128,
        num_workers: int = 8,
    ) -> None:
        train = ClassFolders(Path(root, "train"), train_transform)
        super().__init__(train, batch_size, num_workers, root)
        self.val = ClassFolders(Path(root, "val"), val_transform or CenterCrop())
        self.val_batch_size = val_batch_size
        differing = sorted({*train.classes} ^ {*self.val.classes})
        if differing:
            raise ValueError(
                f"{str(root)!r} has {len(train.classes)} classes in train and "
                f"{len(self.val.classes)} in val; only one of them has {', '.join(differing[:5])}: "
                "give both the same folders"
            )
        rank_zero_info(
            f"{len(train)} training and {len(self.val)} validation images of "
            f"{self.num_classes} classes"
        )

    @property
    def num_classes(self) -> int:
        return len(self.train.classes)

    def normalize_as(self, normalization: Normalization) -> None:
        """Normalizes samples by a network's statistics, where the transforms can."""
        for samples in (self.train, self.val):
            if hasattr(samples.transform, "normalize_as"):
                samples.transform.normalize_as(normalization)

    def files(self) -> Sequence[str | Path]:
        return [path for path, _ in self.train.samples]

    def name_of(self, index: int) -> str:
        return str(self.train.samples[index][0])

    def val_dataloader(self) -> DataLoader:
        return self._share_loader(self.val, self.val_batch_size)
