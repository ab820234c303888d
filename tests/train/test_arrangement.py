"""Pairs and splits of folders as people publish them, and folders that can be read in two ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer.train.from_folder.arrangement import Arrangement, find
from segformer.train.from_folder.class_names import find_named_classes
from segformer.train.from_folder.name_lists import found_lists, listed

TRAIN, VAL = ("a", "b", "c"), ("d",)


def write(root: Path, *paths: str) -> None:
    """Images of noise; a path that ends in .png is one channel, any other RGB."""
    noise = np.random.default_rng(0)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shape = (8, 12) if path.endswith(".png") else (8, 12, 3)
        Image.fromarray(noise.integers(0, 3, shape, np.uint8)).save(root / path)


def arranged(root: Path, images: str, labels: str, train: str, val: str) -> Arrangement:
    """The pairs a, b, c of training and d of validation, in files of these patterns."""
    for split, names in ((train, TRAIN), (val, VAL)):
        for name in names:
            write(root, *(p.format(split=split, name=name) for p in (images, labels)))
    return find(root)


def files(found: Arrangement) -> dict[str, set[tuple[str, str]]]:
    return {
        split: {(str(pair.image), str(pair.label)) for pair in pairs}
        for split, pairs in found.pairs.items()
    }


@pytest.mark.parametrize(
    ("images", "labels", "train", "val"),
    [
        ("images/{split}/{name}.jpg", "labels/{split}/{name}.png", "train", "val"),
        ("images/{split}/{name}.jpg", "annotations/{split}/{name}.png", "training", "validation"),
        ("{split}/images/{name}.jpg", "{split}/masks/{name}.png", "train", "valid"),
        ("{split}2017/{name}.jpg", "annotations/{split}2017/{name}.png", "train", "val"),
        ("images/{split}2017/{name}.jpg", "stuffthingmaps/{split}2017/{name}.png", "train", "val"),
        ("{split}/{name}.jpg", "{split}/{name}_mask.png", "train", "valid"),
        ("{split}/{name}.jpg", "{split}/{name}.png", "train", "valid"),
        ("{split}/{name}_sat.jpg", "{split}/{name}_mask.png", "train", "valid"),
        ("img_dir/{split}/{name}.jpg", "ann_dir/{split}/{name}.png", "train", "val"),
        ("{split}/{name}.png", "{split}annot/{name}.png", "train", "val"),
        ("{split}_images/{name}.jpg", "{split}_labels/{name}.png", "train", "val"),
        ("set/images/{split}/x/{name}.jpg", "set/gt/{split}/x/{name}_gt.png", "train", "val"),
        ("Images/Train/{name}{split}.jpg", "Labels/Train/{name}{split}.png", "train", "val"),
    ],
)
def test_splits_of_folders(images: str, labels: str, train: str, val: str, tmp_path: Path) -> None:
    found = arranged(tmp_path, images, labels, train, val)
    expected = {
        split: {
            (images.format(split=word, name=name), labels.format(split=word, name=name))
            for name in names
        }
        for split, word, names in (("train", train, TRAIN), ("val", val, VAL))
    }
    if "Train/" in images:  # the folder has only this split
        expected = {"train": expected["train"] | expected["val"]}
    assert files(found) == expected
    assert found.is_divided == ("Train/" not in images)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}.jpg", "{}_mask.png"),
        ("{}.png", "{}_L.png"),
        ("{}.jpg", "{}.png"),
        ("{}.png", "{}-truthful.png"),  # no word that is known
        ("imgs/{}.jpg", "masks/{}_mask.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("site/day/images/{}.jpg", "site/day/labels/{}.png"),
        ("images/{}.jpg", "other/{}.png"),
        ("photographs/{}.jpg", "areas/{}.png"),
        ("images/{}.jpg", "annotations/trimaps/{}.png"),
        ("data/images/{}.jpg", "data/ground_truth/{}.png"),
    ],
)
def test_folders_without_splits(image: str, label: str, tmp_path: Path) -> None:
    names = ("1", "10", "tree 2")
    for name in names:
        write(tmp_path, image.format(name), label.format(name))
    found = find(tmp_path)
    assert files(found) == {"": {(image.format(name), label.format(name)) for name in names}}
    assert not found.is_divided


def test_test_images_without_label_maps_are_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path, "images/test/e.jpg", "images/test/f.jpg")
    found = arranged(
        tmp_path, "images/{split}/{name}.jpg", "labels/{split}/{name}.png", "train", "val"
    )
    assert found.pairs.keys() == {"train", "val"}
    assert "2 test images have no label maps and are left out" in found.decisions


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a.jpg", "b.jpg"], "neither folders nor names show which are label maps"),
        (["images/a.jpg", "labels/a.png", "images/b.jpg"], "1 of 2 images .* have no label map"),
        (["images/a.jpg", "labels/a.png", "labels/b.png"], "1 of 2 label maps .* have no image"),
        (["images/a.jpg", "labels/a.png", "masks/a.png"], "has two label maps of one name"),
        (["images/a.jpg", "labels/a.png", "check.png"], "1 image files outside of them"),
        (
            ["images/train/a.jpg", "labels/train/a.png", "images/b.jpg", "labels/b.png"],
            "1 pairs outside of them",
        ),
        (["images/val/a.jpg", "labels/val/a.png"], "has the splits val, and no train"),
        (["train/val/a.jpg", "train/val/a_mask.png"], "below a folder for train and .* for val"),
        (["leftImg8bit/a.png", "gtFine/b.png"], "as Cityscapes; use configs/segformer_cityscapes"),
    ],
)
def test_folders_that_are_refused(paths: list[str], message: str, tmp_path: Path) -> None:
    write(tmp_path, *paths)
    with pytest.raises(ValueError, match=message):
        find(tmp_path)


def test_files_of_no_format_of_images_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path, "images/a.jpg", "labels/a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "README.md").write_text("a data set")
    assert len(find(tmp_path).pairs[""]) == 1


@pytest.mark.parametrize(
    "line", ["{}", "images/{}", "images/{}.jpg", "./images/{}.jpg labels/{}.png", "{}.jpg"]
)
def test_a_list_names_pairs_in_the_usual_ways(line: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, f"images/{name}.jpg", f"labels/{name}.png")
    names = tmp_path / "names.txt"
    names.write_text(line.format("b", "b") + "\n\n")
    (pair,) = listed(find(tmp_path).pairs[""], names)
    assert str(pair.label) == "labels/b.png"


def test_a_list_with_a_name_of_no_pair_or_of_two_is_refused(tmp_path: Path) -> None:
    for day in ("1", "2"):
        write(tmp_path, f"{day}/images/a.jpg", f"{day}/labels/a.png")
    pairs = find(tmp_path).pairs[""]
    names = tmp_path / "names.txt"
    for text, message in (("b", "no image has this name"), ("a", "which may be '1/images/a.jpg'")):
        names.write_text(text)
        with pytest.raises(ValueError, match=message):
            listed(pairs, names)


def test_lists_of_voc_are_those_of_segmentation(tmp_path: Path) -> None:
    for folder in ("Main", "Segmentation"):
        for split in ("train", "val"):
            path = tmp_path / "ImageSets" / folder / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("a")
    assert {path.parent.name for path in found_lists(tmp_path).values()} == {"Segmentation"}
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").unlink()
    (tmp_path / "ImageSets" / "val.txt").write_text("a")
    (tmp_path / "ImageSets" / "train.txt").write_text("a")
    with pytest.raises(ValueError, match="choose by --train_names and --val_names"):
        found_lists(tmp_path)


def test_lists_and_names_behind_a_link_are_found(tmp_path: Path) -> None:
    """As the images behind it are."""
    (tmp_path / "store" / "lists").mkdir(parents=True)
    for name in ("train", "val"):
        (tmp_path / "store" / "lists" / f"{name}.txt").write_text("a\n")
    (tmp_path / "store" / "classes.txt").write_text("sky\nroad\n")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "set").symlink_to(tmp_path / "store", target_is_directory=True)
    assert found_lists(tmp_path / "links").keys() == {"train", "val"}
    named = find_named_classes(tmp_path / "links")
    assert named is not None
    assert named.names == ("sky", "road")
