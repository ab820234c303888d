"""What the command says of wrong input: one sentence on the error stream, and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from halves import small_config

from segformer.cli import main

NO_FOLDER = """
data:
  class_path: segformer.train.data.FolderData
  init_args:
    root: gone
    classes: {names: [ground, car]}
    train_transform: {class_path: segformer.data.transforms.TrainTransform, init_args: {crop_size: [32, 32]}}
"""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fit", "--model.network.backbone=b9"], "fit: unknown variant 'b9'; choose one of b0"),
        (["fit", "--config=no_folder.yaml"], "fit: no folder 'gone/images/train'"),
        (
            ["fit", "--model.loss=segformer.losses.CrossEntropy", "--model.loss.weight=[1, 2, 3]"],
            "weighs 3 classes, the network has 2",
        ),
        (
            ["fit", "--model.network=segformer.SegFormr"],
            "model.network: module 'segformer' has no attribute 'SegFormr'",
        ),
        (["fit", "--data.batch_sice=2"], "data: Option 'batch_sice' is not accepted"),
        (
            ["fit", "--data.train_transform.crop_size=many"],
            "data.train_transform.crop_size: Expected a",
        ),
        (
            ["fit", "--trainer.max_epochs=many"],
            "trainer.max_epochs: Expected a int. Got value: many",
        ),
        (["fit", "--config=gone.yaml"], "File does not exist: "),
        (["fit", "--config=unknown_key.yaml"], "does not accept option 'trainr.max_epochs'"),
        (["fit", "--config=broken.yaml"], "did not find expected node content"),
        (["fit", "--trainer.max_epochs=-1"], "the schedule needs the run's length"),
        (["fit", "--trainer.enable_checkpointing=false"], "enable_checkpointing=False"),
        (["validate", "--ckpt_path=broken.yaml"], "the checkpoint 'broken.yaml' is broken"),
        (
            ["validate", "--weights=gone.safetensors"],
            "validate: no file or folder 'gone.safetensors'",
        ),
        (["test", "--weights=gone.safetensors"], "test: no file or folder 'gone.safetensors'"),
    ],
)
def test_wrong_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("data: [\n")
    (tmp_path / "no_folder.yaml").write_text(NO_FOLDER)
    (tmp_path / "unknown_key.yaml").write_text("trainr: {max_epochs: 3}\n")
    verb, *more = arguments
    monkeypatch.setattr(
        sys, "argv", ["segformer", verb, "--config", str(small_config(tmp_path)), *more]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segformer ")]
    assert len(lines) == 1
    assert sentence in lines[0]
    assert "Namespace" not in lines[0]


def test_a_traceback_is_shown_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGFORMER_DEBUG", "1")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "segformer",
            "fit",
            "--config",
            str(small_config(tmp_path)),
            "--model.network.backbone=b9",
        ],
    )
    with pytest.raises(ValueError, match="unknown variant 'b9'"):
        main()


def test_an_error_in_a_users_code_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halves.Halves.__len__", lambda self: len(None))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["segformer", "fit", "--config", str(small_config(tmp_path))])
    with pytest.raises(TypeError, match="NoneType"):
        main()


def segformer(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", "from segformer.cli import main; main()", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_process_itself(tmp_path: Path) -> None:
    """No traceback; a mistyped verb ends with 2, too, and so does a wrong argument of ``predict``."""
    small_config(tmp_path)
    wrong = ("fit", "--config=small.yaml", "--data.batch_size=100")
    refused = segformer(tmp_path, *wrong)
    assert refused.returncode == 2
    assert "segformer fit: 9 training images make no batch of 100" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert segformer(tmp_path, "fitt").returncode == 2
    missing = segformer(tmp_path, "predict", "gone.safetensors", "gone.png", "--out", "out")
    assert (missing.returncode, missing.stderr) == (
        2,
        "segformer predict: no image or folder 'gone.png'\n",
    )


def test_messages_are_said_once_and_without_advertisements(tmp_path: Path) -> None:
    small_config(tmp_path)
    run = segformer(tmp_path, "fit", "--config=small.yaml", "--trainer.max_epochs=1")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("Seed set to 0") == 1
    assert run.stderr.count("`max_epochs=1` reached") == 1
    assert "litlogger" not in run.stderr
    assert "step 4 of 4, loss " in run.stdout  # no terminal
