"""A task of seconds: which half of a picture is bright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning import Trainer
from torch.utils.data import Dataset
from torchvision import tv_tensors

from segformer import Classes
from segformer.data.transforms import TrainTransform
from segformer.train.data import SegmentationData


class Halves(Dataset):
    """Pictures whose bright half is class 1: learned in a few steps."""

    classes = Classes(["dark", "bright"], [(0, 0, 0), (255, 255, 0)])

    def __init__(self, length: int = 16, seed: int = 0) -> None:
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        noise = np.random.default_rng((self.seed, index))
        label = np.zeros((40, 48), np.uint8)
        label[:, noise.integers(8, 40) :] = 1
        image = (noise.normal(60 + 130 * label, 20)).clip(0, 255).astype(np.uint8)
        label[:2] = 255
        return tv_tensors.Image(torch.from_numpy(image).expand(3, -1, -1).clone()), tv_tensors.Mask(torch.from_numpy(label))


def halves() -> SegmentationData:
    return SegmentationData(
        Halves(), Halves(6, seed=1), TrainTransform((32, 32), (0.9, 1.1)), batch_size=4, val_batch_size=2, num_workers=0
    )


def quiet_trainer(folder: Path, **options: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
        **options,
    )
