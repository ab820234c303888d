"""What ``segformer check`` finds in a folder with planted faults, and in one without."""

from __future__ import annotations

import pickle
import re
import shutil
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from halves import Halves
from PIL import Image
from torch import Tensor

from segformer import Classes
from segformer.data.datasets import DataError
from segformer.data.transforms import TrainTransform
from segformer.data.unlabelled import UnlabelledImages, WeakAndStrong
from segformer.train.check import Samples, check, draw, main
from segformer.train.data import FolderData, SegmentationData

pytestmark = pytest.mark.filterwarnings(  # of methods that jsonargparse's version 5 renames
    "ignore::DeprecationWarning:jsonargparse", "ignore::DeprecationWarning:segformer.train.parser"
)

CONFIG = """
data:
  class_path: segformer.train.data.FolderData
  init_args:
    root: {root}
    classes: {{names: [ground, car, tree]}}
    train_transform:
      class_path: segformer.data.transforms.TrainTransform
      init_args: {{crop_size: [32, 32]}}
model: {{network: {{class_path: segformer.SegFormer}}}}
trainer: {{max_steps: 1}}
seed_everything: 0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for k in range(count):
            for kind, array in (
                ("images", noise.integers(0, 256, (20, 30, 3), np.uint8)),
                ("labels", noise.integers(0, 3, (20, 30), np.uint8)),
            ):
                path = tmp_path / "data" / kind / split / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "data"


def data(root: Path) -> FolderData:
    return FolderData(root, Classes(["ground", "car", "tree"]), TrainTransform((32, 32)))


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_sizes_and_shares(root: Path, workers: int) -> None:
    findings = check(data(root), workers)
    assert findings.problems == []
    assert findings.counts == {"train": 4, "val": 2}
    assert findings.sizes["train"] == {(20, 30): 4}
    assert findings.histograms["train"].sum() == 4 * 600
    assert findings.histograms["train"][3:].sum() == 0
    assert "no problems" in findings.text(data(root).classes)


def test_all_planted_faults_are_named_in_one_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image without its label map, a truncated file, a value 77, a label map without its image,
    a foreign palette; one pair has two faults."""
    Image.effect_noise((30, 20), 90).convert("RGB").save(root / "images/train/alone.jpg")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(root / "labels/val/lonely.png")
    Image.fromarray(np.full((20, 30), 77, np.uint8)).save(root / "labels/train/1.png")
    (root / "images/train/1.png").write_bytes((root / "images/train/1.png").read_bytes()[:200])
    foreign = Image.fromarray(np.zeros((20, 30), np.uint8))
    foreign.putpalette([1, 2, 3, 4, 5, 6])
    foreign.save(root / "labels/val/0.png")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=root))
    with pytest.raises(SystemExit) as stopped:
        main(["--config", str(config), "--out", str(tmp_path / "sheet.png"), "--num_workers", "0"])
    assert stopped.value.code == 1
    problems = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")
    ]
    assert len(problems) == 5
    for words in (
        r"no label map for .*alone.jpg.*add it, or remove",
        r"no image for .*lonely.png.*add it, or remove",
        r"cannot read image .*images/train/1.png",
        r"labels/train/1.png' holds the value 77 on 600 of 600 pixels; valid .*Add the missing",
        r"labels/val/0.png' has a palette that differs from the classes'.*set `palette: index`",
    ):
        assert sum(re.search(words, problem) is not None for problem in problems) == 1


def test_more_faults_than_a_screen_holds_are_all_listed(root: Path) -> None:
    for k in range(30):
        Image.new("RGB", (3, 3)).save(root / f"images/val/alone{k}.png")
    with pytest.raises(
        DataError, match="and 27 more errors: `segformer check` lists all"
    ) as raised:
        data(root)
    findings = check(raised.value.found, 0)
    findings.problems += raised.value.faults
    assert findings.text(raised.value.found.classes).count("problem: no label map for") == 30


@pytest.mark.parametrize("missing", ["images/train", "labels/val", "."])
def test_a_missing_folder_is_one_sentence(
    missing: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / missing)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=root))
    with pytest.raises(SystemExit, match="1"):
        main(["--config", str(config), "--num_workers", "0"])
    printed = capsys.readouterr().out
    assert printed.count("problem: no folder") == 1
    assert str(root) in printed
    assert "Namespace" not in printed


class WrongHalves(Halves):
    """Label maps with values that are no class, in a type that holds them."""

    def __init__(self, value: int) -> None:
        super().__init__(4)
        self.value = value

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = super().__getitem__(index)
        label = label.int()
        label[0, 0] = self.value if index else 0
        return image, label


@pytest.mark.parametrize("value", [256, 70000, -1])
def test_labels_of_a_data_set_of_ones_own_are_checked_before_they_are_drawn(value: int) -> None:
    wrong = SegmentationData(WrongHalves(value), Halves(2, seed=1), TrainTransform((32, 32)))
    assert len(check(wrong, 0).problems) == 3
    picture, valid = draw(wrong), SegmentationData(Halves(1), Halves(2), TrainTransform((32, 32)))
    assert picture is not None
    assert picture.size == draw(valid).size  # only the first sample is drawn


