"""From images of any bands to a trained network that obeys their statistics in every verb."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from PIL import Image

from segformer import Classes, SegFormer
from segformer.checkpoint import describe
from segformer.cli import main
from segformer.data.bands import Bands
from segformer.data.datasets import DataError
from segformer.data.rasters import Part, RasterDataset, statistics_of
from segformer.deploy import Exported, export
from segformer.train.check import check
from segformer.train.data import FolderData
from segformer.train.from_folder.options import parse
from segformer.train.from_folder.plan import make_plan

pytestmark = [
    pytest.mark.usefixtures("without_pictures"),
    pytest.mark.filterwarnings("ignore"),
]

VARIANT = {
    name: list(value) if isinstance(value, tuple) else value for name, value in vars(TINY).items()
}


def thermal(root: Path, name: str, seed: int) -> None:
    """A 16-bit picture whose information lies in its low 8 bits, and its label map."""
    generator = np.random.default_rng(seed)
    labels = np.kron(generator.integers(0, 2, (3, 4), np.uint8), np.ones((24, 24), np.uint8))
    pixels = (60 + 90 * labels + generator.normal(0, 12, labels.shape)).astype(np.uint16)
    for folder, picture in (("images", pixels), ("labels", labels)):
        path = root / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set and its config, without statistics."""
    root = tmp_path_factory.mktemp("thermal")
    for k in range(24):
        thermal(root, f"{'train' if k < 16 else 'val'}/{k}", k)
    settings = {
        "data": {
            "class_path": "segformer.train.data.FolderData",
            "init_args": {
                "root": str(root),
                "classes": {"names": ["cold", "warm"]},
                "bands": {"names": ["temperature"]},
                "train_transform": {
                    "class_path": "segformer.data.augmentation.Street",
                    "init_args": {"crop_size": [64, 64], "scale": [0.8, 1.25]},
                },
                "batch_size": 4,
                "num_workers": 0,
            },
        },
        "model": {
            "network": {
                "class_path": "segformer.SegFormer",
                "init_args": {
                    "backbone": {"class_path": "segformer.Variant", "init_args": VARIANT},
                    "drop_path": 0.0,
                },
            },
            "optimizer": {
                "class_path": "segformer.train.optim.OfficialAdamW",
                "init_args": {"lr": 3e-3},
            },
            "head_lr_mult": 1.0,
        },
        "trainer": {
            "max_steps": 60,
            "accelerator": "cpu",
            "check_val_every_n_epoch": 100,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(root / "runs"), "name": "t"},
            },
        },
    }
    text = "# of the kitchen\n" + yaml.safe_dump(settings).replace(
        "temperature", "temperature # in kelvin"
    )
    (root / "thermal.yaml").write_text(text)
    return root


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    """The network that is trained on the data set with its statistics."""
    config = folder / "thermal.yaml"
    out = folder / "check.png"
    main(["check", "--config", str(config), "--write-statistics", "--out", str(out)])
    main(["fit", "--config", str(config)])
    (path,) = folder.glob("runs/t/*/model.safetensors")
    return path


def test_without_statistics_the_cure_is_said(folder: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((folder / "thermal.yaml").read_text())
    settings["data"]["init_args"].pop("normalization", None)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit, match=r"no statistics .* `segformer check --write-statistics`"):
        main(["fit", "--config", str(tmp_path / "c.yaml")])


def test_statistics_are_added_to_the_config_with_its_comments(weights: Path, folder: Path) -> None:
    text = (folder / "thermal.yaml").read_text()
    assert text.startswith("# of the kitchen\n")
    assert "temperature # in kelvin" in text
    found = yaml.safe_load(text)["data"]["init_args"]["normalization"]
    pixels = np.stack(
        [np.array(Image.open(path)) for path in sorted((folder / "images/train").iterdir())]
    )
    assert found["dtype"] == "uint16"
    assert found["mean"] == pytest.approx([pixels.mean()], rel=1e-2)
    assert found["std"] == pytest.approx([pixels.std()], rel=1e-2)


def test_low_bits_are_learned(weights: Path) -> None:
    results = yaml.safe_load((weights.parent / "results.json").read_text())
    assert results["val"]["miou"] > 0.95


def test_a_checkpoint_is_measured_with_them(weights: Path, folder: Path) -> None:
    main(["validate", "--config", str(folder / "thermal.yaml"), "--ckpt_path=last"])
    results = weights.parent.with_name("version_1") / "results.json"
    assert json.loads(results.read_text()) == json.loads(
        weights.with_name("results.json").read_text()
    )


