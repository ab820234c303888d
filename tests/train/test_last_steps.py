"""The last steps of a run have another augmentation, such as one that keeps whole images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY
from halves import Halves, quiet_trainer, small_config, write_folder
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from segformer import SegFormer
from segformer.data.mixing import CutMix
from segformer.data.normalization import IMAGENET
from segformer.data.transforms import Normalize, TrainTransform
from segformer.data.unlabelled import UnlabelledImages, WeakAndStrong
from segformer.train.consistency import Consistency
from segformer.train.data import SegmentationData
from segformer.train.last_steps import LastSteps
from segformer.train.task import SegmentationTask

pytestmark = pytest.mark.filterwarnings("ignore")
WHOLE = TrainTransform((40, 48), (1.0, 1.0), distortion=v2.Identity())  # the size of Halves


class Shown(Callback):
    """Keeps the batches of a run."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, *_: Any) -> None:
        self.batches.append(batch)


def data(last: LastSteps | None, **options: Any) -> SegmentationData:
    crop = TrainTransform((32, 32), (0.9, 1.1))
    settings: dict[str, Any] = {"batch_size": 4, "num_workers": 0, "last_steps": last, **options}
    return SegmentationData(Halves(), Halves(2, seed=1), crop, **settings)


def fit(folder: Path, module: SegmentationData, **options: Any) -> tuple[Any, list[Any]]:
    torch.manual_seed(0)
    consistency = Consistency if module.unlabelled else None
    task = SegmentationTask(SegFormer(TINY, num_classes=2), consistency=consistency)
    shown, path = Shown(), options.pop("ckpt_path", None)
    callbacks = options.pop("callbacks", [])
    trainer = quiet_trainer(folder, limit_val_batches=0, **options)
    trainer.callbacks += [shown, *callbacks]
    trainer.fit(task, module, ckpt_path=path)
    return task.network.state_dict(), shown.batches


def sizes(batches: list[Any]) -> list[tuple[int, int]]:
    return [tuple(images.shape[-2:]) for images, _ in batches]


@pytest.mark.parametrize(
    ("options", "crops", "whole"),
    [
        ({"max_steps": 6}, 4, 2),
        ({"max_epochs": 3, "limit_train_batches": 2}, 4, 2),
        ({"max_steps": 3, "accumulate_grad_batches": 3}, 4, 3),  # 2 steps an epoch, of 3 and 1
    ],
)
def test_the_last_third_are_whole_images(
    options: Any, crops: int, whole: int, tmp_path: Path
) -> None:
    _, batches = fit(tmp_path, data(LastSteps(WHOLE, 1 / 3)), **options)
    assert sizes(batches) == crops * [(32, 32)] + whole * [(40, 48)]
    originals = [
        F.normalize(Halves()[k][0].as_subclass(Tensor) / 255, IMAGENET.mean, IMAGENET.std)
        for k in range(16)
    ]
    for image in batches[-1][0]:
        errors = [(image - x).abs().max() for x in originals]
        mirrored = [(image - x.flip(-1)).abs().max() for x in originals]
        assert min(*errors, *mirrored) < 1e-5


def test_a_resumed_run_switches_where_it_would_have(tmp_path: Path) -> None:
    """Before the switch, with mixed samples and a loader process."""
    last = LastSteps(WHOLE, 1 / 2)
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    expected, batches = fit(tmp_path, data(last, mixing=CutMix(1.0)), max_steps=6, callbacks=[keep])
    path = str(tmp_path / "step=2.ckpt")
    module = data(last, mixing=CutMix(1.0), num_workers=1)
    found, after = fit(tmp_path, module, max_steps=6, ckpt_path=path)
    assert sizes(after) == [(32, 32)] + 3 * [(40, 48)]
    torch.testing.assert_close(after, batches[2:], rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_images_without_labels_come_beside_them(tmp_path: Path) -> None:
    root = write_folder(tmp_path, more=2)
    images = UnlabelledImages(["images/more"], WeakAndStrong((32, 32)), batch_size=2)
    module = data(LastSteps(WHOLE, 1 / 2), unlabelled_images=images, root=root)
    _, batches = fit(tmp_path, module, max_steps=2)
    assert sizes([pair for pair, _ in batches]) == [(32, 32), (40, 48)]
    assert sizes([(views.weak, None) for _, views in batches]) == 2 * [(32, 32)]


def test_a_small_share_is_one_step(tmp_path: Path) -> None:
    _, batches = fit(tmp_path, data(LastSteps(WHOLE, 0.01)), max_steps=3)
    assert sizes([*batches]) == [(32, 32), (32, 32), (40, 48)]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"last_steps.share=0; give a number above 0"):
        LastSteps(WHOLE, 0)

    class Unequal(Halves):
        def __getitem__(self, index: int) -> Any:
            return tuple(x[..., : 40 - index, :] for x in super().__getitem__(index))

    module = SegmentationData(Unequal(), Halves(2), Normalize(), batch_size=2, num_workers=0)
    with pytest.raises(ValueError, match=r"samples of \d+×48, \d+×48 pixels make no batch; let"):
        next(iter(module.train_dataloader()))


def test_a_config_names_the_last_steps(tmp_path: Path) -> None:
    from segformer.train.lightning_cli import SegmentationCLI

    settings = yaml.safe_load(small_config(tmp_path).read_text())
    transform = {
        "class_path": "segformer.data.transforms.TrainTransform",
        "init_args": {"crop_size": [40, 48], "scale": [1.0, 1.0]},
    }
    settings["data"]["init_args"]["last_steps"] = {"transform": transform, "share": 0.2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    module = SegmentationCLI([f"--config={tmp_path / 'config.yaml'}"], run=False).datamodule
    assert module.last_steps.share == 0.2
    other = IMAGENET.__class__((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    module.normalize_as(other)
    assert module.last_steps.transform.transforms[3].normalization == other
