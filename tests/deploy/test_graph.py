"""The graph that is exported computes what the model computes, whatever its head is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, randomized
from torch import nn

from segformer import SegFormer, deploy
from segformer.data.normalization import Normalization
from segformer.deploy.comparison import noise
from segformer.deploy.description import Description
from segformer.deploy.graph import ComposedHead, Graph
from segformer.deploy.openvino import model_info


def other_dropout(head: Any) -> None:
    head.dropout = nn.Hardtanh(0, 0.3)


def hooked_dropout(head: Any) -> None:
    head.dropout.register_forward_hook(lambda module, inputs, output: 0.5 * output)


def hooked_head(head: Any) -> None:
    head.register_forward_hook(lambda module, inputs, output: 2 * output)


def other_forward(head: Any) -> None:
    forward = head.forward
    head.forward = lambda features: -forward(features)


def fuse_with_a_bias(head: Any) -> None:
    head.fuse = nn.Conv2d(head.fuse.in_channels, head.fuse.out_channels, 1)


def fuse_of_neighbours(head: Any) -> None:
    head.fuse = nn.Conv2d(head.fuse.in_channels, head.fuse.out_channels, 3, padding=1, bias=False)


def norm_of_a_batch(head: Any) -> None:
    head.norm = nn.BatchNorm2d(head.norm.num_features, track_running_stats=False).eval()


def norm_without_statistics(head: Any) -> None:
    head.norm.running_mean = head.norm.running_var = None  # of which no flag tells


def norm_without_weights(head: Any) -> None:
    head.norm = nn.BatchNorm2d(head.norm.num_features, affine=False).eval()


def projection_without_a_bias(head: Any) -> None:
    first = head.projections[0]
    head.projections[0] = nn.Linear(first.in_features, first.out_features, bias=False)


CHANGES = (
    *(other_dropout, hooked_dropout, hooked_head, other_forward, fuse_with_a_bias),
    *(fuse_of_neighbours, norm_of_a_batch, norm_without_statistics, norm_without_weights),
    projection_without_a_bias,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_head_that_is_not_plain_is_not_composed(
    change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward pass in groups of channels steps aside, too."""
    monkeypatch.setattr("segformer.ops.memory.PIECE", 64)
    model = randomized(SegFormer(TINY, num_classes=5)).eval()
    images = torch.randn(1, 3, 64, 96)
    plain = Graph(model, output="logits")
    assert isinstance(plain.decode_head, ComposedHead)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), model(images), rtol=1e-4, atol=1e-4)
        before = model(images)
        change(model.decode_head)
        expected = model(images)
        assert not torch.allclose(expected, before, rtol=1e-3)
        torch.testing.assert_close(
            Graph(model, output="logits")(images), expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_any_precision_is_exported(dtype: torch.dtype, tmp_path: Path) -> None:
    model = randomized(SegFormer(TINY, num_classes=5)).to(dtype)
    deploy.export(model, tmp_path / "model.pt2", output="logits", size=(64, 96))
    assert next(model.parameters()).dtype == dtype
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.float().eval()(images)
    torch.testing.assert_close(
        deploy.load(tmp_path / "model.pt2")(images), expected, rtol=1e-3, atol=1e-3
    )


def test_pixels_are_clipped_to_the_limits_of_the_model() -> None:
    normalization = Normalization([0.5] * 3, [0.2] * 3, limits=[(50, 200)] * 3)
    model = randomized(SegFormer(TINY, num_classes=5, normalization=normalization)).eval()
    pixels = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    graph = Graph(model, "uint8", "logits")
    with torch.no_grad():
        expected = model(normalization(pixels.permute(0, 3, 1, 2)))
        torch.testing.assert_close(graph(pixels), expected, rtol=1e-4, atol=1e-4)
    description = Description.of(model, input="uint8", output="logits")
    of_noise: Any = SimpleNamespace(description=description)
    assert max(int(pixels.max()) for pixels in noise(of_noise)) > 200


@pytest.mark.parametrize("given", ["normalized", "uint8"])
def test_openvino_files_state_the_normalization_that_is_left(given: str) -> None:
    model = SegFormer(TINY, num_classes=5)
    keys = model_info(Description.of(model, input=given))
    assert ("mean_values" in keys) == ("scale_values" in keys) == (given == "normalized")
