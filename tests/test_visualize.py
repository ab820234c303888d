import numpy as np
import pytest
from PIL import Image

from segformer import Classes
from segformer.inference.fonts import font_of
from segformer.inference.pictures import (
    colored,
    contact_sheet,
    indexed,
    legend,
    overlay,
    sheet,
    with_legend,
)

CLASSES = Classes(["red", "green"], [(255, 0, 0), (0, 255, 0)])
LABELS = np.array([[0, 1, 255]], np.uint8)


def test_an_indexed_picture_holds_indices_and_shows_colours(tmp_path) -> None:
    indexed(LABELS, CLASSES).save(tmp_path / "label.png")
    read = Image.open(tmp_path / "label.png")
    assert np.array(read).tolist() == [[0, 1, 255]]
    assert np.array(read.convert("RGB")).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 0]]]


def test_an_overlay_mixes_colours_in_and_leaves_ignored_pixels_alone() -> None:
    image = Image.new("RGB", (3, 1), (0, 0, 200))
    assert np.array(overlay(image, LABELS, CLASSES, alpha=0.5)).tolist() == [
        [[128, 0, 100], [0, 128, 100], [0, 0, 200]]
    ]


def test_a_legend_shows_every_class_within_its_width() -> None:
    names = [f"class number {k}" for k in range(30)]
    picture = np.array(legend(Classes(names), width=400))
    assert picture.shape[1] == 400
    for color in Classes(names).shown_colors[1:]:
        assert (picture == color).all(-1).sum() > 200


def test_a_sheet_places_rows_and_columns_without_overlap() -> None:
    small, large = Image.new("RGB", (20, 10), "blue"), Image.new("RGB", (40, 30), "blue")
    picture = np.array(sheet({"image": [small, large], "label": [large, small]}, CLASSES))
    assert (picture == (0, 0, 255)).all(-1).sum() == 2 * (20 * 10 + 40 * 30)


def test_pictures_of_300_classes_hold_indices_and_show_their_colours(tmp_path) -> None:
    classes = Classes([str(k) for k in range(300)])
    labels = np.array([[0, 255, 299, 65535]])
    indexed(labels, classes).save(tmp_path / "label.png")
    with Image.open(tmp_path / "label.png") as read:
        assert np.array(read).tolist() == labels.tolist()
    shown = [list(classes.colors[k]) for k in (0, 255, 299)]
    assert np.array(colored(labels, classes)).tolist() == [[*shown, [0, 0, 0]]]
    image = Image.new("RGB", (4, 1), (0, 0, 200))
    mixed = np.array(overlay(image, labels, classes, alpha=1.0))[0].tolist()
    assert mixed == [*shown, [0, 0, 200]]


def test_a_legend_is_below_the_picture_and_names_what_occurs() -> None:
    picture = Image.new("RGB", (300, 40), "blue")
    labels = np.full((40, 300), 1)
    labels[0] = 255
    result = np.array(with_legend(picture, labels, CLASSES))
    assert np.array_equal(result[:40], np.array(picture))
    assert (result[40:] == (0, 255, 0)).all(-1).sum() > 200
    assert not (result[40:] == (255, 0, 0)).all(-1).any()
    assert with_legend(picture, np.full((40, 300), 255), CLASSES) is picture


def test_a_small_picture_is_enlarged_to_whole_multiples_above_its_legend() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    result = np.array(with_legend(Image.fromarray(pixels), np.zeros((72, 96), int), CLASSES))
    assert np.array_equal(result[:216, :288], pixels.repeat(3, 0).repeat(3, 1))
    assert (result[216:] == (255, 0, 0)).all(-1).sum() > 200


def test_a_contact_sheet_has_each_picture_its_name_and_one_legend() -> None:
    blue = [Image.new("RGB", size, "blue") for size in ((60, 40), (30, 40), (60, 10))]
    names = ["a", "a name that is much longer than its picture is wide", "c"]
    pictures = list(zip(names, blue, strict=True))
    picture = np.array(contact_sheet(pictures, CLASSES, [1], columns=2, cell=(60, 40)))
    is_blue = (picture == (0, 0, 255)).all(-1)
    assert is_blue.sum() == 60 * 40 + 30 * 40 + 60 * 10
    assert (picture == (0, 255, 0)).all(-1).sum() > 200
    assert not (picture == (255, 0, 0)).all(-1).any()
    without = [(" ", image) for image in blue]
    unnamed = np.array(contact_sheet(without, CLASSES, [1], columns=2, cell=(60, 40)))
    differs = (picture != unnamed).any(-1)
    assert differs[:, :68].any()
    assert differs[:, 68:].any()
    assert not (differs & is_blue).any()


def test_letters_of_other_alphabets_are_drawn(caplog: pytest.LogCaptureFixture) -> None:
    """Each has a shape of its own, where Pillow's own font has one box for all."""
    letters = "äößéαβдл"
    shapes = {bytes(font_of(letter, 16).getmask(letter)) for letter in letters}
    assert len(shapes) == len(letters)
    assert not caplog.text
    one, other = (
        legend(Classes([name, "sky"]), 300, [0]).tobytes() for name in ("Gebäude", "Geböude")
    )
    assert one != other
    unknown = "\U00013000"  # a hieroglyph
    font_of(unknown, 16)
    assert f"no font of this machine has all letters of {unknown!r}" in caplog.text