def test_a_checkpoint_of_adapters_is_measured_with_them(
    weights: Path, folder: Path, tmp_path: Path
) -> None:
    """Such a checkpoint does not describe its network, as adapters are not part of a layout."""
    pytest.importorskip("peft", reason="needs the package peft")
    settings = yaml.safe_load((folder / "thermal.yaml").read_text())
    settings["model"]["lora"] = {"rank": 2}
    settings["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path)
    config = tmp_path / "adapters.yaml"
    config.write_text(yaml.safe_dump(settings))
    main(["fit", "--config", str(config)])
    main(["validate", "--config", str(config), "--ckpt_path=last"])
    trained, measured = (
        json.loads((tmp_path / "t" / version / "results.json").read_text())["val"]["miou"]
        for version in ("version_0", "version_1")
    )
    assert trained > 0.6
    assert measured == pytest.approx(trained, abs=1e-3)  # merged weights round otherwise


def test_the_weights_know_what_they_eat(weights: Path, folder: Path, tmp_path: Path) -> None:
    model = SegFormer.from_pretrained(weights)
    assert model.normalization.dtype == "uint16"
    assert model.normalization.bands is not None
    assert model.normalization.bands.names == ("temperature",)
    main(["predict", str(weights), str(folder / "images/val"), "--out", str(tmp_path)])
    right = [
        np.array(Image.open(tmp_path / path.name)) == np.array(Image.open(path))
        for path in (folder / "labels/val").iterdir()
    ]
    assert np.mean(right) > 0.95


def test_other_images_are_refused_by_name(weights: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    hot = generator.integers(30_000, 60_000, (64, 64), np.uint16)
    Image.fromarray(hot).save(tmp_path / "hot.png")
    for name, message in (
        ("photo", r"photo\.png\' has 3 bands, and 1 are named \(temperature\); select"),
        ("hot", r"hot\.png': most values of its band 'temperature' are outside"),
    ):
        arguments = ["predict", str(weights), str(tmp_path / f"{name}.png")]
        with pytest.raises(SystemExit, match=message):
            main([*arguments, "--out", str(tmp_path / "out")])


@pytest.mark.slow
def test_exported_files_know_it_too(weights: Path, folder: Path, tmp_path: Path) -> None:
    model = SegFormer.from_pretrained(weights)
    with pytest.raises(ValueError, match="images are uint16, not uint8; .* --input normalized"):
        export(model, tmp_path / "pixels.pt2", input="uint8")
    export(model, tmp_path / "model.pt2")
    assert Exported(tmp_path / "model.pt2").normalization == model.normalization
    image = str(folder / "images/val/16.png")
    for source in (weights, tmp_path / "model.pt2"):
        out = tmp_path / source.suffix[1:]
        main(["predict", str(source), image, "--out", str(out)])
    first, second = (
        np.array(Image.open(tmp_path / kind / "16.png")) for kind in ("pt2", "safetensors")
    )
    assert (first == second).mean() > 0.999


def test_a_photographs_model_is_read_by_earlier_versions(tmp_path: Path) -> None:
    """They know mean, std and scale only."""
    described = describe(SegFormer(TINY, num_classes=2))
    assert set(described["normalization"]) == {"mean", "std", "scale"}


SMALL = [
    *("--trainer.max_steps", "2", "--data.batch_size=2", "--trainer.accelerator=cpu"),
    *("--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false"),
    "--model.network.backbone",
    json.dumps({"class_path": "segformer.Variant", "init_args": VARIANT}),
]


def test_a_folder_of_16_bits_is_trained_without_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for k in range(6):
        thermal(tmp_path / "kitchen", str(k), k)
    main(["fit", "kitchen", *SMALL])
    assert "1 band of uint16 (6), read with their values" in capsys.readouterr().out
    run = Path("runs/kitchen/version_0")
    settings = yaml.safe_load((run / "run.yaml").read_text())["data"]["init_args"]
    assert settings["bands"] == {}
    assert settings["train_transform"]["class_path"] == "segformer.data.augmentation.Street"
    names = [row.split(",")[0] for row in (run / "run_train.csv").read_text().split()[1:]]
    pixels = np.stack([np.array(Image.open(tmp_path / "kitchen" / name)) for name in names])
    low, high = np.percentile(pixels, (0.1, 99.9))
    found = settings["normalization"]
    assert found["mean"] == pytest.approx([pixels.clip(low, high).mean()], rel=1e-5)
    assert found["limits"] == [[pytest.approx(low), pytest.approx(high)]]
    main(["fit", "--config", str(run / "run.yaml")])
    first, second = (
        SegFormer.from_pretrained(run.with_name(name) / "model.safetensors")
        for name in ("version_0", "version_1")
    )
    assert first.normalization.dtype == "uint16"
    states = first.state_dict(), second.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    "network",
    [
        {
            "class_path": "segformer.SegFormer",
            "init_args": {
                "backbone": {
                    "class_path": "segformer.TimmBackbone",
                    "init_args": {"name": "resnet10t"},
                }
            },
        },
        {"class_path": "segformer.ConvSegFormer", "init_args": {"dims": [8, 16, 40, 64]}},
        {"class_path": "segformer.SETR", "init_args": {"backbone": "tiny", "img_size": 64}},
    ],
    ids=["timm", "convolutional", "SETR"],
)
def test_any_network_takes_the_bands(
    network: dict[str, Any], folder: Path, weights: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load((folder / "thermal.yaml").read_text())
    settings["model"]["network"] = network
    settings["trainer"]["fast_dev_run"] = True
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    main(["fit", "--config", str(tmp_path / "config.yaml")])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_turned_picture_is_refused(suffix: str, tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    picture = Image.new("RGB", (16, 16))
    if suffix == "tif":
        picture.save(tmp_path / "images/a.tif", tiffinfo={0x0112: 3})
    else:
        orientation = Image.Exif()
        orientation[0x0112] = 3
        picture.save(tmp_path / f"images/a.{suffix}", exif=orientation)
    Image.new("L", (16, 16)).save(tmp_path / "labels/a.png")
    dataset = RasterDataset(tmp_path / "images", tmp_path / "labels", Classes(["a", "b"]))
    with pytest.raises(
        DataError, match=r"is turned by its EXIF orientation \(3\).*save .* upright"
    ):
        dataset.check_files()


def test_a_sample_of_floats_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "images/a.npy", np.ones((16, 16, 2), np.float32))
    Image.new("L", (16, 16)).save(tmp_path / "labels/a.png")
    dataset = RasterDataset(tmp_path / "images", tmp_path / "labels", Classes(["a", "b"]))
    opened, reads = Bands.open, []

    def counted(self: Bands, *path: Any) -> Any:
        image = opened(self, *path)
        return replace(image, read=lambda window: (reads.append(window), image.read(window))[1])

    monkeypatch.setattr(Bands, "open", counted)
    assert dataset[0][0].shape == (2, 16, 16)
    assert len(reads) == 1


def test_statistics_meet_all_columns(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(1000, 10, (1024, 1024, 1)).astype(np.float32)
    pixels[:, ::32] = 5000
    np.save(tmp_path / "a.npy", pixels)
    found = statistics_of(Bands(), [Part(tmp_path / "a.npy")])
    assert found.mean == pytest.approx([pixels.mean()], rel=0.02)


def test_blank_tiles_in_two_splits_are_no_problem(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        pixels = generator.normal(0, 1, (128, 64, 2)).astype(np.float32)
        pixels[:64] = 0
        np.save(tmp_path / f"images/{split}/{split}.npy", pixels)
        labels = generator.integers(0, 2, (128, 64), np.uint8)
        Image.fromarray(labels).save(tmp_path / f"labels/{split}/{split}.png")

    def problems() -> list[str]:
        bands = {"bands": Bands(), "tile": [64, 64]}
        data = FolderData(tmp_path, Classes(["a", "b"]), lambda *sample: sample, **bands)
        return check(data, 0).problems

    assert problems() == []
    pixels[:64] = generator.normal(0, 1, (64, 64, 2))
    for split in ("train", "val"):
        np.save(tmp_path / f"images/{split}/{split}.npy", pixels)
    assert re.search(r"train\.npy from row 64, .*val\.npy from row 64", " ".join(problems()))


def test_bands_of_a_folder_are_chosen_by_options(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for k in range(4):
        np.save(tmp_path / f"images/{k}.npy", generator.normal(k, 1, (40, 48, 5)))
        labels = generator.integers(0, 3, (40, 48), np.uint8)
        Image.fromarray(labels).save(tmp_path / f"labels/{k}.png")
    chosen = ["--data.bands.select", "[5, 1]", "--data.bands.names", "[red, far]"]
    settings = make_plan(parse("fit", [str(tmp_path), *chosen])).settings["data"]["init_args"]
    assert settings["bands"] == {"names": ["red", "far"], "select": [5, 1]}
    assert len(settings["normalization"]["mean"]) == 2
    assert settings["normalization"]["dtype"] == "float32"
    given = ["--data.normalization.mean", "[0, 0]"]
    settings = make_plan(parse("fit", [str(tmp_path), *chosen, *given])).settings
    assert settings["data"]["init_args"]["normalization"] == {"mean": [0, 0]}


def test_a_folder_of_two_kinds_of_images_is_refused(tmp_path: Path) -> None:
    for k in range(4):
        thermal(tmp_path, str(k), k)
    path = tmp_path / "images/3.png"
    Image.fromarray(np.array(Image.open(path)).astype(np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"of uint16 and .*3\.png' has 1 band of uint8; convert"):
        make_plan(parse("fit", [str(tmp_path)]))
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ValueError, match=r"3\.png"):
        make_plan(parse("fit", [str(tmp_path)]))
