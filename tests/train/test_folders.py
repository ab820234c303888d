"""Each run has a folder of its own, which ``--ckpt_path last`` finds again, whatever the logger."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY
from halves import small_config
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger

from segformer import AllMLPHead, SegFormer, SegmentationModel, TimmBackbone
from segformer.cli import main
from segformer.deploy import export
from segformer.train.folders import RunFolder

pytestmark = [
    pytest.mark.usefixtures("without_pictures"),
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers",
        "ignore:.*number of training batches",
        "ignore:.*GPU available",
    ),
]
CSV = "lightning.pytorch.loggers.CSVLogger"


class Tracker(Logger):
    """As a tracking service's: a name and a random version, and no folder of its own."""

    def __init__(self, save_dir: str, project: str = "project") -> None:
        super().__init__()
        self.folder, self.project = save_dir, project

    name = property(lambda self: self.project)  # type: ignore[assignment]
    version = property(lambda self: None)  # type: ignore[assignment]
    save_dir = property(lambda self: self.folder)  # type: ignore[assignment]

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Stop(Callback):
    """Ends the run after a step, as a signal does."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.resume = trainer.checkpoint_callbacks[-1]

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            self.resume.signal = 15


STOP = "--trainer.callbacks=test_folders.Stop"


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_folders", sys.modules[__name__])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["segformer", *arguments])
    main()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return SegFormer.from_pretrained(folder / "model.safetensors").state_dict()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the run that the others interrupt."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, "fit", "--config", str(small_config(folder)))
    return weights(folder / "runs" / "small" / "version_0")


def loggers(folder: Path) -> dict[str, tuple[Any, str]]:
    """Settings of loggers, and the folder of their first run."""
    runs = str(folder / "runs")
    csv = {"class_path": CSV, "init_args": {"save_dir": runs, "name": "small"}}
    other = {"class_path": CSV, "init_args": {"save_dir": str(folder / "other"), "name": "more"}}
    tracker = {"class_path": "test_folders.Tracker", "init_args": {"save_dir": runs}}
    return {
        "one": (csv, "runs/small/version_0"),
        "two": ([csv, other], "runs/small/version_0"),
        "a tracker": (tracker, "runs/project/version_0"),
        "a tracker first": ([tracker, csv], "runs/project/version_0"),
        "none": (False, "lightning_logs/version_0"),
        "the default": (True, "lightning_logs/version_0"),
        "a named version": (
            {"class_path": CSV, "init_args": {**csv["init_args"], "version": "mine"}},
            "runs/small/mine",
        ),
    }


@pytest.mark.parametrize("name", loggers(Path()))
def test_a_run_is_resumed_in_its_folder(
    name: str, undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, folder = loggers(tmp_path)[name]
    config = str(small_config(tmp_path, logger=logger, default_root_dir=str(tmp_path)))
    with pytest.raises(SystemExit, match="143"):
        run(monkeypatch, "fit", "--config", config, STOP)
    run(monkeypatch, "fit", "--config", config, "--ckpt_path=last")
    assert [path.name for path in (tmp_path / folder).parent.iterdir()] == [Path(folder).name]
    assert {"config.yaml", "model.safetensors", "results.json", "checkpoints"} <= {
        p.name for p in (tmp_path / folder).iterdir()
    }
    resumed = torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == 8

    torch.testing.assert_close(weights(tmp_path / folder), undisturbed, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["a tracker", "none", "the default", "a named version"])
def test_no_run_overwrites_another(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, folder = loggers(tmp_path)[name]
    config = str(small_config(tmp_path, logger=logger, default_root_dir=str(tmp_path)))
    run(monkeypatch, "fit", "--config", config, "--trainer.max_epochs=1")
    kept = (tmp_path / folder / "model.safetensors").read_bytes()
    again = ("fit", "--config", config, "--trainer.max_epochs=1", "--seed_everything=1")
    if name == "a named version":
        with pytest.raises(
            SystemExit, match="mine' holds a run already; go on with it by --ckpt_path last"
        ) as refused:
            run(monkeypatch, *again)
        assert refused.value.code == 2
    else:
        run(monkeypatch, *again)
        assert (tmp_path / folder).with_name("version_1").joinpath("model.safetensors").is_file()
    assert (tmp_path / folder / "model.safetensors").read_bytes() == kept


def test_a_named_version_is_no_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(small_config(tmp_path, max_epochs=1))
    run(monkeypatch, "fit", "--config", config)
    run(
        monkeypatch,
        "fit",
        "--config",
        config,
        "--trainer.logger.version=mine",
        "--ckpt_path=last",
        "--seed_everything=1",
    )
    first, mine = (
        weights(tmp_path / "runs" / "small" / folder) for folder in ("version_0", "mine")
    )
    assert not torch.equal(first["decode_head.fuse.weight"], mine["decode_head.fuse.weight"])


def test_a_fast_dev_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_config(tmp_path)
    SegFormer(TINY, num_classes=2).save("two.safetensors")
    run(monkeypatch, "fit", "--config=small.yaml", "--trainer.fast_dev_run=true")
    run(
        monkeypatch,
        "validate",
        "--config=small.yaml",
        "--trainer.fast_dev_run=true",
        "--weights=two.safetensors",
    )
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml", "two.safetensors"}


def test_a_run_without_validation_leaves_its_last_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(
        monkeypatch, "fit", "--config", str(small_config(tmp_path)), "--trainer.limit_val_batches=0"
    )
    folder = tmp_path / "runs" / "small" / "version_0"
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8
    for key, tensor in weights(folder).items():
        assert torch.equal(tensor, last["state_dict"][f"network.{key}"]), key
    assert not (folder / "results.json").exists()


def test_a_saved_config_is_a_new_run_of_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the default optimizer and schedule, of a run that was resumed."""
    config = str(small_config(tmp_path))
    with pytest.raises(SystemExit, match="143"):
        run(monkeypatch, "fit", "--config", config, STOP)
    run(monkeypatch, "fit", "--config", config, "--ckpt_path=last")
    first = tmp_path / "runs" / "small" / "version_0"
    settings = yaml.safe_load((first / "config.yaml").read_text(encoding="utf-8"))
    assert settings["model"]["optimizer"]["class_path"] == "segformer.train.optim.OfficialAdamW"
    run(monkeypatch, "fit", "--config", str(first / "config.yaml"))
    torch.testing.assert_close(
        weights(first.with_name("version_1")), weights(first), rtol=0, atol=0
    )


