"""Which records are kept and when they are void.

A stand-in records here; tests/test_cuda.py records on a device.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segformer import SegFormer
from segformer.ops import plain, upsample_argmax
from segformer.ops.cuda_graphs import Function, Graphs
from segformer.ops.registry import Implementation


class Records:
    """Counts what is recorded, and computes like a graph.

    It reads the weights' memory of the time of the recording.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, function: Function, x: Tensor) -> Function:
        self.shapes.append(tuple(x.shape))
        return function


@pytest.fixture
def records() -> Records:
    return Records()


def test_a_shape_is_recorded_once_and_the_least_used_is_let_go(records: Records) -> None:
    module = nn.Linear(3, 2)
    graphs = Graphs(records, most=2)
    for n in (1, 2, 1, 3, 1, 2):
        x = torch.randn(n, 3)
        assert torch.equal(graphs(module, module, x), module(x))
    assert records.shapes == [(1, 3), (2, 3), (3, 3), (2, 3)]


def test_what_else_differs_is_recorded_apart(records: Records) -> None:
    module = nn.Linear(3, 3)
    graphs, x = Graphs(records), torch.randn(3, 3)
    for key in ((), (4, 4), ()):
        graphs(module, module, x, key)
    graphs(module, module, x.T)
    graphs(module.double(), module, x.double())
    assert len(records.shapes) == 4


def test_a_type_of_images_is_recorded_apart(records: Records) -> None:
    module = nn.Linear(3, 3)
    graphs, x = Graphs(records), torch.randn(3, 3)
    for images in (x, x.bfloat16(), x):
        assert graphs(module, torch.relu, images).dtype == images.dtype
    assert len(records.shapes) == 2


def test_the_mode_between_calls_makes_no_record_void(records: Records) -> None:
    """The function sets the mode that it computes in."""
    module = nn.Linear(3, 3)
    graphs, x = Graphs(records), torch.randn(3, 3)
    for training in (True, False, True):
        graphs(module.train(training), module, x)
    assert len(records.shapes) == 1


def test_changes_that_a_record_would_not_see_make_it_void(records: Records) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    graphs, x = Graphs(records), torch.randn(4, 3)

    def recorded() -> bool:
        before = len(records.shapes)
        graphs(module, module, x)
        return len(records.shapes) > before

    assert recorded()
    assert not recorded()
    with torch.no_grad():
        module[0].weight.mul_(2)
    module.load_state_dict(module.state_dict())
    module.train().eval()
    assert not recorded()
    module[0].weight = nn.Parameter(torch.randn(3, 3))
    assert recorded()
    module[0].weight.data = torch.randn(3, 3)
    assert recorded()
    module.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
    assert recorded()
    module[1].eps = 1e-3
    assert recorded()
    module[1] = nn.Identity()
    assert recorded()
    module.append(nn.ReLU())
    assert recorded()
    assert not recorded()


def add_a_buffer(module: nn.Module) -> None:
    module.register_buffer("shift", torch.ones(3))


def add_a_module(module: nn.Module) -> None:
    module.add_module("extra", nn.ReLU())


def rename_the_weight(module: nn.Module) -> None:
    module._parameters["renamed"] = module._parameters.pop("weight")


@pytest.mark.parametrize(
    "change",
    [
        add_a_buffer,
        add_a_module,
        rename_the_weight,
        lambda module: setattr(module, "scale", 2.0),
        lambda module: setattr(module, "forward", torch.relu),
    ],
    ids=["buffer", "module", "name", "attribute", "forward"],
)
def test_what_a_part_had_none_of_makes_a_record_void(
    change: Callable[[nn.Module], None], records: Records
) -> None:
    part = nn.Linear(3, 3)
    module, graphs, x = nn.Sequential(part, nn.ReLU()), Graphs(records), torch.randn(4, 3)
    graphs(module, torch.relu, x)
    change(part)
    graphs(module, torch.relu, x)
    graphs(module, torch.relu, x)
    assert len(records.shapes) == 2


