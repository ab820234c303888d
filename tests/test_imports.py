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
    "workspace": set(),
    "linear": {"workspace"},
    "attention": {"linear", "workspace"},
    "upsample_triton": set(),
    "upsample": {"upsample_triton", "workspace"},
    "mit": {"attention", "initialization", "linear", "workspace"},
    "heads": {"initialization", "linear", "upsample", "workspace"},
    "losses": {"data", "upsample"},
    "data": {"data"},
    "metrics": {"data"},
    "visualize": {"data"},
    "graphs": set(),
    "models": {"graphs", "mit", "heads", "upsample", "data", "checkpoint", "workspace"},
    "checkpoint": {"checkpoint", "mit", "heads", "upsample", "data"},
    "timm_backbone": {"checkpoint", "data", "upsample"},
    "setr": {"checkpoint", "data", "models", "timm_backbone", "upsample"},
    "convolutional": {"checkpoint", "data", "initialization", "mit", "models", "workspace"},
    "timm_models": {"checkpoint", "mit", "initialization"},
    "convert": {"checkpoint", "models"},
    "inference": {"evaluation", "models", "data", "visualize"},
    "evaluation": {"data", "metrics", "models", "upsample"},
    "train": {
        "train",
        "evaluation",
        "models",
        "checkpoint",
        "losses",
        "metrics",
        "data",
        "visualize",
    },
    "cli": {"inference", "convert", "train", "workspace"},
    "__init__": {
        "models",
        "mit",
        "heads",
        "data",
        "timm_models",
        "timm_backbone",
        "setr",
        "convolutional",
    },
}


def room(module: Path) -> str:
    return module.relative_to(SOURCE).with_suffix("").parts[0]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(SOURCE)))
def test_a_room_imports_only_the_rooms_below_it(module: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import | ast.ImportFrom)
            else []
        )
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        imported |= {name.split(".")[1] for name in names if name.startswith("segformer.")}
    assert imported <= MAY_IMPORT[room(module)]


def test_importing_the_library_brings_nothing_heavy() -> None:
    heavy = {"lightning", "torchmetrics", "jsonargparse", "matplotlib", "transformers"}
    code = f"import segformer, segformer.inference, segformer.evaluation.summary, sys; print(*{heavy} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        == "\n"
    )


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(SOURCE)))
def test_text_files_are_utf_8_whatever_the_system_prefers(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("read_text", "write_text"):
                assert "encoding" in {word.arg for word in node.keywords}, f"line {node.lineno}"
            if node.func.attr == "open" and node.args and isinstance(node.args[0], ast.Constant):
                assert "b" in node.args[0].value, f"line {node.lineno}"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "open"
        ):
            modes = [word.value for word in node.args[1:2] if isinstance(word, ast.Constant)]
            is_binary = any("b" in mode for mode in modes)
            assert is_binary or "encoding" in {word.arg for word in node.keywords}


def test_public_names_have_docstrings() -> None:
    for name in segformer.__all__:
        thing = getattr(segformer, name)
        assert not callable(thing) or thing.__doc__, name