@pytest.mark.parametrize("which", ["last", "best"])
def test_validate_measures_the_checkpoint(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(
        small_config(
            tmp_path, max_epochs=3, callbacks=[{"class_path": "segformer.train.averaging.EMA"}]
        )
    )
    run(monkeypatch, "fit", "--config", config)
    first = tmp_path / "runs" / "small" / "version_0"
    found = next(first.glob("checkpoints/" + {"last": "last.ckpt", "best": "epoch*.ckpt"}[which]))
    run(monkeypatch, "validate", "--config", config, "--weights", str(found))
    run(monkeypatch, "validate", "--config", config, "--ckpt_path", which)
    by_weights, by_name = (
        json.loads((first.with_name(f"version_{n}") / "results.json").read_text()) for n in (1, 2)
    )
    assert by_name == by_weights
    if which == "best":
        assert by_name == json.loads((first / "results.json").read_text())


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_without_a_checkpoint_nothing_is_measured(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        SystemExit, match=r"--ckpt_path last: no run in .*small' has a checkpoint yet"
    ) as refused:
        run(monkeypatch, verb, "--config", str(small_config(tmp_path)), "--ckpt_path=last")
    assert refused.value.code == 2


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_run_that_was_not_validated_has_no_best_checkpoint(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not begun again, and the newest is not measured in its place."""
    words = ["--config", str(small_config(tmp_path, max_epochs=1))]
    run(monkeypatch, "fit", *words, "--trainer.check_val_every_n_epoch=9")
    with pytest.raises(SystemExit, match=r"the newest run, .*version_0', has no best checkpoint"):
        run(monkeypatch, verb, *words, "--ckpt_path=best")
    assert len(list((tmp_path / "runs" / "small").iterdir())) == 1


def test_what_is_measured_needs_nothing_that_training_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that it started from are gone, and another network has no frozen part."""
    config = small_config(tmp_path, max_epochs=1)
    settings = yaml.safe_load(config.read_text())
    start = SegmentationModel(TimmBackbone("resnet18"), AllMLPHead((64, 128, 256, 512), 2, 8))
    start.save(tmp_path / "start.safetensors")
    settings["model"]["network"] = {
        "class_path": "segformer.Pretrained",
        "init_args": {"source": str(tmp_path / "start.safetensors")},
    }
    settings["model"]["frozen"] = ["backbone.model.bn1"]
    config.write_text(yaml.safe_dump(settings))
    run(monkeypatch, "fit", "--config", str(config))
    (tmp_path / "start.safetensors").unlink()
    SegFormer(TINY, num_classes=2).save(tmp_path / "other.safetensors")
    first = tmp_path / "runs" / "small" / "version_0"
    export(SegmentationModel.from_pretrained(first), tmp_path / "own.pt2")
    for measured in (
        ["--ckpt_path=best"],
        [f"--weights={first / 'model.safetensors'}", f"--compare={tmp_path / 'own.pt2'}"],
        [f"--weights={tmp_path / 'other.safetensors'}", f"--compare={first}"],
    ):
        run(monkeypatch, "validate", "--config", str(config), *measured)
    scores = [
        json.loads((first.with_name(f"version_{n}") / "results.json").read_text()) for n in range(4)
    ]
    assert scores[0] == scores[1] == scores[2] != scores[3]


def test_only_paths_in_the_runs_folder_move_with_it(tmp_path: Path) -> None:
    here, old, other = tmp_path / "new" / "checkpoints", "/old/checkpoints", "/elsewhere"
    here.mkdir(parents=True)

    def state(folder: str) -> dict[str, Any]:
        paths = dict.fromkeys(
            ("best_model_path", "kth_best_model_path", "last_model_path"), f"{folder}/a.ckpt"
        )
        return {**paths, "best_k_models": {f"{folder}/a.ckpt": 1.0}, "dirpath": folder}

    states = {"Resumable{}": state(old), "ModelCheckpoint{1}": state(old)}
    states["ModelCheckpoint{2}"] = state(other)
    trainer: Any = SimpleNamespace(ckpt_path=here / "resume-step=2.ckpt")
    folder = RunFolder(None, Namespace(), here.parent, Namespace())
    folder.on_load_checkpoint(trainer, Any, {"callbacks": states})
    moved = [state(str(here)), state(str(here)), state(other)]
    assert list(states.values()) == moved


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "monitor=val/mIoU",
            "checkpoint.monitor='val/mIoU' is not logged; choose one of val/miou,",
        ),
        ("dirpath=elsewhere", "a run's checkpoints are in its folder, where --ckpt_path finds"),
        ("save_weights_only=true", "a run goes on from its checkpoints; leave it out"),
    ],
)
def test_checkpoints_that_would_not_be_found_are_refused(
    option: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "fit", "--config", str(small_config(tmp_path)), f"--checkpoint.{option}")


