"""`segformer validate --per-image --compare`: what it writes is what evaluation measures."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, randomized
from halves import camvid_config, write_folder
from PIL import Image

from segformer import Classes, SegFormer
from segformer.cli import main
from segformer.data.datasets import FolderDataset
from segformer.data.normalization import IMAGENET
from segformer.evaluation import Protocol, evaluate

pytestmark = pytest.mark.filterwarnings("ignore")
CLASSES = Classes(["dark", "bright"])


class One(list):  # type: ignore[type-arg]
    classes = CLASSES


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config whose validation images have two sizes, and one of which has one class only."""
    root = write_folder(tmp_path / "data", train=2, val=4, test=2)
    for kind in ("images", "labels"):
        path = root / kind / "val" / "1.png"
        with Image.open(path) as image:
            pixels = np.array(image)
        Image.fromarray(np.concatenate([pixels, pixels])).save(path)
    label = np.array(Image.open(root / "labels" / "val" / "2.png"))
    Image.fromarray(np.where(label == 11, label, 0).astype(np.uint8)).save(
        root / "labels" / "val" / "2.png"
    )
    return camvid_config(root, tmp_path)


@pytest.fixture
def weights(tmp_path: Path) -> list[Path]:
    """Two networks, whose images are normalised by different statistics."""
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        network = randomized(SegFormer(TINY, num_classes=2, classes=CLASSES))
        if path is paths[1]:
            network.normalization = replace(IMAGENET, mean=(0.2, 0.3, 0.4))
        network.save(path)
    return paths


@pytest.mark.parametrize("flip", [False, True])
def test_the_tables_are_those_of_each_image_alone(
    flip: bool,
    config: Path,
    weights: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    protocol = ["--model.protocol=segformer.evaluation.Protocol", "--model.protocol.flip=true"]
    words = ["validate", f"--config={config}", "--data.val_batch_size=2", "--per-image"]
    words += [f"--weights={weights[0]}", f"--compare={weights[1]}", *(protocol if flip else [])]
    main(words)
    out = tmp_path / "runs" / "camvid" / "version_0"
    folder = tmp_path / "data"
    dataset = FolderDataset(folder / "images/val", folder / "labels/val", CLASSES, 11)
    by = Protocol(flip=flip)
    mious = []
    for path, name in zip(weights, ("per_image", "per_image_compared"), strict=True):
        rows = rows_of(out / f"{name}.csv")
        network = SegFormer.from_pretrained(path)
        assert [row["image"] for row in rows] == [str(pair[0]) for pair in dataset.pairs]
        for index, row in enumerate(rows):
            expected = evaluate(network, One([dataset[index]]), by)
            assert float(row["mIoU"]) == pytest.approx(expected.miou, abs=1e-6)
            assert float(row["IoU dark"]) == pytest.approx(expected.iou[0], abs=1e-6)
            assert 0 <= float(row["boundary mIoU"]) <= 1
        mious.append(evaluate(network, dataset, by).miou)
    assert json.loads((out / "results.json").read_text())["val"]["miou"] == pytest.approx(mious[0])
    first, *_ = rows_of(out / "comparison.csv")
    for column, value in zip(("A", "B", "A - B"), (*mious, mious[0] - mious[1]), strict=True):
        assert float(first[column]) == pytest.approx(value, abs=1e-6)
    assert float(first["low"]) <= float(first["A - B"]) <= float(first["high"])
    printed = capsys.readouterr().out
    assert f"A  {weights[0]}\nB  {weights[1]}" in printed
    assert f"{100 * (mious[0] - mious[1]):+6.2f}" in printed
    assert (out / "worse.png").is_file() == ("A is worse than B on 0" not in printed)


def test_the_picture_has_a_row_for_each_image_that_got_worse(
    config: Path, weights: list[Path], tmp_path: Path
) -> None:
    """Against labels that are those of a network, any other one is worse."""
    network = SegFormer.from_pretrained(weights[1])
    labels = tmp_path / "data" / "labels" / "val"
    for path in labels.iterdir():
        image = network.predict_file(tmp_path / "data" / "images" / "val" / path.name)
        Image.fromarray(image.labels.astype(np.uint8)).save(path)
    main(["validate", f"--config={config}", f"--weights={weights[0]}", f"--compare={weights[1]}"])
    out = tmp_path / "runs" / "camvid" / "version_0"
    rows = rows_of(out / "per_image_compared.csv")
    assert {row["mIoU"] for row in rows} == {"1.000000"}
    assert {row["boundary mIoU"] for row in rows} == {"1.000000"}
    worse = sum(float(row["mIoU"]) < 1 for row in rows_of(out / "per_image.csv"))
    with Image.open(out / "worse.png") as picture:
        assert picture.width > 4 * 320
        assert worse * 240 < picture.height < (worse + 1) * 280


def test_one_image_cannot_be_compared(config: Path, weights: list[Path], tmp_path: Path) -> None:
    words = ["validate", f"--config={config}", f"--weights={weights[0]}"]
    words += [f"--compare={weights[1]}"]
    for limit in ("1", "0.25"):  # of four
        with pytest.raises(SystemExit, match="one image cannot be resampled"):
            main([*words, f"--trainer.limit_val_batches={limit}"])
    for path in (tmp_path / "data").glob("*/val/[123].png"):
        path.unlink()
    with pytest.raises(SystemExit, match="one image cannot be resampled"):
        main(words)


@pytest.mark.parametrize("option", ["--per-image", "--compare=b.safetensors"])
def test_training_refuses_what_is_for_measuring(option: str, config: Path) -> None:
    with pytest.raises(SystemExit, match="is for measuring"):
        main(["fit", f"--config={config}", option])
