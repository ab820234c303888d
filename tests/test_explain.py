"""``segformer explain``: its page opens without a server, and its numbers are those of evaluate."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, quick, randomized, varied
from halves import Halves, small_config, write_folder
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors

from segformer import Classes, SegFormer
from segformer.cli import main
from segformer.data.rasters import RasterDataset
from segformer.deploy import export, load_model
from segformer.evaluation import evaluate
from segformer.inference.explanation import Examined, examine
from segformer.inference.explanation_page import write_report
from segformer.train.parser import data_of

VOID = {"img", "meta", "link", "br", "hr", "input"}

pytestmark = pytest.mark.filterwarnings(  # of methods that jsonargparse's version 5 renames
    "ignore::DeprecationWarning:jsonargparse", "ignore::DeprecationWarning:segformer.train.parser"
)


class Page(HTMLParser):
    """The links, identifiers and pictures of a page, and whether its elements are nested well."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags[tag] += 1
        self.links += [link for name in ("href", "src") if (link := values.get(name))]
        self.ids += [identifier] if (identifier := values.get("id")) else []
        if tag == "img":
            self.pictures.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(folder: Path) -> Page:
    """Every link leads to a file of the folder or to a part of the page, and nothing is unused."""
    page = Page(folder / "index.html")
    for link in page.links:
        assert link[1:] in page.ids if link[0] == "#" else (folder / link).is_file(), link
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"index.html", *(link for link in page.links if link[0] != "#")}
    assert page.tags["script"] == 0
    for picture in page.pictures:
        assert picture["alt"]
        with Image.open(folder / str(picture["src"])) as image:
            assert (str(image.width), str(image.height)) == (picture["width"], picture["height"])
    return page


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network whose labels vary over the pictures of ``halves``."""
    network = randomized(SegFormer(TINY, num_classes=2))
    images = torch.stack([Halves()[k][0].float() for k in range(4)])
    varied(network, network.decode_head.norm, (images - 120) / 60)
    network.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def of_folder(folder: Path, root: Path) -> Path:
    """A config of a folder of files."""
    settings = yaml.safe_load(small_config(folder).read_text())
    settings["data"] = {
        "class_path": "segformer.train.data.FolderData",
        "init_args": {
            "root": str(root),
            "classes": {"names": ["dark & <b>", "bright"]},
            "ignore_index": 11,
            "train_transform": settings["data"]["init_args"]["train_transform"],
        },
    }
    config = folder / "folder.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config


@pytest.mark.parametrize("splits", [[], ["--split", "val", "train"]], ids=str)
def test_the_command(
    splits: list[str], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = of_folder(tmp_path, write_folder(tmp_path / "data", train=5, val=3, test=2))
    out = tmp_path / "new" / "report"
    main(["explain", str(weights), "--config", str(config), "--out", str(out), *splits])
    assert f"wrote {out / 'index.html'}" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]
    page = check_page(out)
    assert "dark & <b>" in page.text  # a class's name is text
    assert len(page.pictures) > 4
    report = json.loads((out / "explain.json").read_text())
    data, network = data_of(str(config)), SegFormer.from_pretrained(weights)
    names = splits[1:] or ["val"]
    scores = [evaluate(network, getattr(data, name)) for name in names]
    confusion = sum(s.confusion for s in scores)
    assert report["confusion"]["pixels"] == confusion.tolist()  # type: ignore[union-attr]
    if len(names) == 1:
        assert report["scores"] == scores[0].to_dict(data.classes)
    assert Counter(image["split"] for image in report["images"]) == {
        name: len(getattr(data, name)) for name in names
    }
    for image in report["images"]:
        number = int(Path(image["image"]).stem)
        dataset = getattr(data, image["split"])
        assert (image["image"], image["label"]) == tuple(map(str, dataset.pairs[number]))
        alone = evaluate(network, One(dataset, number))
        assert image["miou"] == alone.miou
        assert image["pixel_accuracy"] == alone.pixel_accuracy
    ranks = [image["miou"] for image in report["images"]]
    assert ranks == sorted(ranks)


class One:
    """One sample of a data set."""

    def __init__(self, dataset: Any, index: int) -> None:
        self.classes, self.sample = dataset.classes, dataset[index]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.sample


def test_data_without_files_are_named_by_their_numbers(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()  # an empty folder is used
    main(["explain", str(weights), "--config", str(small_config(tmp_path)), "--out", str(out)])
    check_page(out)
    report = json.loads((out / "explain.json").read_text())
    assert sorted(image["image"] for image in report["images"]) == ["val sample 0", "val sample 1"]


class Bright(nn.Module):
    """A model that is right and sure: class 1 is bright."""

    num_classes = 2

    def forward(self, images: Tensor) -> Tensor:
        bright = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 5, 1, 2)
        return torch.cat([-bright, bright], 1) * 20


class Faulty(Halves):
    """The third label map has a wrong box, the fourth no label."""

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, label = super().__getitem__(index)
        if index == 2:
            label[12:34, 2:8] = 1
        if index == 3:
            label[:] = 255
        return image, label


def test_a_wrong_box_is_first_and_drawn_and_an_image_without_labels_is_listed(
    tmp_path: Path,
) -> None:
    found = examine(Bright(), {"val": Faulty(6)})
    (first, *_), *_ = found.doubts
    assert first.image.index == 2
    assert (first.region.labelled, first.region.predicted) == (1, 0)
    left, top, width, height = first.region.box
    assert abs(left - 2) <= 1
    assert abs(top - 12) <= 1
    assert abs(left + width - 8) <= 1
    assert abs(top + height - 34) <= 1
    assert [image.index for image in found.worst].count(3) == 0
    assert len(found.worst) == 5
    write_report(found, tmp_path, "model & co", worst=2, doubts=1)
    page = check_page(tmp_path)
    assert "Where model & co is wrong" in page.text
    report = json.loads((tmp_path / "explain.json").read_text())
    assert report["without_labels"] == ["val sample 3"]
    assert report["doubts"][0]["label"] == "val sample 2"
    assert report["doubts"][0]["regions"][0]["labelled"] == "bright"
    label = np.array(Image.open(tmp_path / "pictures" / "doubt-001-label.png").convert("RGB"))
    colors = set(map(tuple, label.reshape(-1, 3).tolist()))
    assert colors == {(0, 0, 0), (255, 255, 0), (255, 255, 255)}  # the classes and the line


def test_error_maps_show_what_is_wrong(tmp_path: Path) -> None:
    data = Faulty(3)
    found = examine(Bright(), {"val": data})
    write_report(found, tmp_path, "model", worst=3, doubts=0)
    for rank, image in enumerate(found.worst, 1):
        with Image.open(tmp_path / "pictures" / f"worst-{rank:03}-errors.png") as picture:
            shown = np.array(picture).astype(int)
        label = data[image.index][1].numpy()
        is_wrong = (label != image.predicted) & (label != 255)
        is_red = shown[..., 0] > shown[..., 1] + 100
        assert np.array_equal(is_red, is_wrong)
        assert np.array_equal(shown.sum(2) == 0, label == 255)


class Unlabelled(Halves):
    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, label = super().__getitem__(index)
        return image, tv_tensors.Mask(torch.full_like(label, 255))


def test_a_set_without_any_label_gives_a_page(tmp_path: Path) -> None:
    write_report(examine(Bright(), {"val": Unlabelled(2)}), tmp_path, "model")
    page = check_page(tmp_path)
    assert page.pictures == []
    assert "No image has labelled pixels" in page.text
    assert json.loads((tmp_path / "explain.json").read_text())["scores"]["miou"] is None


class Wide(Halves):
    """Pictures that are larger than a page."""

    classes = Classes([f"class {k}" for k in range(40)])

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, label = super().__getitem__(index)
        label = label.long() + 3
        label[:, 20:] = 17 + index
        label[:2] = 255
        times = (20, 16)
        return (
            tv_tensors.Image(image.repeat_interleave(times[0], 1).repeat_interleave(times[1], 2)),
            tv_tensors.Mask(label.repeat_interleave(times[0], 0).repeat_interleave(times[1], 1)),
        )


def test_large_pictures_and_many_classes_stay_readable(tmp_path: Path) -> None:
    class Constant(nn.Module):
        num_classes = 40

        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(40)[5].view(1, 40, 1, 1).expand(-1, -1, *images.shape[-2:]) * 9

    write_report(examine(Constant(), {"val": Wide(2)}), tmp_path, "model")
    page = check_page(tmp_path)
    assert page.tags["tr"] == 31
    assert all(int(str(p["width"])) <= 640 for p in page.pictures)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--config", "gone.yaml"], "File does not exist: "),
        (["--split", "test"], "the data have no split test; choose --split train or val"),
        (["--split", "all"], "invalid choice: 'all'"),
        (["--worst", "-1"], "--worst -1 is below 0"),
        (["--protocol", "mean"], "unknown protocol 'mean'"),
        (["--out", "full"], "'full' exists and is no report; choose another folder"),
        (["--out", "made"], "'made' is an earlier report; replace it with --overwrite"),
        (["--overwite"], "did you mean '--overwrite'?"),
    ],
    ids=str,
)
def test_wrong_input_is_one_sentence_before_the_evaluation(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, names in (("full", ["a.txt"]), ("made", ["index.html", "explain.json"])):
        Path(folder).mkdir()
        for name in names:
            Path(folder, name).write_text("mine")
    config = str(small_config(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["explain", "gone.safetensors", "--config", config, "--out", "report", *options])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
    assert Path("made/index.html").read_text() == "mine"
    assert not Path("report").exists()


def words(weights: Path, config: Path, out: Path) -> list[str]:
    return ["explain", str(weights), "--config", str(config), "--out", str(out)]


def test_an_earlier_report_is_replaced_as_a_whole(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    arguments = words(weights, small_config(tmp_path), out)
    main(arguments)
    (out / "pictures" / "worst-099-image.jpg").write_bytes(b"old")
    main([*arguments, "--overwrite", "--worst", "1"])
    check_page(out)  # which refuses files that nothing links to


def test_an_interrupted_run_keeps_the_earlier_report(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    arguments = words(weights, small_config(tmp_path), out)
    main(arguments)
    before = (out / "index.html").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segformer.inference.explanation_page._matrix", interrupted)
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--overwrite"])
    assert stop.value.code == 130
    assert (out / "index.html").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".report")]


def test_a_model_of_other_classes_or_of_labels_only_is_refused() -> None:
    with pytest.raises(ValueError, match="the model has 5 classes, and the data 2"):
        examine(SegFormer(TINY, num_classes=5), {"val": Halves(1)})
    model = Bright()
    model.gives_logits = False  # type: ignore[assignment]
    with pytest.raises(ValueError, match="gives labels only; export it with --output logits"):
        examine(model, {"val": Halves(1)})


def test_one_logit_and_one_class() -> None:
    """A model of one logit on data of two classes, and on data of one beside the background."""

    class OneClass(Halves):
        classes = Classes(["bright"])

    network = randomized(SegFormer(TINY, num_classes=1))
    for data in (Halves(2), OneClass(2)):
        found = examine(network, {"val": data})
        assert torch.equal(found.confusion.double(), evaluate(network, data).confusion)
        names = list(found.to_dict()["scores"]["iou"])
        assert names == ["dark" if len(data.classes) == 2 else "background", "bright"]


def test_the_examples_of_a_pair_are_its_largest_regions() -> None:
    found = examine(Bright(), {"val": Faulty(6)})
    pair = next(pair for pair in found.pairs if (pair.labelled, pair.predicted) == (1, 0))
    assert pair.pixels == int(found.confusion[1, 0])
    assert pair.share == pytest.approx(pair.pixels / int(found.confusion[1].sum()))
    (image, region), *others = found.examples(pair, 3)
    assert image.index == 2
    assert region.pixels > 100
    assert all(other.pixels <= region.pixels for _, other in others)


@pytest.mark.slow
def test_an_exported_file_is_explained_as_its_network_is(tmp_path: Path) -> None:
    network = quick(2)
    export(network, tmp_path / "model.pt2", output="logits")
    expected, found = (
        examine(model, {"val": Halves(2)}).to_dict()
        for model in (network, load_model(tmp_path / "model.pt2"))
    )
    assert found["images"] == expected["images"]
    assert found["confusion"] == expected["confusion"]


def test_tiles_of_a_raster_are_named(tmp_path: Path) -> None:
    for name, array in (("images", np.ones((40, 60, 2), np.float32)), ("labels", None)):
        (tmp_path / name).mkdir()
        if array is not None:
            np.save(tmp_path / name / "a.npy", array)
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "labels" / "a.png")
    folders = tmp_path / "images", tmp_path / "labels"
    tiles = RasterDataset(*folders, Classes(["a", "b"]), tile=(40, 32))
    confusion = torch.eye(2).to_sparse()
    image, label = Examined(tiles, "val", 1, confusion, [], b"", (40, 32)).files
    assert image.endswith("a.npy from row 0, column 28")
    assert label.endswith("a.png from row 0, column 28")
