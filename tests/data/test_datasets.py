from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segformer import Classes
from segformer.data.datasets import DataError, FolderDataset
from segformer.data.images import read_image
from segformer.data.labels import check_labels, read_label_map

CLASSES = Classes(["a", "b", "c"])


def write(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def pair(
    root: Path, name: str = "1", label: np.ndarray | None = None, size: tuple[int, int] = (6, 8)
) -> None:
    write(root / "images" / f"{name}.jpg", np.zeros((*size, 3), np.uint8))
    write(root / "labels" / f"{name}.png", np.zeros(size, np.uint8) if label is None else label)


def dataset(root: Path, **options: int) -> FolderDataset:
    return FolderDataset(root / "images", root / "labels", CLASSES, **options)


def test_files_in_subfolders_are_paired_by_name(tmp_path: Path) -> None:
    for k, name in enumerate(("b/1", "a/2", "a/1")):
        pair(tmp_path, name, np.full((6, 8), k, np.uint8))
    samples = dataset(tmp_path)
    assert len(samples) == 3
    assert [int(label[0, 0]) for _, label in (samples[i] for i in range(3))] == [2, 1, 0]
    image, label = samples[0]
    assert (image.shape, image.dtype, label.shape, label.dtype) == (
        (3, 6, 8),
        torch.uint8,
        (6, 8),
        torch.uint8,
    )


def test_the_ignored_value_becomes_255(tmp_path: Path) -> None:
    pair(tmp_path, label=np.array([[0, 1, 2, 11]], np.uint8).repeat(6, 0), size=(6, 4))
    _, label = dataset(tmp_path, ignore_index=11)[0]
    assert label[0].tolist() == [0, 1, 2, 255]


def test_the_message_for_a_wrong_label_value_has_file_count_and_cure(tmp_path: Path) -> None:
    label = np.zeros((6, 8), np.uint8)
    label[2, :5] = 7
    pair(tmp_path, label=label)
    with pytest.raises(
        ValueError,
        match=r"1.png' holds the value 7 on 5 of 48 pixels; valid values .*ignore_index=7",
    ):
        dataset(tmp_path)[0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64], ids=str)
def test_labels_of_any_type_are_checked(dtype: torch.dtype) -> None:
    good = torch.tensor([[0, 1, 2]]).to(dtype)
    check_labels(good, 3, "it")
    check_labels(good[:, :0], 3, "it")
    if dtype != torch.int8:
        check_labels(torch.tensor([[0, 255]]).to(dtype), 3, "it")
    for value in (3, 100) if dtype == torch.uint8 else (3, 100, -1):
        with pytest.raises(
            ValueError,
            match=f"it holds the value {value} on 2 of 5 pixels .*; valid values are 0 to 2",
        ):
            check_labels(torch.tensor([0, value, value, 9, 1]).to(dtype), 3, "it")


@pytest.mark.parametrize("value", [2, 65536])
def test_an_ignored_value_that_is_a_class_or_out_of_range_is_refused(
    tmp_path: Path, value: int
) -> None:
    pair(tmp_path)
    message = rf"ignore_index={value} must be a value that is no class, negative or from 3 to 65535"
    with pytest.raises(ValueError, match=message):
        dataset(tmp_path, ignore_index=value)


def test_255_is_ignored_in_addition_to_another_value(tmp_path: Path) -> None:
    pair(tmp_path, label=np.array([[0, 1, 255, 11]], np.uint8).repeat(6, 0), size=(6, 4))
    assert dataset(tmp_path, ignore_index=11)[0][1][0].tolist() == [0, 1, 255, 255]


