"""Folders of the user's own as data modules: splits, suffixes, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from halves import Halves, quiet_trainer
from PIL import Image
from torch.utils.data import DataLoader

from segformer import Classes, SegFormer
from segformer.data.datasets import DataError
from segformer.data.transforms import PadTo, RandomScaledCrop, TrainTransform
from segformer.evaluation import Protocol, evaluate, find_protocol
from segformer.train.data import FolderData, SegmentationData
from segformer.train.samples import Transformed, by_size
from segformer.train.task import SegmentationTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*GPU available"
)
CLASSES = Classes(["a", "b"])


def write(root: Path, images: str, labels: str | None, count: int = 2) -> None:
    for k in range(count):
        for name, array in (
            (images, np.zeros((4, 6, 3), np.uint8)),
            (labels, np.full((4, 6), k, np.uint8)),
        ):
            if name is not None:
                path = root / name.format(k)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)


def folder(root: Path, **options: Any) -> FolderData:
    return FolderData(root, CLASSES, TrainTransform((8, 8)), **options)


@pytest.mark.parametrize(
    ("train", "val"), [("train", "val"), ("train", "valid"), ("training", "validation")]
)
def test_splits_by_their_usual_names(
    train: str, val: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in ((train, 3), (val, 2)):
        write(tmp_path, f"images/{name}/{{}}.png", f"labels/{name}/{{}}.png", count)
    data = folder(tmp_path)
    assert (len(data.train), len(data.val), data.test) == (3, 2, None)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "valid"):
        write(tmp_path, f"images/{name}/{{}}.png", f"labels/{name}/{{}}.png")
    with pytest.raises(ValueError, match=r"val images are in .*val and .*valid; remove one"):
        folder(tmp_path)


def test_test_images_without_label_maps_are_no_test_split(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write(tmp_path, f"images/{name}/{{}}.png", f"labels/{name}/{{}}.png")
    write(tmp_path, "images/test/{}.png", None)
    assert folder(tmp_path).test is None
    write(tmp_path, "images/test/{}.png", "labels/test/{}.png")
    assert len(folder(tmp_path).test) == 2
    (tmp_path / "labels/test/1.png").unlink()
    with pytest.raises(DataError, match=r"no label map for .*images/test/1.png"):
        folder(tmp_path)


def test_one_folder_a_split_holds_images_and_masks(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        write(tmp_path, f"{name}/{{}}.jpg", f"{name}/{{}}_mask.png")
    write(tmp_path, "test/{}.jpg", None)
    data = folder(tmp_path, images="{split}", labels="{split}", label_suffix="_mask")
    assert (len(data.train), len(data.val), data.test) == (2, 2, None)
    assert [label.unique().tolist() for _, label in data.train] == [[0], [1]]


@pytest.mark.parametrize("pattern", ["images", "images/train", "images/{spilt}", "{}"])
def test_a_pattern_without_the_split_is_refused(pattern: str, tmp_path: Path) -> None:
    for option in ("images", "labels"):
        with pytest.raises(
            ValueError,
            match=r"does not contain \{split\}, so that all splits would have the same files",
        ):
            folder(tmp_path, **{option: pattern})


class Sizes(Halves):
    """Samples of several sizes, one of them below what the network takes."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = super().__getitem__(index)
        height, width = [(40, 48), (24, 24), (33, 47), (24, 24)][index % 4]
        return image[:, :height, :width], label[:height, :width]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("protocol", [None, "whole"])
def test_sizes_may_differ_in_a_batch_and_change_no_score(
    batch: int, protocol: str | None, tmp_path: Path
) -> None:
    """The judge measures each image alone, padded by hand to what the network takes."""
    samples = Sizes(8)
    model = SegFormer(TINY, num_classes=2)
    expected = torch.zeros(2, 2)
    for image, label in (samples[k] for k in range(8)):
        pixels = (image / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
            [0.229, 0.224, 0.225]
        )[:, None, None]
        height, width = label.shape
        padded = torch.nn.functional.pad(pixels, (0, max(0, 32 - width), 0, max(0, 32 - height)))
        found = model.eval()(padded[None]).argmax(1)[0, :height, :width]
        for truth in (0, 1):
            expected[truth] += torch.bincount(found[label == truth], minlength=2)
    task = SegmentationTask(model, protocol=None if protocol is None else find_protocol(protocol))
    data = SegmentationData(
        Halves(), samples, TrainTransform((32, 32)), val_batch_size=batch, num_workers=0
    )
    quiet_trainer(tmp_path).validate(task, data, verbose=False)
    assert (task.scores.confusion - expected).abs().sum() <= 2  # a tie of float32
    assert (evaluate(model, samples, Protocol()).confusion - expected).abs().sum() <= 2


