"""The papers' data sets: the meaning of the values in their label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segformer import Classes
from segformer.data.datasets import FolderDataset
from segformer.data.standard import (
    ADE20K,
    STANDARD,
    VOC2012,
    CamVid,
    CamVid32,
    Cityscapes,
    COCOStuff,
)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def pair(image: Path, label: Path, values: list[int]) -> None:
    write(image, np.zeros((1, len(values), 3), np.uint8))
    write(label, np.array([values], np.uint8))


def labels(dataset: Any) -> list[int]:
    return dataset[0][1][0].tolist()


COUNTS = {
    "ADE20K": 150,
    "Cityscapes": 19,
    "VOC2012": 21,
    "VOC2012Aug": 21,
    "COCOStuff": 171,
    "CamVid": 11,
    "CamVid32": 31,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_the_number_of_classes(name: str, count: int) -> None:
    assert len(STANDARD[name].CLASSES) == count


def test_ade20ks_0_is_ignored_and_its_classes_are_one_less(tmp_path: Path) -> None:
    pair(
        tmp_path / "images/training/1.jpg", tmp_path / "annotations/training/1.png", [0, 1, 2, 150]
    )
    assert labels(ADE20K(tmp_path, "training")) == [255, 0, 1, 149]
    assert ADE20K.CLASSES.names[:3] == ("wall", "building", "sky")
    assert ADE20K.CLASSES.names[149] == "flag"
    pair(tmp_path / "images/training/1.jpg", tmp_path / "annotations/training/1.png", [151])
    with pytest.raises(
        ValueError,
        match=r"1.png' holds the value 151 on 1 of 1 pixels, which label_map does not list",
    ):
        labels(ADE20K(tmp_path, "training"))


def test_cityscapes_label_ids_become_the_19_classes(tmp_path: Path) -> None:
    name = "val/bonn/bonn_000000_000019"
    pair(
        tmp_path / f"leftImg8bit/{name}_leftImg8bit.png",
        tmp_path / f"gtFine/{name}_gtFine_labelIds.png",
        [0, 7, 8, 11, 26, 33, 4, 29],
    )
    write(
        tmp_path / f"gtFine/{name}_gtFine_color.png", np.zeros((1, 8, 3), np.uint8)
    )  # beside it in the download, and left out
    assert labels(Cityscapes(tmp_path, "val")) == [255, 0, 1, 2, 13, 18, 255, 255]
    assert Cityscapes.CLASSES.names[0] == "road"
    assert Cityscapes.CLASSES.names[18] == "bicycle"
    assert Cityscapes.CLASSES.colors[0] == (128, 64, 128)


def test_voc_uses_a_list_of_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pair(
            tmp_path / f"JPEGImages/{name}.jpg",
            tmp_path / f"SegmentationClass/{name}.png",
            [0, 20, 255],
        )
    write(
        tmp_path / "JPEGImages/c.jpg", np.zeros((1, 1, 3), np.uint8)
    )  # most of VOC's images have no label map
    for split, names in (("train", "b\n"), ("val", "a\nnone\n"), ("c", "c\n")):
        (tmp_path / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text(names)
    dataset = VOC2012(tmp_path, "train")
    assert len(dataset) == 1
    assert labels(dataset) == [0, 20, 255]
    with pytest.raises(ValueError, match="lists 'none'"):
        VOC2012(tmp_path, "val")
    with pytest.raises(ValueError, match=r"no label map for .*c.jpg"):
        VOC2012(tmp_path, "c")


def test_coco_stuff_leaves_out_the_eleven_unused_values(tmp_path: Path) -> None:
    pair(
        tmp_path / "images/val2017/1.jpg",
        tmp_path / "annotations/val2017/1.png",
        [0, 10, 12, 89, 91, 181, 255],
    )
    assert labels(COCOStuff(tmp_path, "val2017")) == [0, 10, 11, 79, 80, 170, 255]
    assert COCOStuff.CLASSES.names[0] == "person"
    assert COCOStuff.CLASSES.names[79] == "toothbrush"
    pair(tmp_path / "images/val2017/1.jpg", tmp_path / "annotations/val2017/1.png", [11])
    with pytest.raises(ValueError, match="value 11"):
        labels(COCOStuff(tmp_path, "val2017"))


def test_camvid_is_read_from_indices_and_from_colours(tmp_path: Path) -> None:
    pair(tmp_path / "images/train/1.png", tmp_path / "labels/train/1.png", [0, 10, 11])
    assert labels(CamVid(tmp_path, "train")) == [0, 10, 255]
    colors = np.array(
        [[CamVid32.CLASSES.colors[2], (0, 0, 0), CamVid32.CLASSES.colors[30]]], np.uint8
    )
    write(tmp_path / "images/train/1.png", colors)
    write(tmp_path / "labels/train/1_L.png", colors)
    (tmp_path / "labels/train/1.png").unlink()
    assert labels(CamVid32(tmp_path, "train")) == [2, 255, 30]


def test_a_folder_of_binary_masks_is_read(tmp_path: Path) -> None:
    pair(tmp_path / "i/1.png", tmp_path / "l/1.png", [0, 255, 0])
    dataset = FolderDataset(
        tmp_path / "i", tmp_path / "l", Classes(["ground", "crack"]), label_map={0: 0, 255: 1}
    )
    assert labels(dataset) == [0, 1, 0]


def test_an_unknown_colour_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "i/1.png", np.zeros((1, 3, 3), np.uint8))
    write(tmp_path / "l/1.png", np.array([[(9, 9, 9), (255, 0, 0), (9, 9, 9)]], np.uint8))
    classes = Classes(["a", "b"], [(255, 0, 0), (0, 255, 0)])
    with pytest.raises(
        ValueError, match=r"1.png' has the colour \(9, 9, 9\) on 2 of 3 pixels, which is no class's"
    ):
        labels(FolderDataset(tmp_path / "i", tmp_path / "l", classes))
    with pytest.raises(ValueError, match=r"\(255, 0, 0\) is the colour of more than one class"):
        labels(
            FolderDataset(
                tmp_path / "i", tmp_path / "l", Classes(["a", "b"], [(255, 0, 0), (255, 0, 0)])
            )
        )


def test_a_label_map_excludes_ignore_index_and_colours(tmp_path: Path) -> None:
    pair(tmp_path / "i/1.png", tmp_path / "l/1.png", [0])
    with pytest.raises(
        ValueError, match="ignore_index=3 and a label_map are given; .* map 3 to 255"
    ):
        FolderDataset(tmp_path / "i", tmp_path / "l", Classes(["a", "b"]), 3, label_map={0: 0})
    write(tmp_path / "l/1.png", np.array([[(0, 0, 1)]], np.uint8))
    with pytest.raises(ValueError, match="has mode RGB"):  # a label_map needs indices
        labels(FolderDataset(tmp_path / "i", tmp_path / "l", Classes(["a", "b"]), label_map={0: 0}))


@pytest.mark.parametrize(
    ("label_map", "message"),
    [({65536: 0}, "lists the value 65536"), ({0: 5}, "maps 0 to the class 5; use 0 to 1")],
)
def test_an_invalid_label_map_is_refused(
    label_map: dict[int, int], message: str, tmp_path: Path
) -> None:
    pair(tmp_path / "i/1.png", tmp_path / "l/1.png", [0])
    with pytest.raises(ValueError, match=message):
        FolderDataset(tmp_path / "i", tmp_path / "l", Classes(["a", "b"]), label_map=label_map)


@pytest.mark.parametrize("name", STANDARD)
def test_colours_are_rgb_triples(name: str) -> None:
    assert torch.tensor(STANDARD[name].CLASSES.colors).shape == (len(STANDARD[name].CLASSES), 3)
