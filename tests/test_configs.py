"""Every experiment in configs/ parses, and builds its network for the classes of its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from segformer import SegFormer

FILES = {
    None: ["images/train/1.png", "images/val/1.png", "labels/train/1.png", "labels/val/1.png"],
    "segformer.data.standard.Cityscapes": [
        f"{kind}/{split}/aachen/1_{suffix}.png"
        for split in ("train", "val")
        for kind, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"))
    ],
    "segformer.data.standard.ADE20K": [
        f"{kind}/{split}/1.png" for split in ("training", "validation") for kind in ("images", "annotations")
    ],
}
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_a_config_builds(config: Path, tmp_path: Path) -> None:
    from lightning import Trainer

    from segformer.train.cli import SegmentationCLI
    from segformer.train.data import SegmentationData
    from segformer.train.task import SegmentationTask

    settings = yaml.safe_load(config.read_text())
    data, overrides = settings["data"]["init_args"], []
    if "root" in data:
        for name in FILES.get(data.get("dataset"), FILES[None]):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), 1).save(tmp_path / name)
        overrides = [f"--data.root={tmp_path}"]
    network = settings["model"]["network"]["init_args"]
    if network.get("pretrained"):  # nothing is downloaded, and nothing as large built
        overrides += ["--model.network.pretrained=false", "--model.network.backbone=tiny"]
    if "source" in network:
        SegFormer("b0", num_classes=5).save(tmp_path / "b0.safetensors")  # in place of ImageNet weights: a file of another data set
        overrides.append(f"--model.network.source={tmp_path / 'b0.safetensors'}")
    if settings["trainer"].get("precision"):
        overrides.append("--trainer.precision=32")
    cli = SegmentationCLI(
        SegmentationTask,
        SegmentationData,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        run=False,
        args=[f"--config={config}", *overrides],
    )
    assert isinstance(cli.trainer, Trainer)
    assert cli.model.network.num_classes == cli.datamodule.num_classes > 1


def test_there_are_configs() -> None:
    assert {"scenes", "camvid", "setr_tiny_camvid", "resnet50_camvid", "setr_cityscapes", "setr_ade20k", "segformer_ade20k"} <= {
        path.stem for path in CONFIGS
    }