@pytest.mark.parametrize(("num_classes", "ignored"), [(3, 255), (300, 65535)])
def test_the_value_that_the_message_advises_is_ignored(
    num_classes: int, ignored: int, tmp_path: Path
) -> None:
    pair(tmp_path, label=np.full((6, 8), 9, np.uint8))
    folders = (tmp_path / "images", tmp_path / "labels")
    classes = Classes([f"class {k}" for k in range(num_classes)])
    with pytest.raises(ValueError, match=f"map it to a class, or to {ignored} to ignore it"):
        FolderDataset(*folders, classes, label_map={0: 0})[0]
    _, label = FolderDataset(*folders, classes, label_map={9: ignored})[0]
    assert label.unique().tolist() == [classes.ignore_index]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ("d", "d/labels", "d' holds only label maps, and no images; add images"),
        ("d/labels", "d", "d' holds only images, and no label maps; add label maps"),
    ],
)
def test_a_folder_of_the_other_kind_of_files_only_is_named(
    images: str, labels: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path / "d" / "labels" / "1.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(FileNotFoundError, match=message):
        FolderDataset(tmp_path / images, tmp_path / labels, CLASSES)


def test_images_without_label_maps_and_the_reverse_are_named(tmp_path: Path) -> None:
    pair(tmp_path)
    unpaired = write(tmp_path / "images" / "2.jpg", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"no label map for .*2.jpg"):
        dataset(tmp_path)
    unpaired.unlink()
    write(tmp_path / "labels" / "3.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(ValueError, match=r"no image for .*3.png"):
        dataset(tmp_path)


def test_two_images_of_the_same_name_are_refused(tmp_path: Path) -> None:
    pair(tmp_path)
    write(tmp_path / "images" / "1.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="have the same name"):
        dataset(tmp_path)


def test_the_message_for_two_sizes_has_both(tmp_path: Path) -> None:
    pair(tmp_path, label=np.zeros((8, 6), np.uint8))
    with pytest.raises(ValueError, match=r"1.jpg' is 6×8 but its label map .*1.png' is 8×6"):
        dataset(tmp_path)[0]


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_a_corrupt_image_is_named(tmp_path: Path, keep: int) -> None:
    pair(tmp_path, size=(64, 64))
    path = tmp_path / "images" / "1.jpg"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cannot read image .*1.jpg"):
        dataset(tmp_path)[0]


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*images"):
        dataset(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in .*images"):
        dataset(tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_mode_of_image_is_read_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (5, 4), (51, 51, 51)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 4, 5)
    assert (image == 51).all()


def test_16_bits_are_scaled_to_8_and_floats_are_refused(tmp_path: Path) -> None:
    assert (
        read_image(write(tmp_path / "deep.png", np.full((4, 5), 51 * 257, np.uint16))).eq(51).all()
    )
    with pytest.raises(
        ValueError, match=r"float.tif' has mode F, whose scale of values is unknown"
    ):
        read_image(write(tmp_path / "float.tif", np.zeros((4, 5), np.float32)))


def test_an_image_is_turned_by_its_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90°
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (3, 8, 4)


def test_a_palette_label_map_is_read_as_indices(tmp_path: Path) -> None:
    label = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    label.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    label.save(tmp_path / "label.png")
    assert read_label_map(tmp_path / "label.png").tolist() == [[0, 1, 2]]


def test_a_label_map_of_different_channels_is_refused(tmp_path: Path) -> None:
    colors = np.array([[(0, 0, 0), (0, 0, 1)]], np.uint8)
    with pytest.raises(ValueError, match=r"label.png' has mode RGB .* need one channel"):
        read_label_map(write(tmp_path / "label.png", colors))


def test_a_csv_file_lists_pairs_of_any_names(tmp_path: Path) -> None:
    write(tmp_path / "a/one.jpg", np.zeros((6, 8, 3), np.uint8))
    write(tmp_path / "b/two.png", np.full((6, 8), 2, np.uint8))
    table = tmp_path / "pairs.csv"
    table.write_text("image,label\na/one.jpg,b/two.png\n")
    samples = FolderDataset(tmp_path, tmp_path, CLASSES, names=table)
    assert len(samples) == 1
    _, label = samples[0]
    assert label.unique().tolist() == [2]
    table.write_text("image,label\na/one.jpg,b/two.png\na/gone.jpg,b/two.png\n")
    with pytest.raises(DataError, match=r"lists '.*gone.jpg', which does not exist") as error:
        FolderDataset(tmp_path, tmp_path, CLASSES, names=table)
    assert len(error.value.found) == 1


@pytest.mark.parametrize("text", ["", "image,label\n", "image\na.jpg\n", "image,label\na.jpg\n"])
def test_a_csv_file_without_both_columns_is_refused(text: str, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match="must have the columns image and label"):
        FolderDataset(tmp_path, tmp_path, CLASSES, names=table)
