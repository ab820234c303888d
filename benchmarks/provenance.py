"""Where a measurement comes from: the machine, the versions, the date and the command."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import segformer

PACKAGES = (
    "torch",
    "transformers",
    "segmentation-models-pytorch",
    "onnxruntime",
    "openvino",
    "albumentations",
)


def provenance(command: str, machine: str) -> dict[str, Any]:
    """The fields that each row of the results carries beside what was measured."""
    return {
        "machine": machine,
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
    }


def versions() -> dict[str, str]:
    """Versions of this package and of its peers, where they are installed."""
    found = {"segformer": segformer.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu(threads: int) -> str:
    """The processor, its vector instructions as PyTorch uses them, and the number of threads."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        name = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), name
        )
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads"