def test_a_data_set_without_a_pair_is_reported(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (root / "labels/train").iterdir():
        path.rename(path.with_stem(f"other{path.stem}"))
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=root))
    with pytest.raises(SystemExit, match="1"):
        main(["--config", str(config), "--out", str(tmp_path / "sheet.png"), "--num_workers", "0"])
    printed = capsys.readouterr().out
    assert "train: 0 pairs" in printed
    assert printed.count("problem: no label map for") == 4
    assert printed.count("problem: no image for") == 4
    assert (tmp_path / "sheet.png").exists()  # of the two pairs of validation


def test_the_picture_shows_samples_of_all_splits_and_fits_a_screen(root: Path) -> None:
    drawn = draw(data(root))
    assert drawn is not None
    picture = np.array(drawn)
    assert picture.shape[0] < 1080
    assert picture.shape[1] < 1920
    for name in ("train/0.png", "train/3.png", "val/0.png", "val/1.png"):
        with Image.open(root / "images" / name) as image:
            pixels = np.array(image).repeat(10, 0).repeat(10, 1)
        height, width = pixels.shape[:2]
        corners = (picture[:-height, :-width] == pixels[0, 0]).all(-1)
        assert any(
            np.array_equal(picture[y : y + height, x : x + width], pixels)
            for y, x in np.argwhere(corners)
        )


def test_what_the_command_reads_travels_to_processes_that_are_not_forked(root: Path) -> None:
    """As on Windows, macOS and under Python 3.14, where a process gets a pickle."""
    samples = pickle.loads(ForkingPickler.dumps(Samples(data(root).train)))
    assert samples[0].size == (20, 30)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_command_where_processes_are_not_forked(
    method: str, root: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=root))
    code = f"import multiprocessing as m; m.set_start_method({method!r}); "
    code += "from segformer.cli import main; main()"
    command = ["check", "--config", str(config), "--out", str(tmp_path / "sheet.png")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert b"no problems" in done.stdout


def test_masks_of_one_class_and_the_ignored_value_are_a_problem(root: Path) -> None:
    for path in (root / "labels").rglob("*.png"):
        mask = np.where(np.arange(600).reshape(20, 30) % 7, 0, 255)
        Image.fromarray(mask.astype(np.uint8)).save(path)
    problems = check(data(root), 0).problems
    assert len(problems) == 2
    assert "label_map: {0: 0, 255: 1}" in problems[0]


def test_transparency_that_is_dropped_is_told(root: Path) -> None:
    with Image.open(root / "images/train/0.png") as image:
        image.convert("RGBA").save(root / "images/train/0.png")
    assert "1 images of train have transparency" in " ".join(check(data(root), 0).warnings)


def test_planted_faults_are_found_by_name(root: Path) -> None:
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(root / "labels/train/1.png")
    (root / "images/train/2.png").write_bytes((root / "images/train/2.png").read_bytes()[:200])
    Image.fromarray(np.zeros((20, 29), np.uint8)).save(root / "labels/train/3.png")
    (root / "images/val/0.png").write_bytes((root / "images/train/0.png").read_bytes())
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(root / "labels/val/1.png")
    findings = check(data(root), 0)
    assert len(findings.problems) == 4
    problems = " ".join(findings.problems)
    assert "train/1.png' holds the value 7 on 600 of 600 pixels" in problems
    assert "cannot read image" in problems
    assert "is 20×30 but its label map" in problems
    assert (
        f"one image is in two splits: {root}/images/train/0.png (train), "
        f"{root}/images/val/0.png (val)" in problems
    )
    assert any("val/1.png has no labelled pixel" in warning for warning in findings.warnings)


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=root))
    main(["--config", str(config), "--out", str(tmp_path / "sheet.png"), "--num_workers", "0"])
    assert "no problems" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as picture:
        assert min(picture.size) > 60
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(root / "labels/val/1.png")
    with pytest.raises(SystemExit, match="1"):
        main(["--config", str(config), "--out", str(tmp_path / "sheet.png"), "--num_workers", "0"])
    assert "1 problem\n" in capsys.readouterr().out


def test_images_without_labels_are_read_and_compared(root: Path) -> None:
    """The headers say nothing of dark images of 16 bits; those that measure give a warning."""
    dark = np.random.default_rng(0).integers(0, 4096, (20, 30), np.uint16)
    (root / "more").mkdir()
    Image.fromarray(dark).save(root / "more" / "dark.png")
    shutil.copy(root / "images" / "val" / "0.png", root / "more")
    shutil.copy(root / "images" / "train" / "0.png", root / "more" / "of_train.png")
    views = WeakAndStrong((32, 32))
    module = FolderData(
        root,
        Classes(["ground", "car", "tree"]),
        TrainTransform((32, 32)),
        unlabelled_images=UnlabelledImages(["more"], views, 2),
    )
    findings = check(module, 0)
    assert len(findings.problems) == 1
    assert "dark.png" in findings.problems[0]
    assert len(findings.warnings) == 1
    assert re.match(r"1 images of other splits .*0\.png \(val\)", findings.warnings[0])
    with pytest.raises(DataError, match=r"dark\.png.* has 16 bits and no value above"):
        module.check_files()