def test_an_attribute_or_function_that_is_replaced_makes_a_record_void(records: Records) -> None:
    module, graphs, x = nn.Identity(), Graphs(records), torch.randn(4, 3)
    module.scale, module.act, module.forward = None, torch.relu, torch.relu
    graphs(module, torch.relu, x)
    changes = [("scale", 2.0), ("scale", x), ("act", torch.tanh), ("forward", torch.tanh)]
    for count, (name, value) in enumerate(changes, start=2):
        setattr(module, name, value)
        graphs(module, torch.relu, x)
        graphs(module, torch.relu, x)
        assert len(records.shapes) == count


@pytest.mark.parametrize(
    "change",
    [
        lambda part: part.names.append("b"),
        lambda part: part.scaling.update(a=2.0),
        lambda part: part.merged.add("a"),
        lambda part: setattr(part, "kind", torch.float16),
        lambda part: setattr(part, "table", torch.ones(3)),
        lambda part: setattr(part.weight, "data", part.weight.data.t()),
        lambda part: setattr(part, "__class__", type("Other", (nn.Linear,), {})),
    ],
    ids=["list", "dict", "set", "dtype", "tensor", "transposed", "class"],
)
def test_what_adapters_change_makes_a_record_void(
    change: Callable[[Any], None], records: Records
) -> None:
    """peft keeps the names of adapters in lists, and their scales in dictionaries."""
    part: Any = nn.Linear(3, 3)
    part.names, part.scaling, part.merged = ["a"], {"a": 1.0}, set()
    part.kind, part.table = torch.float32, torch.ones(3)
    module, graphs, x = nn.Sequential(part), Graphs(records), torch.randn(4, 3)
    graphs(module, torch.relu, x)
    graphs(module, torch.relu, x)
    assert len(records.shapes) == 1
    change(part)
    graphs(module, torch.relu, x)
    graphs(module, torch.relu, x)
    assert len(records.shapes) == 2


def test_copies_start_without_records(records: Records) -> None:
    module = nn.Linear(3, 2)
    graphs = Graphs(records, most=2)
    graphs(module, module, torch.randn(1, 3))
    twin = copy.deepcopy(graphs)
    assert (twin.most, len(twin.records), len(graphs.records)) == (2, 0, 1)
    unpickled = pickle.loads(pickle.dumps(graphs))
    assert (unpickled.most, len(unpickled.records)) == (2, 0)


def test_predict_by_graphs_is_predict(
    tiny: SegFormer, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr("segformer.ops.triton.agrees_on", lambda device: False)
    tiny._graphs = Graphs(records)
    images = torch.randn(1, 3, 64, 96)
    for size in (None, (30, 40), None):
        labels = tiny.predict(images, size, cuda_graph=True)
        assert torch.equal(labels, tiny.predict(images, size))
    tiny.predict(images, dtype=torch.bfloat16, cuda_graph=True)
    assert len(records.shapes) == 3


class Frozen(Records):
    """Repeats the result of the recording, as its kernels stay those of that time."""

    def __call__(self, function: Function, x: Tensor) -> Function:
        result = super().__call__(function, x)(x)
        return lambda x: result


def test_plain_definitions_are_recorded_apart(
    tiny: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fast implementation that is wrong shows which of them ran."""
    wrong = Implementation(lambda logits, size, align_corners: logits.new_ones(1, *size), fits)
    monkeypatch.setattr(upsample_argmax, "implementations", [wrong])
    images = torch.randn(1, 3, 64, 96)
    with plain():
        right = tiny.predict(images)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    tiny._graphs = Graphs(Frozen())
    for _ in range(2):
        assert (tiny.predict(images, cuda_graph=True) == 1).all()
        with plain():
            assert torch.equal(tiny.predict(images, cuda_graph=True), right)


def fits(*args: object) -> bool:
    return True


def test_graphs_need_a_device(tiny: SegFormer) -> None:
    with pytest.raises(ValueError, match="these are on cpu"):
        tiny.predict(torch.randn(1, 3, 64, 64), cuda_graph=True)
