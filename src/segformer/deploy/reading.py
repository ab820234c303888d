"""From a name to a model: an exported file in its engine, or weights in PyTorch."""

from __future__ import annotations

import os

import torch

from segformer.deploy.devices import torch_device
from segformer.deploy.exported import Exported, is_exported, load
from segformer.models import SegmentationModel


def load_model(
    source: str | os.PathLike[str], device: str | None = None
) -> SegmentationModel | Exported:
    """Returns an exported file, or weights in any layout, as a model that predicts.

    Args:
        source: An exported file, such as ``model.onnx``; or a file, a folder or a Hugging Face id
            of weights.
        device: Such as ``"cpu"`` or ``"cuda:0"``; by default the GPU, if there is one, for weights,
            and the CPU for exported files.

    Raises:
        FileNotFoundError: If there is no such file, folder or id.
        ValueError: If it cannot be read, or the device is missing.
    """
    if is_exported(source):
        return load(source, device or "cpu")
    place = torch_device(device or _default_device())
    return SegmentationModel.from_pretrained(source, device=place)


def _default_device() -> str:
    """Returns the GPU of this process, as ``torchrun`` numbers them, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
