"""What the command does before PyTorch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import _segformer_verbs
import segformer

CODE = """
import os, sys, types
import _segformer_command
assert "torch" not in sys.modules
cli = types.ModuleType("segformer.cli")
cli.main = lambda: print(os.environ.get("OMP_WAIT_POLICY"))
sys.modules |= {"segformer": types.ModuleType("segformer"), "segformer.cli": cli}
sys.argv = ["segformer", "inspect"]
_segformer_command.main()
"""


@pytest.mark.parametrize(
    ("settings", "policy"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "0"}, "None")],
    ids=str,
)
def test_threads_wait_passively_unless_the_user_says_otherwise(
    settings: dict[str, str], policy: str
) -> None:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    }
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        env=inherited | settings,
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == policy


QUICK = """
import sys
import _segformer_command
try:
    _segformer_command.main()
finally:
    assert not {"torch", "timm", "segformer"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, [*_segformer_verbs.VERBS, "exit codes", "130"]),
        (["--version"], 0, ["segformer "]),
        ([], 2, [*_segformer_verbs.VERBS]),
        (["fti"], 2, ["segformer: no verb 'fti'; did you mean 'fit'?"]),
        (["xyz"], 2, ["segformer: no verb 'xyz'; segformer --help lists all"]),
        (["--versoin"], 2, ["did you mean '--version'?"]),
    ],
    ids=str,
)
def test_help_and_mistyped_verbs_do_not_load_pytorch(
    arguments: list[str], code: int, words: list[str]
) -> None:
    command = [sys.executable, "-c", QUICK, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == code
    assert all(word in run.stdout + run.stderr for word in words)
    assert "Traceback" not in run.stderr
    assert not run.stdout if code else not run.stderr


def test_the_documented_verbs_have_a_module_each() -> None:
    folder = Path(segformer.__file__).parent / "cli"
    assert set(_segformer_verbs.VERBS) <= {path.stem for path in folder.glob("*.py")}
    assert _segformer_verbs.EXAMPLES.keys() == _segformer_verbs.VERBS.keys()
