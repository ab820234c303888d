"""What several tests share: seeds, devices, tiny networks, random weights."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The processes of pytest-xdist share the cores, and so do those that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Before anything imports Triton: its kernels then run on CPUs, slowly.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from segformer import SegFormer, TimmBackbone, Variant

M = TypeVar("M", bound=nn.Module)
TINY = Variant(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), decoder_channels=16, heads=(1, 2, 3, 4))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("reason: this machine has no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of a run take as long as its few steps; test_train looks at them."""
    monkeypatch.setattr("segformer.train.report.Report.draw", lambda *_: None)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


@pytest.fixture
def tiny() -> SegFormer:
    """An untrained network of a few thousand parameters and 5 classes, in evaluation mode."""
    return randomized(SegFormer(TINY, num_classes=5))


def interpolate(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinear interpolation by PyTorch."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def randomized(model: M) -> M:
    """Random biases, norms and running statistics, so that a mistake in any of them shows.

    In evaluation mode.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1:
                tensor.normal_(std=0.2)
    return model.eval()


def varied(model: M, norm: Any, images: Tensor) -> M:
    """Measures the head's BatchNorm on images, so that their labels vary. In evaluation mode."""
    norm.momentum = None
    norm.reset_running_stats()
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def quick(num_classes: int) -> SegFormer:
    """A network of convolutions: it is captured in a third of the time of MiT's smallest."""
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet")
    return randomized(SegFormer(backbone, num_classes=num_classes, decoder_channels=16))


def tiny_peer(**options: Any) -> Any:
    """transformers' SegFormer of the size of ``TINY``, with options of its configuration."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        hidden_sizes=list(TINY.dims),
        depths=list(TINY.depths),
        num_attention_heads=list(TINY.heads),
        decoder_hidden_size=TINY.decoder_channels,
        **options,
    )
    return randomized(SegformerForSemanticSegmentation(config))
