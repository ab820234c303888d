"""A task of seconds: which half of a picture is bright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from conftest import TINY
from lightning import Trainer
from PIL import Image
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
        return tv_tensors.Image(torch.from_numpy(image).expand(3, -1, -1).clone()), tv_tensors.Mask(
            torch.from_numpy(label)
        )


class FiveClasses(Halves):
    """The same pictures for a network of five classes, three of which do not occur."""

    classes = Classes(["road", "sky", "tree", "car", "person"])


def halves() -> SegmentationData:
    return SegmentationData(
        Halves(),
        Halves(6, seed=1),
        TrainTransform((32, 32), (0.9, 1.1)),
        batch_size=4,
        val_batch_size=2,
        num_workers=0,
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


def small_config(folder: Path, **trainer: object) -> Path:
    """A YAML in the given folder, of a fit of a second on these pictures.

    Its runs lie in ``folder/runs/small``.
    """
    variant = {
        name: list(values) if isinstance(values, tuple) else values
        for name, values in vars(TINY).items()
    }
    data = {
        "train": {"class_path": "halves.Halves", "init_args": {"length": 9}},
        "val": {"class_path": "halves.Halves", "init_args": {"length": 2, "seed": 1}},
        "train_transform": {
            "class_path": "segformer.data.transforms.TrainTransform",
            "init_args": {"crop_size": [32, 32], "scale": [0.9, 1.1]},
        },
        "batch_size": 2,
        "num_workers": 0,
    }
    settings = {
        "seed_everything": 0,
        "data": {"class_path": "segformer.train.data.SegmentationData", "init_args": data},
        "model": {
            "network": {
                "class_path": "segformer.SegFormer",
                "init_args": {
                    "backbone": {"class_path": "segformer.Variant", "init_args": variant}
                },
            }
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder / "runs"), "name": "small"},
            },
            **trainer,
        },
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def write_folder(root: Path, **counts: int) -> Path:
    """A folder data set with this number of samples in each split, and 11 for the ignored 255."""
    for seed, (split, count) in enumerate(counts.items()):
        for k in range(count):
            image, label = Halves(count, seed)[k]
            for kind, array in (
                ("images", image.permute(1, 2, 0).numpy()),
                ("labels", np.where(label == 255, 11, label).astype(np.uint8)),
            ):
                path = root / kind / split / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return root


def camvid_config(data_root: Path, folder: Path) -> Path:
    """configs/camvid.yaml for a tiny network on these pictures, in a file of a folder.

    Its runs lie in ``folder/runs/camvid``.
    """
    settings = yaml.safe_load((Path(__file__).parents[1] / "configs" / "camvid.yaml").read_text())
    data = settings["data"]["init_args"]
    data.update(
        root=str(data_root), classes={"names": ["dark", "bright"]}, batch_size=2, num_workers=0
    )
    data["train_transform"]["init_args"]["crop_size"] = [32, 32]
    settings["model"]["network"]["init_args"]["backbone"] = {
        "class_path": "segformer.Variant",
        "init_args": {**vars(TINY)},
    }
    settings["model"].update(loss=None, protocol=None)
    settings["trainer"].update(max_steps=6, val_check_interval=3, accelerator="cpu")
    settings["trainer"]["logger"]["init_args"]["save_dir"] = str(folder / "runs")
    for name in ("dims", "depths", "heads", "sr_ratios"):
        values = settings["model"]["network"]["init_args"]["backbone"]["init_args"]
        values[name] = list(values[name])
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