def test_a_run_does_not_go_on_from_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"state_dict": {}, "global_step": 2}, tmp_path / "a.ckpt")
    words = ["--config", str(small_config(tmp_path)), f"--ckpt_path={tmp_path / 'a.ckpt'}"]
    with pytest.raises(SystemExit, match=r"a\.ckpt' holds weights alone, .* new run from these"):
        run(monkeypatch, "fit", *words)
    classifier = {"model.head.weight": torch.zeros(2)}
    adapted = {"network.backbone.q.lora_A.default.weight": torch.zeros(2)}
    for state, said in (
        (classifier, "has no network that segments, as one of segformer pretrain; give the config"),
        (adapted, r"one of them has the adapters of model\.lora; give the config\.yaml of its"),
        (
            {"network.other": torch.zeros(2)},
            r"missing weights: \d+, such as .*; unexpected weights: 1, such as other",
        ),
    ):
        torch.save({"state_dict": state, "callbacks": {}}, tmp_path / "a.ckpt")
        with pytest.raises(SystemExit, match=said) as refused:
            run(monkeypatch, "validate", *words)
        assert len(str(refused.value)) < 600


def test_a_moved_run_still_has_its_best_score(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(SystemExit, match="143"):
        run(monkeypatch, "fit", "--config", str(small_config(tmp_path / "old")), STOP)
    shutil.move(tmp_path / "old", tmp_path / "new")
    run(monkeypatch, "fit", "--config", str(small_config(tmp_path / "new")), "--ckpt_path=last")
    torch.testing.assert_close(
        weights(tmp_path / "new" / "runs" / "small" / "version_0"), undisturbed, rtol=0, atol=0
    )


def test_csv_loggers_keep_both_parts_of_their_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(small_config(tmp_path))
    with pytest.raises(SystemExit, match="143"):
        run(monkeypatch, "fit", "--config", config, STOP)
    run(monkeypatch, "fit", "--config", config, "--ckpt_path=last")
    assert len(list((tmp_path / "runs" / "small" / "version_0").glob("metrics*.csv"))) == 2
    assert CSVLogger(tmp_path / "runs", "small").version == 1
