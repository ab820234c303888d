"""What the command sets before PyTorch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
import _segformer_command
assert "torch" not in sys.modules
import segformer.cli
sys.argv = ["segformer", "inspect"]
segformer.cli.main = lambda: print(os.environ.get("OMP_WAIT_POLICY"))
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
