"""What ``segformer check`` finds in a folder with planted faults, and in one without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer import Classes
from segformer.data.transforms import TrainTransform
from segformer.train.check import check, main
from segformer.train.data import FolderData

CONFIG = """
data:
  class_path: segformer.train.data.FolderData
  init_args:
    root: {root}
    classes: {{names: [ground, car, tree]}}
    train_transform: {{class_path: segformer.data.transforms.TrainTransform, init_args: {{crop_size: [32, 32]}}}}
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
    assert f"one image is in two splits: {root}/images/train/0.png (train), {root}/images/val/0.png (val)" in problems
    assert any("val/1.png has no labelled pixel" in warning for warning in findings.warnings)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:jsonargparse")  # of methods that its version 5 renames, and 4 alone is allowed
@pytest.mark.filterwarnings("ignore::DeprecationWarning:segformer.train.check")
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
    assert "1 problems" in capsys.readouterr().out
