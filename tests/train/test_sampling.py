"""Rare-class sampling draws by DAFormer's equations 4 and 5 (arXiv 2111.14887)."""

from __future__ import annotations

import math
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from halves import Halves, quiet_trainer, write_folder
from lightning import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import Dataset
from torchvision import tv_tensors

from segformer import Classes, SegFormer
from segformer.data.datasets import FolderDataset
from segformer.data.rasters import RasterDataset
from segformer.data.transforms import TrainTransform
from segformer.train.data import SegmentationData
from segformer.train.order import Batches, Order
from segformer.train.resume import Resumable, newest_checkpoint
from segformer.train.sampling import RareClasses, Sampling, class_pixels
from segformer.train.task import SegmentationTask


class Planted(Dataset):
    """Sixteen label maps of 10×10 pixels: road, a car on two, a sign of 3 pixels on one."""

    classes = Classes(["road", "car", "sign", "train"])

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        label = torch.zeros(10, 10, dtype=torch.uint8)
        label[0] = 255
        if index in (3, 9):
            label[5:9, 2:7] = 1
        if index == 12:
            label[2, :3] = 2
        return tv_tensors.Image(torch.zeros(3, 10, 10, dtype=torch.uint8)), tv_tensors.Mask(label)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("min_pixels", [1, 10])
@pytest.mark.filterwarnings("ignore:no training image", "ignore:.* of 16 training images")
def test_images_are_drawn_by_the_published_probabilities(
    temperature: float, min_pixels: int
) -> None:
    sampling = RareClasses(temperature, min_pixels)
    pixels = {"road": 16 * 90 - 43, "car": 40, "sign": 3}
    images = {"road": range(16), "car": (3, 9), "sign": (12,)}
    names = ["road", "car", *(["sign"] if min_pixels == 1 else [])]
    scores = {name: math.exp((1 - pixels[name] / 1600) / temperature) for name in names}
    expected = np.zeros(16)
    for name, score in scores.items():
        expected[list(images[name])] += score / sum(scores.values()) / len(images[name])
    order = sampling.order(Planted())
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(index for _ in range(200) for index in order(generator=generator).tolist())
    shares = np.array([drawn[index] for index in range(16)]) / (200 * 16)
    np.testing.assert_allclose(shares, expected, atol=4 * math.sqrt(0.25 / 3200))


def test_classes_that_no_image_holds_are_named() -> None:
    with pytest.warns(UserWarning, match="no training image holds 20 pixels of sign, train: no"):
        RareClasses(1.0, min_pixels=20).order(Planted())
    with pytest.raises(ValueError, match="holds 100 pixels of one class"):
        RareClasses().order(Planted())


@pytest.mark.filterwarnings("ignore:no training image", "error:.* training images are drawn")
def test_images_that_are_hardly_ever_drawn_are_counted() -> None:
    """Those without a car, since e^((f_road - f_car) / T) is e^84 if T is 0.01."""
    said = r"^14 of 16 training images are drawn less than once in 100 epochs, .* which is 0\.01$"
    with pytest.warns(UserWarning, match=said):
        RareClasses(min_pixels=20).order(Planted())
    RareClasses(0.5, min_pixels=20).order(Planted())  # e^1.7: all are drawn


def test_a_sample_is_mixed_with_another_one() -> None:
    """The next of the epoch that is not the same; the same if there is no other."""

    def draws(indices: list[int]) -> list[Any]:
        batches = Batches(4, 2, 0, order=lambda generator: torch.tensor(indices))
        return [draw for number in range(2) for draw in batches.batch(0, number)]

    assert [draw.other for draw in draws([3, 3, 1, 3])] == [1, 1, 3, 1]
    assert [draw.other for draw in draws([2, 2, 2, 2])] == [2, 2, 2, 2]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature=0;"):
        RareClasses(0)
    with pytest.raises(ValueError, match="min_pixels=0;"):
        RareClasses(0.01, 0)


def test_pixels_are_counted_in_files_without_their_images(tmp_path: Path) -> None:
    """And in rasters as in photographs, and in data sets without files."""
    root = write_folder(tmp_path, train=3)
    folders: Any = (root / "images/train", root / "labels/train", Halves.classes)
    expected = class_pixels(Halves(3))
    assert expected.sum(1).tolist() == [40 * 48] * 3
    assert expected[:, -1].tolist() == [2 * 48] * 3
    rasters = RasterDataset(*folders, ignore_index=11)
    assert torch.equal(class_pixels(rasters), expected)
    photographs = FolderDataset(*folders, ignore_index=11)
    for path, _ in photographs.pairs:
        header = path.read_bytes()
        path.write_bytes(header[:100])
    assert torch.equal(class_pixels(photographs), expected)


def test_a_repeated_sample_gets_other_random_numbers() -> None:
    def order(generator: torch.Generator) -> torch.Tensor:
        return torch.tensor([4, 2, 4, 4])

    draws = Batches(5, 4, 0, order=order).batch(0, 0)
    assert [draw.index for draw in draws] == [4, 2, 4, 4]
    assert len({draw.seed for draw in draws}) == 4
    assert draws[0].seed == next(
        draw.seed for n in range(5) for draw in Batches(5, 1, 0).batch(0, n) if draw.index == 4
    )


class Reversed(Sampling):
    """A user's own."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def order(self, dataset: Any) -> Order:
        return lambda generator: torch.arange(len(dataset)).flip(0).roll(self.start)


def test_a_users_own_sampling_is_the_same_in_a_resumed_run() -> None:
    module, resumed, other = (
        SegmentationData(Planted(), Planted(), TrainTransform((8, 8)), sampling=sampling)
        for sampling in (Reversed(), Reversed(), Reversed(2))
    )
    for each in (module, resumed, other):
        each.trainer = quiet_trainer(Path(), max_steps=1)  # type: ignore[assignment]
        each.trainer.state.fn = TrainerFn.FITTING
    resumed.load_state_dict(module.state_dict())
    with pytest.raises(ValueError, match=r"was Reversed\(start=0\) and is Reversed\(start=2\)"):
        other.load_state_dict(module.state_dict())


class Signal(Callback):
    """Tells the run to stop in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


def fit(folder: Path, sampling: RareClasses | None, stop: int | None = None) -> Any:
    torch.manual_seed(0)
    task = SegmentationTask(SegFormer(TINY, num_classes=4))
    data = SegmentationData(
        *(Planted(), Planted(), TrainTransform((32, 32))),
        batch_size=4,
        num_workers=0,
        sampling=sampling,
    )
    resume = Resumable(1)
    resume.dirpath = str(folder)
    trainer = quiet_trainer(folder, max_steps=4, limit_val_batches=0)
    trainer.callbacks += [resume] if stop is None else [resume, Signal(stop)]
    checkpoint = newest_checkpoint(folder)
    try:
        trainer.fit(task, data, ckpt_path=checkpoint and str(checkpoint))
    except SystemExit:
        return None
    return task.network.state_dict()


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    expected = fit(tmp_path / "whole", RareClasses(min_pixels=1))
    assert fit(tmp_path / "stopped", RareClasses(min_pixels=1), stop=1) is None
    with pytest.raises(ValueError, match=r"data.sampling was RareClasses\(.*and is None"):
        fit(tmp_path / "stopped", None)
    found = fit(tmp_path / "stopped", RareClasses(min_pixels=1))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
