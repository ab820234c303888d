import numpy as np
from PIL import Image

from segformer import Classes
from segformer.visualize import indexed, legend, overlay, sheet

CLASSES = Classes(["red", "green"], [(255, 0, 0), (0, 255, 0)])
LABELS = np.array([[0, 1, 255]], np.uint8)


def test_an_indexed_picture_holds_indices_and_shows_colours(tmp_path) -> None:
    indexed(LABELS, CLASSES).save(tmp_path / "label.png")
    read = Image.open(tmp_path / "label.png")
    assert np.array(read).tolist() == [[0, 1, 255]]
    assert np.array(read.convert("RGB")).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 0]]]


def test_an_overlay_mixes_colours_in_and_leaves_ignored_pixels_alone() -> None:
    image = Image.new("RGB", (3, 1), (0, 0, 200))
    assert np.array(overlay(image, LABELS, CLASSES, alpha=0.5)).tolist() == [[[128, 0, 100], [0, 128, 100], [0, 0, 200]]]


def test_a_legend_shows_every_class_within_its_width() -> None:
    names = [f"class number {k}" for k in range(30)]
    picture = np.array(legend(Classes(names), width=400))
    assert picture.shape[1] == 400
    for color in Classes(names).colors[1:]:
        assert (picture == color).all(-1).sum() > 200


def test_a_sheet_places_rows_and_columns_without_overlap() -> None:
    small, large = Image.new("RGB", (20, 10), "blue"), Image.new("RGB", (40, 30), "blue")
    picture = np.array(sheet({"image": [small, large], "label": [large, small]}, CLASSES))
    assert (picture == (0, 0, 255)).all(-1).sum() == 2 * (20 * 10 + 40 * 30)
