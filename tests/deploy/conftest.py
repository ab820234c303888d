"""A tiny network, exported once to each format and output for all tests of exported files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import quick

from segformer import Classes, SegFormer, deploy

OPTIONS: dict[str, dict[str, Any]] = {
    "labels.onnx": {},
    "logits.onnx": {"output": "logits"},
    "pixels.onnx": {"input": "uint8", "output": "logits"},
    "fixed.onnx": {"size": (64, 96), "batch": 2},
    "sized.onnx": {"takes_size": True},
    "labels.xml": {},
    "probabilities.xml": {"output": "probabilities"},
    "logits.pt2": {"output": "logits"},
    "fixed and sized.pt2": {"size": (64, 96), "takes_size": True},
    "logits.pte": {"output": "logits", "size": (64, 96)},
}
PACKAGES = {".onnx": "onnxscript", ".xml": "openvino", ".pte": "executorch"}


def network() -> SegFormer:
    """The network of all exported files."""
    model = quick(5)
    model.classes = Classes(["road", "sky", "tree", "car", "person"])
    return model


@pytest.fixture
def model() -> SegFormer:
    return network()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function from a name in ``OPTIONS`` to the file, which is exported at the first call."""
    base = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist share the files: their folders lie in one of the whole run.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)

    def file(name: str) -> Path:
        path = folder / name
        pytest.importorskip(PACKAGES.get(path.suffix, "torch"), reason="needs an extra of export")
        if not path.exists():
            deploy.export(network(), path, **OPTIONS[name], overwrite=True)
        return path

    return file