def test_a_loader_of_plain_batches_is_measured_too(tmp_path: Path) -> None:
    model = SegFormer(TINY, num_classes=2)
    task = SegmentationTask(model)
    batches = [(torch.randn(2, 3, 40, 48), torch.randint(0, 2, (2, 40, 48))) for _ in range(2)]
    quiet_trainer(tmp_path).validate(task, DataLoader(batches, batch_size=None), verbose=False)
    assert task.scores.confusion.sum() == 2 * 2 * 40 * 48


def test_batches_by_size_keep_each_image_beside_its_label() -> None:
    groups = by_size(
        [
            (torch.full((3, side, 5), float(k)), torch.full((side, 5), k))
            for k, side in enumerate((4, 6, 4))
        ]
    )
    assert [tuple(images.shape) for images, _ in groups] == [(2, 3, 4, 5), (1, 3, 6, 5)]
    assert all(torch.equal(images[:, 0].long(), labels) for images, labels in groups)


class Many(Halves):
    """300 classes, of which two occur: the last, and 255, which is no class among fewer."""

    classes = Classes([str(k) for k in range(300)])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = super().__getitem__(index)
        wide = label.int()
        return image, wide.where(wide != 255, 65535).where(wide != 0, 255).where(wide != 1, 299)


def test_training_and_measuring_of_300_classes_ignores_65535_alone(tmp_path: Path) -> None:
    transform = TrainTransform((64, 64), (1.0, 1.0))
    data = SegmentationData(Many(4), Many(2, seed=1), transform, batch_size=2, num_workers=0)
    images, target = next(iter(data.train_dataloader()))
    assert set(target.unique().tolist()) == {255, 299, 65535}
    assert (target[:, 40:] == 65535).all()  # padded
    task = SegmentationTask(SegFormer(TINY, num_classes=300, dropout=0.0, drop_path=0.0))
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    loss = task.training_step((images, target), 0)
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(task(images), target.long(), ignore_index=65535)
    )
    quiet_trainer(tmp_path).validate(SegmentationTask(task.network), data, verbose=False)
    confusion = evaluate(task.network, data.val).confusion
    assert confusion.sum() == 2 * 38 * 48
    assert confusion[255].sum() + confusion[299].sum() == confusion.sum()


def test_a_crop_of_many_classes_counts_255_and_not_65535() -> None:
    label = torch.full((10, 10), 65535, dtype=torch.int32)
    label[0, :4] = torch.tensor([255, 256, 257, 299], dtype=torch.int32)
    assert RandomScaledCrop((10, 10))._is_varied(label)
    assert not RandomScaledCrop((10, 10))._is_varied(torch.full((10, 10), 255, dtype=torch.int32))
    assert PadTo((2, 2)).size == (2, 2)


def test_loader_processes_for_validation_stay_and_change_no_sample() -> None:
    samples = Sizes(5)
    transform = TrainTransform((32, 32))
    loaders = [
        SegmentationData(Halves(), samples, transform, num_workers=count).val_dataloader()
        for count in (0, 2)
    ]
    assert [loader.persistent_workers for loader in loaders] == [False, True]
    for _ in range(2):  # epochs
        for alone, together in zip(*loaders, strict=True):
            for one, two in zip(alone, together, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.zeros(8, 8), "has the type torch.float32; give class indices as integers"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"is a Tensor, \(1, 8, 8\); give a tensor of"),
        (np.zeros((8, 8), np.uint8), r"is a ndarray, \(8, 8\); give a tensor of class indices"),
    ],
)
def test_labels_of_ones_own_data_set_are_checked(label: Any, message: str) -> None:
    class Own(Halves):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], label

    with pytest.raises(ValueError, match=f"^label map 0 of Own {message}"):
        Transformed(Own(), lambda image, label: (image, label))[0]
