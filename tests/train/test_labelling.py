"""Classes from label maps: what is read by the chosen options is what was drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from segformer import Classes
from segformer.data.classes import voc_palette
from segformer.data.datasets import DataError, FolderDataset
from segformer.train.from_folder.class_names import find_named_classes
from segformer.train.from_folder.label_values import read_label_maps
from segformer.train.from_folder.labelling import Labelling, labelling

SHAPE = (16, 24)
COLORS = ((0, 0, 0), (128, 64, 128), (70, 70, 70), (0, 0, 142))
Save = Callable[[np.ndarray, Path], None]


def drawn(count: int = 4, seed: int = 0) -> list[np.ndarray]:
    """Three label maps of random classes."""
    noise = np.random.default_rng(seed)
    return [noise.integers(0, count, SHAPE, np.uint8) for _ in range(3)]


def write(root: Path, maps: list[np.ndarray], save: Save) -> list[Path]:
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number, label in enumerate(maps):
        Image.new("RGB", label.shape[::-1]).save(root / "images" / f"{number}.png")
        save(label, root / "labels" / f"{number}.png")
    return sorted((root / "labels").iterdir())


def found(root: Path, maps: list[np.ndarray], save: Save, **options: object) -> Labelling:
    contents = read_label_maps(write(root, maps, save))
    return labelling(contents, find_named_classes(root), **options)  # type: ignore[arg-type]


def read(root: Path, classes: Labelling) -> list[np.ndarray]:
    """The label maps as training reads them."""
    dataset = FolderDataset(root / "images", root / "labels", classes.classes, **classes.options)
    return [dataset[k][1].numpy() for k in range(len(dataset))]


def values(label: np.ndarray, path: Path) -> None:
    Image.fromarray(label).save(path)


def by(table: list[int]) -> Save:
    return lambda label, path: values(np.array(table, np.uint16)[label].astype(np.uint8), path)


def in_colors(label: np.ndarray, path: Path) -> None:
    Image.fromarray(np.array(COLORS, np.uint8)[label]).save(path)


def grey_rgb(label: np.ndarray, path: Path) -> None:
    Image.fromarray(label).convert("RGB").save(path)


def with_palette(label: np.ndarray, path: Path) -> None:
    image = Image.fromarray(label)
    image.putpalette([channel for color in COLORS for channel in color])
    image.save(path)


def with_own_palette(label: np.ndarray, path: Path) -> None:
    """The colours in an order that differs from file to file, as optimising tools leave them."""
    order = np.random.default_rng(int(path.stem)).permutation(len(COLORS))
    image = Image.fromarray(np.argsort(order).astype(np.uint8)[label])
    image.putpalette([channel for k in order for channel in COLORS[k]])
    image.save(path)


@pytest.mark.parametrize(
    "save",
    [
        values,
        by([1, 2, 3, 4]),
        by([0, 60, 120, 180]),
        grey_rgb,
        with_palette,
        in_colors,
        with_own_palette,
    ],
    ids=["0 to 3", "1 to 4", "grey levels", "RGB of grey", "palette", "colours", "own palettes"],
)
def test_label_maps_of_every_coding_are_read_as_they_were_drawn(save: Save, tmp_path: Path) -> None:
    maps = drawn()
    classes = found(tmp_path, maps, save)
    assert len(classes.classes) == 4
    assert classes.pixels == tuple(np.bincount(np.ravel(maps), minlength=4)) or save in (
        in_colors,
        with_own_palette,
    )
    own = read(tmp_path, classes)
    if save in (in_colors, with_own_palette):  # the classes are in the order of their colours
        order = np.array([sorted(COLORS).index(color) for color in COLORS])
        maps = [order[label] for label in maps]
        assert classes.classes.colors == tuple(sorted(COLORS))
    if save is with_palette:
        assert classes.classes.colors == COLORS
    for label, expected in zip(own, maps, strict=True):
        np.testing.assert_array_equal(label, expected)


def test_masks_of_0_and_255_are_background_and_object(tmp_path: Path) -> None:
    maps = drawn(2)
    classes = found(tmp_path, maps, by([0, 255]))
    assert classes.classes.names == ("background", "object")
    np.testing.assert_array_equal(read(tmp_path, classes), maps)


def test_255_is_no_class_beside_others(tmp_path: Path) -> None:
    classes = found(tmp_path, drawn(4), by([0, 1, 2, 255]))
    assert len(classes.classes) == 3
    assert "value 255 means no class" in classes.decisions
    assert set(np.unique(read(tmp_path, classes))) == {0, 1, 2, 255}


def test_a_value_between_others_that_no_pixel_has_is_a_class(tmp_path: Path) -> None:
    classes = found(tmp_path, drawn(4), by([0, 1, 3, 4]))
    assert classes.classes.names[2] == "class 2"
    assert classes.pixels[2] == 0
    assert any("no pixel has the value 2" in sentence for sentence in classes.decisions)


def test_values_above_255_are_classes_or_mapped(tmp_path: Path) -> None:
    def wide(label: np.ndarray, path: Path) -> None:
        Image.fromarray(1000 * label.astype(np.uint16)).save(path)

    maps = drawn()
    classes = found(tmp_path, maps, wide)
    np.testing.assert_array_equal(read(tmp_path, classes), maps)


def test_65535_is_no_class(tmp_path: Path) -> None:
    """Beside few values, and beside more than 255, of which 255 is a class."""

    def wide(label: np.ndarray, path: Path) -> None:
        Image.fromarray(label.astype(np.uint16)).save(path)

    void = np.zeros(SHAPE, bool)
    void[:4] = True
    few = [np.where(void, 65535, label.astype(np.uint16)) for label in drawn()]
    many = [np.where(void, 65535, np.resize(np.arange(300), SHAPE))]
    for folder, maps, count in ((tmp_path / "few", few, 4), (tmp_path / "many", many, 300)):
        classes = found(folder, maps, wide)
        assert len(classes.classes) == count
        ignored = classes.classes.ignore_index
        expected = [np.where(void, ignored, label) for label in maps]
        np.testing.assert_array_equal(read(folder, classes), expected)
        assert any("65535 means no class" in sentence for sentence in classes.decisions)
    without = found(tmp_path / "without", [np.resize(np.arange(300), SHAPE)], wide)
    assert not any("no class" in sentence for sentence in without.decisions)


def test_the_files_value_for_no_data_is_no_class(tmp_path: Path) -> None:
    """As GDAL writes it into a TIFF: the classes are the same to those who read them."""
    root = tmp_path
    maps = drawn(5)
    write(root, maps, values)
    for path, label in zip(sorted((root / "labels").iterdir()), maps, strict=True):
        path.unlink()
        Image.fromarray(label).save(path.with_suffix(".tif"), tiffinfo={42113: "0"})
    classes = labelling(read_label_maps(sorted((root / "labels").iterdir())))
    assert classes.pixels == tuple(sum(int((m == k).sum()) for m in maps) for k in range(1, 5))
    expected = [np.where(label == 0, 255, label - 1.0) for label in maps]
    np.testing.assert_array_equal(read(root, classes), expected)
    assert "value 0 means no class, as files state" in classes.decisions


def test_a_class_that_the_files_state_as_no_data_is_named(tmp_path: Path) -> None:
    """As QGIS writes masks: 0 would be the background."""
    folders = tmp_path / "images", tmp_path / "labels"
    for folder in folders:
        folder.mkdir()
    mask = drawn(2)[0]
    Image.new("RGB", mask.shape[::-1]).save(folders[0] / "0.png")
    path = folders[1] / "0.tif"
    Image.fromarray(mask).save(path, tiffinfo={42113: "0"})
    with pytest.raises(ValueError, match=r"hold only 1, beside 0, which is no data.* -unsetnodata"):
        labelling(read_label_maps([path]))
    classes = Classes(["ground", "house"])
    for options in ({}, {"label_map": {0: 0, 1: 1}}):
        dataset = FolderDataset(*folders, classes, **options)
        with pytest.raises(ValueError, match=r"0\.tif' states 0 as .* the class 'ground'; .*gdal"):
            dataset[0]
        with pytest.raises(DataError, match="states 0 as its value for no data"):
            dataset.check_files()
    np.testing.assert_array_equal(
        FolderDataset(*folders, classes, label_map={0: 255, 1: 1})[0][1],
        np.where(mask == 0, 255, 1),
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "ground\nroad\ncar\ntree\n"),
        ("labels.txt", "\ufeffground\nroad\ncar\ntree"),
        ("classes.json", json.dumps(["ground", "road", "car", "tree"])),
        ("classes.json", json.dumps({"ground": 0, "road": 1, "car": 2, "tree": 3})),
        ("classes.json", json.dumps({"0": "ground", "1": "road", "2": "car", "3": "tree"})),
        ("train/_classes.csv", "Pixel Value, Class\n0, ground\n1, road\n2, car\n3, tree\n"),
        (
            "classes.json",
            json.dumps(
                {
                    "categories": [
                        {"id": k, "name": name}
                        for k, name in enumerate(("ground", "road", "car", "tree"))
                    ]
                }
            ),
        ),
    ],
)
def test_files_of_names(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    maps = drawn()
    classes = found(tmp_path, maps, values)
    assert classes.classes == Classes(["ground", "road", "car", "tree"])
    np.testing.assert_array_equal(read(tmp_path, classes), maps)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_dict.csv", "name,r,g,b\nvoid,0,0,0\nroad,128,64,128\npole,70,70,70\ncar,0,0,142\n"),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nvoid:0,0,0::\nroad:128,64,128::\n"
            "pole:70,70,70::\ncar:0,0,142::\n",
        ),
    ],
)
def test_files_of_names_and_colours(name: str, text: str, tmp_path: Path) -> None:
    tmp_path.joinpath(name).write_text(text)
    maps = drawn()
    classes = found(tmp_path, maps, in_colors)
    assert classes.classes == Classes(["road", "pole", "car"], COLORS[1:])
    expected = np.array([255, 0, 1, 2])[np.array(maps)]  # black is void, which is no class
    np.testing.assert_array_equal(read(tmp_path, classes), expected)


@pytest.mark.parametrize(
    ("names", "table", "expected"),
    [
        ("road\ncar\ntree\nvoid\n", [0, 1, 2, 3], [0, 1, 2, 255]),
        ("void\nroad\ncar\ntree\n", [0, 1, 2, 3], [255, 0, 1, 2]),
        ("road\ncar\ntree\nsky\n", [1, 2, 3, 4], [0, 1, 2, 3]),
        ("road\nsky\n", [0, 255, 255, 255], [0, 1, 1, 1]),
        ("road\nsky\ncar\ntree\nsea\n", [0, 1, 3, 255], [0, 1, 3, 255]),
    ],
)
def test_names_and_values(
    names: str, table: list[int], expected: list[int], tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text(names)
    maps = drawn()
    classes = found(tmp_path, maps, by(table))
    assert classes.classes.names == tuple(name for name in names.split() if name != "void")
    np.testing.assert_array_equal(read(tmp_path, classes), np.array(expected)[np.array(maps)])


def test_a_value_that_the_user_gives_is_no_class(tmp_path: Path) -> None:
    classes = found(tmp_path, drawn(), values, ignore_index=3)
    assert len(classes.classes) == 3
    assert set(np.unique(read(tmp_path, classes))) == {0, 1, 2, 255}


def test_a_label_map_that_the_user_gives_is_kept(tmp_path: Path) -> None:
    given = {0: 0, 1: 1, 2: 1, 3: 255}
    maps = drawn()
    classes = found(tmp_path, maps, values, label_map=given)
    assert classes.pixels == ((np.array(maps) == 0).sum(), np.isin(maps, (1, 2)).sum())
    assert classes.options == {"label_map": given}


def test_a_label_map_takes_the_names_of_its_values(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("void\nroad\ntree\ncar\n")
    contents = read_label_maps(write(tmp_path, drawn(), values))
    named = find_named_classes(tmp_path)
    for label_map, names in (
        ({0: 255, 1: 0, 2: 1, 3: 2}, ("road", "tree", "car")),
        ({0: 255, 1: 0, 2: 1, 3: 1}, ("class 0", "class 1")),
    ):
        classes = labelling(contents, named, label_map=label_map)
        assert classes.classes.names == names
        assert ("do not fit its 2 classes" in " ".join(classes.decisions)) == (len(names) == 2)


def test_zero_as_no_class_counts_from_1(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("road\ntree\ncar\n")
    maps = drawn(3)
    classes = found(tmp_path, maps, values, ignore_index=0)
    assert classes.classes.names == ("road", "tree", "car")
    np.testing.assert_array_equal(read(tmp_path, classes), np.array([255, 0, 1])[np.array(maps)])


@pytest.mark.parametrize(
    ("save", "names", "options", "message"),
    [
        (in_colors, "", {"ignore_index": 0}, "--data.ignore_index 0 is given.*coded by colour"),
        (in_colors, "", {"label_map": {0: 1}}, "--data.label_map .* is given.*coded by colour"),
        (values, "", {"ignore_index": 3, "label_map": {0: 0}}, "map 3 to 255 in label_map"),
        (by([1, 2, 1, 2]), "a\nb\nc", {}, r"counted from 0 or from 1; .*'\{1: 0, 2: 1, 3: 2, 255"),
        (by([0, 255, 0, 255]), "a\nb\nc", {"ignore_index": 0}, "hold 255; add the missing names"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    save: Save, names: str, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    if names:
        (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(ValueError, match=message):
        found(tmp_path, drawn(), save, **options)


def test_no_class_of_another_colour_than_black_is_refused(tmp_path: Path) -> None:
    rows = ["name,r,g,b", *(f"c{k},{r},{g},{b}" for k, (r, g, b) in enumerate(COLORS))]
    (tmp_path / "class_dict.csv").write_text("\n".join(rows).replace("c3", "void"))
    with pytest.raises(ValueError, match="'void' in .* has the colour .*only black can mean no"):
        found(tmp_path, drawn(), in_colors)


def soft(label: np.ndarray, path: Path) -> None:
    """A large disc whose edge is smoothed."""
    y, x = np.mgrid[:200, :200]
    distance = np.hypot(y - 100, x - 100) - 60
    values((255 * (0.5 - distance / 6).clip(0, 1)).astype(np.uint8), path)


def soft_colors(label: np.ndarray, path: Path) -> None:
    """Discs of two colours on a third, whose edges are smoothed as Pillow resizes them."""
    image = Image.new("RGB", (480, 480), (0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 40, 240, 240), (128, 64, 128))
    draw.ellipse((230, 230, 440, 440), (220, 20, 60))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((160, 160), Image.Resampling.BILINEAR).save(path)


def photograph(label: np.ndarray, path: Path) -> None:
    values(np.arange(256, dtype=np.uint8).reshape(16, 16), path)


def some_in_color(label: np.ndarray, path: Path) -> None:
    (in_colors if path.stem == "0" else values)(label, path)


@pytest.mark.parametrize(
    ("save", "names", "message"),
    [
        (by([0, 0, 0, 0]), "", "hold only 0, which is one class"),
        (soft, "", "edges were smoothed"),
        (soft_colors, "", r"have \d+ colours; edges were smoothed"),
        (photograph, "", "or they are photographs"),
        (by([0, 128, 128, 255]), "", "255 may be a class or mean no class; pass --data.label_map"),
        (values, "road\nsky\ntree", "names 3 classes, and the label maps.* hold 0, 1, 2, 3"),
        (by([0, 255, 255, 255]), "leaf", "names 1 classes, and the label maps.* hold 0, 255"),
        (in_colors, "a\nb\nc\nd", "does not say which colour each class has"),
        (in_colors, "a\nb", "names 2 classes, and the label maps have 4 colours"),
        (some_in_color, "", "has colours, and .* values of one channel"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_label_maps_that_are_refused(save: Save, names: str, message: str, tmp_path: Path) -> None:
    if names:
        (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(ValueError, match=message):
        found(tmp_path, drawn(), save)


def test_two_files_that_name_other_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb")
    (tmp_path / "labels.txt").write_text("a\nc")
    with pytest.raises(ValueError, match="name other classes; remove one"):
        find_named_classes(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.json", "{", "is no JSON"),
        ("classes.json", "3", "must be a list of names"),
        ("classes.json", '{"road": "x", "sky": 1}', "a value that is no integer"),
        ("_classes.csv", "a,b\n1,2\n", "needs a column of names"),
        ("_classes.csv", "Pixel Value,Class\nx,road\n", "a value that is no integer"),
        ("class_dict.csv", "name,r,g,b\nroad,1,2,x\n", "a colour that is not three integers"),
        ("classes.txt", "\n", "lists no name"),
    ],
)
def test_files_of_names_that_are_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        find_named_classes(tmp_path)


def test_every_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    paths = write(tmp_path, drawn(), values)
    paths[0].write_bytes(b"no image")
    Image.fromarray(drawn()[0]).save(tmp_path / "labels" / "lossy.jpg")
    with pytest.raises(DataError) as error:
        read_label_maps([*paths, tmp_path / "labels" / "lossy.jpg"])
    assert len(error.value.faults) == 2
    assert "0.png" in error.value.faults[0]
    assert "JPEG file, whose compression may change values" in error.value.faults[1]


def test_voc_colours_with_their_outlines_are_indices(tmp_path: Path) -> None:
    palette = [channel for color in voc_palette(256) for channel in color]

    def voc(label: np.ndarray, path: Path) -> None:
        image = Image.fromarray(np.array([0, 1, 2, 255], np.uint8)[label])
        image.putpalette(palette)
        image.save(path)

    classes = found(tmp_path, drawn(), voc)
    assert classes.classes == Classes(["class 0", "class 1", "class 2"])
    assert set(np.unique(read(tmp_path, classes))) == {0, 1, 2, 255}


def tiffs(root: Path, maps: list[np.ndarray], no_data: list[str | None]) -> list[Path]:
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number, (label, value) in enumerate(zip(maps, no_data, strict=True)):
        Image.new("RGB", label.shape[::-1]).save(root / "images" / f"{number}.png")
        info = {} if value is None else {42113: value}
        Image.fromarray(label).save(root / "labels" / f"{number}.tif", tiffinfo=info)
    return sorted((root / "labels").iterdir())


@pytest.mark.parametrize(("values", "missing"), [((0, 2, 3, 4), 0), ((0, 1, 2, 3), 2)])
def test_a_value_for_no_data_between_classes_is_none(
    values: tuple[int, ...], missing: int, tmp_path: Path
) -> None:
    maps = [np.array(values, np.uint8)[label] for label in drawn()]
    classes = labelling(read_label_maps(tiffs(tmp_path, maps, [str(missing)] * 3)))
    for label, found in zip(maps, read(tmp_path, classes), strict=True):
        assert np.array_equal(found == 255, label == missing)
    assert not any("nevertheless" in s and f" {missing}," in s for s in classes.decisions)


def test_no_data_that_names_or_other_files_contradict_are_refused(tmp_path: Path) -> None:
    paths = tiffs(tmp_path / "mixed", drawn(), ["0", None, None])
    with pytest.raises(
        ValueError, match=r"0\.tif' states 0 as no data, and others hold it as data"
    ):
        labelling(read_label_maps(paths))
    paths = tiffs(tmp_path / "named", drawn(3), ["0"] * 3)
    (tmp_path / "named" / "classes.txt").write_text("background\nroad\nhouse\n")
    with pytest.raises(ValueError, match=r"'background' has the value 0, which .* -unsetnodata"):
        labelling(read_label_maps(paths), find_named_classes(tmp_path / "named"))


def test_names_belong_to_the_colours_of_palettes(tmp_path: Path) -> None:
    """Where the file of names lists them in another order than the palette."""

    def save(label: np.ndarray, path: Path) -> None:
        image = Image.fromarray(label, "P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        image.save(path)

    root, maps = tmp_path, drawn(3)
    paths = write(root, maps, save)
    (root / "class_dict.csv").write_text("name,r,g,b\nx,0,255,0\ny,255,0,0\nz,0,0,0\n")
    classes = labelling(read_label_maps(paths), find_named_classes(root))
    assert classes.classes.names == ("x", "y", "z")
    np.testing.assert_array_equal(read(root, classes), [2 - label.astype(int) for label in maps])


def test_empty_masks_at_the_beginning_hide_no_value(tmp_path: Path) -> None:
    """The pairs that are read before a run are drawn at random, and none is the first."""
    masks = [np.zeros(SHAPE, np.uint8)] * 70
    masks += [np.where(label > 1, 255, 0).astype(np.uint8) for label in drawn() * 10]
    write(tmp_path, masks, values)
    dataset = FolderDataset(tmp_path / "images", tmp_path / "labels", Classes(["ground", "house"]))
    with pytest.raises(
        DataError, match=r"hold only 0 and 255, .*set `label_map: \{0: 0, 255: 1\}`"
    ):
        dataset.check_files()


def test_a_class_outside_the_pairs_that_are_read_is_found(tmp_path: Path) -> None:
    masks = [np.where(label > 1, 255, 0).astype(np.uint8) for label in drawn() * 24]
    write(tmp_path, masks, values)
    dataset = FolderDataset(tmp_path / "images", tmp_path / "labels", Classes(["ground", "house"]))
    chosen = np.random.default_rng(0).permutation(len(dataset))[:64]
    last = next(k for k in range(len(dataset)) if k not in chosen)
    values(np.ones(SHAPE, np.uint8), dataset.pairs[last][1])
    assert dataset.check_files() == ()
