"""How the all-MLP decoder is composed: in which precision, for which maps, and in graphs."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import randomized
from torch import nn

from segformer import AllMLPHead

all_mlp: Any = import_module("segformer.ops.all_mlp")  # of the same name as its operator


@pytest.fixture
def head() -> AllMLPHead:
    return randomized(AllMLPHead((4, 8), 3, 16))


@torch.no_grad()
def test_weights_are_composed_in_full_precision_under_autocast(head: AllMLPHead) -> None:
    x, (project, _), block = torch.randn(1, 4, 8, 8), head.projections, head.fuse.weight[:, 16:]
    fuse = nn.Conv2d(16, 16, 1, bias=False)
    fuse.weight.copy_(block)
    weight, bias = block.flatten(1) @ project.weight, block.flatten(1) @ project.bias
    with torch.autocast("cpu", torch.bfloat16):
        result = all_mlp.all_mlp([x], [project], fuse, nn.Identity(), nn.Identity(), nn.Identity())
    x, weight, bias = (y.bfloat16() for y in (x.permute(0, 2, 3, 1), weight, bias))
    assert torch.equal(result.permute(0, 2, 3, 1), F.linear(x, weight, bias).relu())


@pytest.mark.parametrize(("height", "is_composed"), [(2, False), (3, True)])
def test_two_products_are_composed_where_that_costs_less(
    height: int, is_composed: bool, head: AllMLPHead
) -> None:
    """Composing costs D² products a channel of the input, applying both D² a pixel."""
    features = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, height, 2)]  # 8 or 12 pixels
    maps, weights, _ = all_mlp._composed(features, head.projections, head.fuse, head.norm)
    assert [x.shape[-1] for x in maps] == [4, 8 if is_composed else 16]
    assert [weight.shape[1] for weight in weights] == [4, 8 if is_composed else 16]


@torch.no_grad()
def test_graphs_do_not_depend_on_the_size_of_the_maps(head: AllMLPHead) -> None:
    features = [torch.randn(1, 4, 2, 2), torch.randn(1, 8, 1, 1)]  # fewer pixels than channels
    larger = [torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.trace.* is deprecated")
        traced = [
            torch.jit.trace(head, (example,), check_trace=False) for example in (features, larger)
        ]
    kinds = [[node.kind() for node in graph.inlined_graph.nodes()] for graph in traced]
    assert kinds[0] == kinds[1]


@torch.no_grad()
def test_exported_projections_are_convolutions(head: AllMLPHead) -> None:
    """Engines keep their own memory order through convolutions, and not through linear layers."""
    features = [torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)]
    program = torch.export.export(head, (features,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("conv2d" in target for target in called) == 3  # two levels, one classifier
    assert not [target for target in called if ".linear." in target]
    torch.testing.assert_close(program.module()(features), head(features))


@torch.no_grad()
def test_layers_that_are_no_modules_are_called(head: AllMLPHead) -> None:
    features = [torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)]
    head.eval()
    layers = head.projections, head.fuse, head.norm.forward, head.dropout.forward, head.classifier
    torch.testing.assert_close(all_mlp.all_mlp(features, *layers), head(features))
