"""Who imports whom: the rooms stay apart, and the library stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import segformer

SOURCE = Path(segformer.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

MAY_IMPORT = {
    "initialization": set(),
    "upsample": set(),
    "mit": {"initialization"},
    "heads": {"initialization", "upsample"},
    "losses": {"upsample"},
    "data": {"data"},
    "metrics": {"data"},
    "visualize": {"data"},
    "models": {"mit", "heads", "upsample", "data", "checkpoint"},
    "checkpoint": {"models", "mit", "heads", "initialization", "data"},
    "inference": {"models", "data", "visualize"},
    "train": {"train", "models", "losses", "metrics", "data", "visualize"},
    "cli": {"inference", "train"},
    "__init__": {"models", "mit", "heads", "data"},
}


def room(module: Path) -> str:
    return module.relative_to(SOURCE).with_suffix("").parts[0]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(SOURCE)))
def test_a_room_imports_only_the_rooms_below_it(module: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("segformer."):
            imported.add(node.module.split(".")[1])
    assert imported <= MAY_IMPORT[room(module)]


@pytest.mark.parametrize("heavy", ["lightning", "torchmetrics", "jsonargparse", "matplotlib", "transformers"])
def test_importing_the_library_brings_nothing_heavy(heavy: str) -> None:
    code = f"import segformer, segformer.inference, segformer.checkpoint, sys; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_have_docstrings() -> None:
    for name in segformer.__all__:
        thing = getattr(segformer, name)
        assert not callable(thing) or thing.__doc__, name
