"""Every experiment in configs/ parses, and builds its network for the classes of its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_a_config_builds(config: Path, tmp_path: Path) -> None:
    from lightning import Trainer

    from segformer.train.cli import SegmentationCLI
    from segformer.train.data import SegmentationData
    from segformer.train.task import SegmentationTask

    settings = yaml.safe_load(config.read_text())
    overrides = []
    if "root" in settings["data"]["init_args"]:
        from PIL import Image

        for split in ("train", "val"):
            for kind in ("images", "labels"):
                (tmp_path / kind / split).mkdir(parents=True)
                Image.new("L", (32, 32)).save(tmp_path / kind / split / "1.png")
        overrides = [f"--data.root={tmp_path}"]
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
    assert {"scenes", "camvid"} <= {path.stem for path in CONFIGS}
