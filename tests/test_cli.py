"""The command line: help, completion, exit codes, and one sentence about wrong input."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import processes
import pytest
import yaml
from halves import small_config
from lightning import Trainer

from segformer.cli import VERBS, main, parser_of

NO_FOLDER = """
data:
  class_path: segformer.train.data.FolderData
  init_args:
    root: gone
    classes: {names: [ground, car]}
    train_transform:
      class_path: segformer.data.transforms.TrainTransform
      init_args: {crop_size: [32, 32]}
"""

TIMM_BACKBONE = [
    "--model.network.backbone={class_path: segformer.TimmBackbone, init_args: {name: resnet18}}"
]

EMA_OF_2 = [
    "--trainer.callbacks=[{class_path: segformer.train.averaging.EMA, init_args: {decay: 2}}]"
]
WINDOWS_WITH_GAPS = [
    "--model.protocol=segformer.evaluation.Protocol",
    "--model.protocol.mode=segformer.evaluation.Slide",
    "--model.protocol.mode.crop_size=[8, 8]",
    "--model.protocol.mode.stride=[9, 9]",
]

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
        # Where several types are possible, the fault is that of the class that is given.
        (
            ["fit", *TIMM_BACKBONE, "--model.network.backbone.init_args.name=resnet1"],
            "fit: unknown timm model 'resnet1'; did you mean resnet",
        ),
        (
            ["fit", *TIMM_BACKBONE, "--model.network.backbone.dict_kwargs.drop_pth=0.1"],
            "'resnet18' does not take these arguments:",
        ),
        (
            ["fit", *TIMM_BACKBONE, "--model.network.backbone.init_args.pretraind=true"],
            "model.network.backbone: Option 'pretraind' is not accepted",
        ),
        (
            ["fit", "--model.network.backbone=segformer.TimmBackbne"],
            "unknown variant 'segformer.TimmBackbne'; choose one of b0",
        ),
        (
            ["fit", "--model.network.backbone={class_path: segformer.TimmBackbne}"],
            "model.network.backbone: module 'segformer' has no attribute 'TimmBackbne'",
        ),
        (
            ["fit", "--model.network.dropout={class_path: torch.nn.Dropout, init_args: {p: 2}}"],
            "fit: dropout probability has to be between 0 and 1, but got 2",
        ),
        (
            ["fit", "--trainer.callbacks=[{class_path: segformer.train.averaging.EMAA}]"],
            "trainer.callbacks: module 'segformer.train.averaging' has no attribute 'EMAA'",
        ),
        (["fit", *EMA_OF_2], "fit: decay=2.0; give a number from 0 to below 1"),
        (["fit", *WINDOWS_WITH_GAPS], "fit: stride=(9, 9) must be from 1 to crop_size=(8, 8)"),
        (
            ["fit", "--model.network.dropout=abc"],
            "model.network.dropout: Expected a float. Got value: abc",
        ),
        (
            ["fit", "--model.network.decoder_channels=many"],
            "model.network.decoder_channels: Expected a int. Got value: many",
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
        (["fit", "--data.batchsize=2"], "did you mean '--data.batch_size'?"),
        (["fit", "--trainr.max_steps=2"], "did you mean '--trainer.max_steps'?"),
        (["fit", "--model.network.bckbone", "b0"], "did you mean '--model.network.backbone'?"),
        (["fit", "--config=unknown_key.yaml"], "did you mean 'trainer.max_epochs'?"),
        (["fit", "--config=unknown_option.yaml"], "did you mean 'data.batch_size'?"),
        (["check", "--data.batchsize=2"], "did you mean '--data.batch_size'?"),
        (["check", "--num_wokers=2"], "did you mean '--num_workers'?"),
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
    (tmp_path / "unknown_option.yaml").write_text("data: {init_args: {batchsize: 3}}\n")
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
    """Wrong arguments end with code 2, without traceback; a mistyped verb is tested below."""
    small_config(tmp_path)
    config = f"--config={tmp_path / 'small.yaml'}"
    code, printed = "from segformer.cli import main; main()", tmp_path / "printed"
    refused = processes.start(code, "fit", config, "--data.batch_size=100", output=printed)
    refused.join(300)
    assert refused.exitcode == 2
    assert "segformer fit: 9 training images make no batch of 100" in printed.read_text()
    assert "Traceback" not in printed.read_text()
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


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_each_option_and_fits_a_terminal(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in parser_of(verb)._option_string_actions)
    assert f"segformer {verb} " in shown
    assert len(shown.splitlines()) < 50
    assert max(map(len, shown.splitlines())) <= 100


COMMON = {
    "data.root": "folder",
    "trainer.devices": "2",
    "trainer.precision": "bf16-mixed",
    "ckpt_path": "last",
}
OF_FIT = {
    "data.batch_size": 3,
    "model.network": "segformer.SegFormer",
    "model.network.backbone": "b1",
    "trainer.max_steps": 7,
    "seed_everything": 5,
}
OF_FOLDERS = {  # of `fit FOLDER`, which has a parser of its own
    *("val_share", "val_seed", "train_names", "val_names", "group", "variant", "weights"),
    *("out", "dry_run"),
}
OF_A_MEASUREMENT = {
    "data.val_batch_size": 3,
    "weights": "some.safetensors",
    "protocol": "ade20k",
    "tta": True,
    "per-image": True,
    "compare": "other.safetensors",
    "trainer.accelerator": "cuda",
}


def setting(config: Any, key: str) -> Any:
    """A value of a printed config, in which classes have their arguments below ``init_args``."""
    for name in key.split("."):
        config = config.get("init_args", config)[name]
    return config["class_path"] if isinstance(config, dict) else config


@pytest.mark.parametrize(
    ("verb", "values"),
    [("fit", OF_FIT), ("validate", OF_A_MEASUREMENT), ("test", OF_A_MEASUREMENT)],
)
def test_the_full_parser_has_all_options_of_the_short_help(
    verb: str, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given = COMMON | values
    short = {name[2:] for name in parser_of(verb)._option_string_actions if name[:2] == "--"}
    if verb == "fit":
        short -= OF_FOLDERS
    assert short == {*given, "config", "help", "help-all", "print_config"}
    options = [f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items()]
    with pytest.raises(SystemExit) as stop:
        main([verb, "--data=segformer.train.data.FolderData", *options, "--print_config"])
    assert not stop.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    assert {key: setting(config, key.replace("-", "_")) for key in given} == given


def test_the_full_help_has_every_setting_of_the_trainer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help-all"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    for name in set(inspect.signature(Trainer).parameters) - {"self"}:
        assert f"--trainer.{name}" in shown


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_verbs_and_options(shell: str, tmp_path: Path) -> None:
    pytest.importorskip("shtab", reason="needs the extra [completion]")
    from segformer.cli.completion import script

    text = script(shell)
    assert all(verb in text for verb in VERBS)
    assert all(option in text for option in ("--data.batch_size", "--source-layout", "--slide"))
    if found := shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([found, "-n", str(tmp_path / "script")], check=True)


def test_bash_completes_a_verb_and_an_option(tmp_path: Path) -> None:
    """Bash itself is asked what it would complete."""
    pytest.importorskip("shtab", reason="needs the extra [completion]")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("reason: needs bash")
    from segformer.cli.completion import script

    ask = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); {}; echo "${{COMPREPLY[@]}}"'
    text = script("bash")
    function = re.search(r"complete .*-F (\S+) segformer", text)
    assert function is not None
    (tmp_path / "script").write_text(f"{text}\n{ask.format(function[1])}\n")
    for words, completed in (
        (["va"], "validate"),
        (["fit", "--trainer.max"], "--trainer.max_steps"),
    ):
        command = [bash, str(tmp_path / "script"), "segformer", *words]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        assert answer.stdout.split() == [completed]


def test_an_interruption_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def interrupted_in_lightning(*_: object) -> None:  # which turns it into exit code 1
        try:
            interrupted()
        except KeyboardInterrupt:
            sys.exit(1)

    for run in (interrupted, interrupted_in_lightning):
        monkeypatch.setattr("segformer.cli.inspect.run", run)
        with pytest.raises(SystemExit) as stop:
            main(["inspect", "x"])
        assert stop.value.code == 130


def test_a_wrong_option_of_an_argument_parser_names_the_closest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict", "x", "y", "--out", "z", "--overwite"])
    assert stop.value.code == 2
    assert "did you mean '--overwrite'?" in capsys.readouterr().err


@pytest.mark.slow
def test_python_runs_the_package(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "segformer", "fti"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (2, "segformer: no verb 'fti'; did you mean 'fit'?\n")
