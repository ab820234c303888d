"""Every experiment in configs/ parses, and builds its network for the classes of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from segformer import SegFormer

FILES: dict[str | None, list[str]] = {
    "segformer.data.standard.COCOStuff": [
        f"{kind}/{split}2017/1.png"
        for split in ("train", "val")
        for kind in ("images", "annotations")
    ],
    "segformer.data.standard.VOC2012Aug": [
        f"{kind}/{s}.png"
        for s in ("trainaug", "val")
        for kind in ("JPEGImages", "SegmentationClassAug")
    ],
    None: ["images/train/1.png", "images/val/1.png", "labels/train/1.png", "labels/val/1.png"],
    "segformer.data.standard.Cityscapes": [
        f"{kind}/{split}/aachen/1_{suffix}.png"
        for split in ("train", "val")
        for kind, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"))
    ],
    "segformer.data.standard.ADE20K": [
        f"{kind}/{split}/1.png"
        for split in ("training", "validation")
        for kind in ("images", "annotations")
    ],
}
FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = [
    path
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.stem != "imagenet"  # of classification: see train/test_classification.py
]
CHANGES = {"distill_camvid": "camvid", "unlabelled_camvid": "camvid"}  # of another config


def settings_of(config: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns what a config says, together with the one that it changes, and their arguments."""
    base = CHANGES.get(config.stem, config.stem)
    files = list(dict.fromkeys((FOLDER / f"{base}.yaml", config)))
    settings: dict[str, Any] = {}
    for file in files:
        settings = merge(settings, yaml.safe_load(file.read_text()))
    return settings, [f"--config={file}" for file in files]


def merge(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {key: merge(old.get(key), new.get(key, old.get(key))) for key in {**old, **new}}


def stand_in_data(settings: dict[str, Any], folder: Path) -> list[str]:
    """Writes one pair for each split in a config's layout; returns arguments with its folder."""
    data = settings["data"]["init_args"]
    if "root" not in data:
        return []
    for shade, name in enumerate(FILES.get(data.get("dataset"), FILES[None])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        is_label = any(
            word in name for word in ("labels", "annotations", "gtFine", "SegmentationClass")
        )
        Image.new("L", (32, 32), 0 if is_label else shade).save(folder / name)
    if "unlabelled_images" in data:
        return [f"--data.root={folder}", *stand_in_lists(folder)]
    for split in ("trainaug", "val"):  # VOC's lists; the others have none
        names = folder / f"ImageSets/Segmentation/{split}.txt"
        names.parent.mkdir(parents=True, exist_ok=True)
        names.write_text(f"{split}\n")
    return [f"--data.root={folder}"]


def stand_in_lists(folder: Path) -> list[str]:
    """Writes lists of one pair; returns the arguments that name them."""
    folder.mkdir(exist_ok=True)
    splits = {"train": "train", "val": "val", "test": "val", "unlabelled": "train"}
    for name, split in splits.items():
        (folder / f"{name}.csv").write_text(
            f"image,label\nimages/{split}/1.png,labels/{split}/1.png"
        )
    return [
        f"--data.train={folder / 'train.csv'}",
        f"--data.val={folder / 'val.csv'}",
        "--data.test=null",
        f"--data.unlabelled_images.images=[{folder / 'train.csv'}]",
    ]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_a_config_builds(config: Path, tmp_path: Path) -> None:
    from lightning import Trainer

    from segformer.train.lightning_cli import SegmentationCLI

    settings, files = settings_of(config)
    overrides = stand_in_data(settings, tmp_path)
    network = settings["model"]["network"]["init_args"]
    if network.get("pretrained"):  # nothing is downloaded, and nothing as large built
        overrides += ["--model.network.pretrained=false", "--model.network.backbone=tiny"]
    backbone = network.get("backbone")
    if isinstance(backbone, dict) and backbone["init_args"].get("pretrained"):
        overrides.append("--model.network.backbone.pretrained=false")
    if "source" in network:
        SegFormer("b0", num_classes=5).save(
            tmp_path / "b0.safetensors"
        )  # in place of ImageNet weights: a file of another data set
        overrides.append(f"--model.network.source={tmp_path / 'b0.safetensors'}")
    if "distillation" in settings["model"]:
        SegFormer("b0", num_classes=11).save(tmp_path / "teacher.safetensors")
        overrides.append(f"--model.distillation.teacher={tmp_path / 'teacher.safetensors'}")
    if settings["trainer"].get("precision"):
        overrides.append("--trainer.precision=32")
    cli = SegmentationCLI([*files, *overrides], run=False)
    assert isinstance(cli.trainer, Trainer)
    assert (cli.model.distillation is None) == ("distillation" not in settings["model"])
    assert (cli.model.consistency is None) == ("consistency" not in settings["model"])
    assert cli.datamodule.num_classes > 1
    assert cli.model.network.num_classes == (
        1 if settings.get("one_logit") else cli.datamodule.num_classes
    )


@pytest.mark.parametrize(
    "config", [path for path in CONFIGS if path.stem != "scenes"], ids=lambda path: path.stem
)
@pytest.mark.filterwarnings("ignore")
def test_check_reads_what_a_config_says_of_its_data(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from segformer.train.check import main

    settings, files = settings_of(config)
    arguments = stand_in_data(settings, tmp_path)
    main([*files, *arguments, f"--out={tmp_path / 'check.png'}", "--num_workers=0"])
    assert "no problems" in capsys.readouterr().out


def test_there_are_configs() -> None:
    assert {
        "scenes",
        "camvid",
        "setr_tiny_camvid",
        "resnet50_camvid",
        "setr_cityscapes",
        "setr_ade20k",
        "segformer_ade20k",
    } <= {path.stem for path in CONFIGS}


@pytest.mark.filterwarnings("ignore")
def test_the_parts_that_small_names_in_comments_build(tmp_path: Path) -> None:
    """All together, after their lines are uncommented."""
    from segformer.train.lightning_cli import SegmentationCLI

    pytest.importorskip("peft", reason="needs the package peft")
    text = (CONFIGS[0].parent / "small.yaml").read_text()
    parts = (
        "mixing:",
        "  class_path: segformer.data",
        "sampling:",
        "  class_path: segformer.train",
    )
    for part in (*parts, "frozen:", "lora:"):
        assert text.count(f"# {part}") == 1
        text = text.replace(f"# {part}", part)
    (tmp_path / "all.yaml").write_text(text)
    overrides = stand_in_data(yaml.safe_load(text), tmp_path)
    overrides.append("--model.network.backbone.pretrained=false")
    cli = SegmentationCLI([f"--config={tmp_path / 'all.yaml'}", *overrides], run=False)
    assert type(cli.datamodule.mixing).__name__ == "ClassMix"
    assert type(cli.datamodule.sampling).__name__ == "RareClasses"
    parameters = dict(cli.model.network.named_parameters())
    assert not any(p.requires_grad for name, p in parameters.items() if ".stages_0." in name)
    assert any("lora_A" in name and p.requires_grad for name, p in parameters.items())
    assert cli.model.layer_decay == 0.8
