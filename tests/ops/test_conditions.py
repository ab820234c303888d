"""Which implementation of an operator runs when: one change at a time to a case that it takes."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules import module as torch_module

from segformer import AllMLPHead
from segformer.networks.all_mlp import MMSegHead
from segformer.networks.convolutional import LinearHead
from segformer.networks.mit import MixFFN
from segformer.ops import OPERATORS, conditions, memory, triton
from segformer.ops.conditions import (
    hooked_module,
    in_pieces,
    is_plain,
    is_plain_convolution,
    is_recorded,
    is_traced,
    is_transformed,
    without_autocast,
)
from segformer.ops.registry import Implementation

LINEAR = import_module("segformer.ops.linear")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Calls an operator, which returns the name of the implementation that it would run."""

    def named(name: str) -> Callable[..., Any]:
        return lambda *args, **options: name

    for made in OPERATORS.values():
        implementations = [
            Implementation(named(implementation.function.__name__), implementation.when)
            for implementation in made.implementations
        ]
        monkeypatch.setattr(made, "implementations", implementations)
        monkeypatch.setattr(made, "plain", named("plain"))

    def call(operator: str, *args: Any, recorded: bool = False, **options: Any) -> str:
        with torch.set_grad_enabled(recorded):
            return OPERATORS[operator](*args, **options)

    return call


@pytest.fixture
def fast_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an AMD processor with AVX-512 and two threads; small maps too."""
    monkeypatch.setattr(LINEAR, "LEAST", 16 * 8 * 8)
    monkeypatch.setattr(LINEAR, "LEAST_CELLS", 8)
    monkeypatch.setattr(LINEAR, "convolution_is_faster", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors say that they lie on a GPU, where Triton runs."""
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(triton, "agrees_on", lambda device: True)


def under_vmap(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a call returns inside of torch.func.vmap."""
    results = []
    torch.func.vmap(lambda x: (results.append(call(*args, **options)), x)[1])(torch.zeros(1))
    return results[0]


def while_traced(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a call returns while torch.jit.trace records a graph."""
    results = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.trace.* is deprecated")
        torch.jit.trace(lambda x: (results.append(call(*args, **options)), x)[1], torch.zeros(1))
    return results[0]


def on_meta(value: Any) -> Any:
    """A copy on the meta device of a tensor, or of each of a list's."""
    return value.to("meta") if isinstance(value, Tensor) else [x.to("meta") for x in value]


def hooked(module: Any) -> Any:
    module.register_forward_hook(lambda *_: None)
    return module


@contextmanager
def global_hook() -> Iterator[None]:
    handle = torch_module.register_module_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


# --- linear


@pytest.mark.usefixtures("fast_convolutions")
def test_linear_is_a_convolution_for_float32_maps_and_plain_layers(
    runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, layer = torch.randn(1, 4, 4, 8), nn.Linear(8, 8)
    for recorded in (True, False):
        assert runs("linear", x, layer, recorded=recorded) == "as_convolution"
    assert under_vmap(runs, "linear", x, layer) == "as_convolution"
    assert runs("linear", x.flatten(1, 2), layer) == "plain"
    assert runs("linear", x[:, 1:], layer) == "plain"  # 12 cells, fewer multiply-adds
    assert runs("linear", x[:, 3:], nn.Linear(8, 64)) == "plain"  # 4 cells
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert runs("linear", x.to(dtype), layer) == "plain"
    with torch.autocast("cpu", torch.bfloat16):
        assert runs("linear", x, layer) == "plain"
    assert while_traced(runs, "linear", x, layer) == "plain"
    assert runs("linear", on_meta(x), layer) == "plain"
    assert runs("linear", x, nn.Sequential(layer)) == "plain"
    assert runs("linear", x, hooked(nn.Linear(8, 8))) == "plain"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert runs("linear", x, layer) == "plain"


def test_linear_is_no_convolution_on_other_processors(
    runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LINEAR, "convolution_is_faster", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert runs("linear", torch.randn(1, 4, 4, 8), nn.Linear(8, 8)) == "plain"


# --- mix_ffn


def ffn(act: nn.Module | None = None, **parts: nn.Module) -> list[Any]:
    module = MixFFN(4, 8, act or nn.GELU())
    for name, part in parts.items():
        setattr(module, name, part)
    return [module.fc1, module.dwconv, module.act, module.fc2]


def test_mix_ffn_is_computed_in_strips_of_large_maps(
    runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, 4, 4, 4)
    row = 4 * 8 * 4  # bytes of a row of the hidden map
    monkeypatch.setattr(memory, "PIECE", row - 1)  # four of them are less than four rows
    assert runs("mix_ffn", x, *ffn()) == "in_strips"
    assert runs("mix_ffn", x, *ffn(), recorded=True) == "plain"
    assert runs("mix_ffn", x[:, :3], *ffn()) == "plain"
    assert runs("mix_ffn", x[:0], *ffn()) == "plain"
    assert runs("mix_ffn", on_meta(x), *ffn()) == "plain"
    assert under_vmap(runs, "mix_ffn", x, *ffn()) == "plain"
    assert while_traced(runs, "mix_ffn", x, *ffn()) == "plain"
    for act in (nn.ReLU(), nn.SiLU(), nn.GELU("tanh")):
        assert runs("mix_ffn", x, *ffn(act)) == "in_strips"
    for act in (nn.Softmax(1), nn.PReLU(), hooked(nn.GELU())):
        assert runs("mix_ffn", x, *ffn(act)) == "plain"
    for layer in (nn.Identity(), hooked(nn.Linear(4, 8))):
        assert runs("mix_ffn", x, *ffn(fc1=layer)) == "plain"
        assert runs("mix_ffn", x, *ffn(fc2=layer)) == "plain"
    for dwconv in (
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        hooked(nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    ):
        assert runs("mix_ffn", x, *ffn(dwconv=dwconv)) == "plain"
    monkeypatch.setattr(memory, "PIECE", row)
    assert runs("mix_ffn", x, *ffn()) == "plain"


# --- heads

FEATURES = [torch.randn(1, 4, 4, 4), torch.randn(1, 8, 2, 2)]


def all_mlp(**parts: nn.Module) -> list[Any]:
    head = AllMLPHead((4, 8), 3, 16).eval()
    for name, part in parts.items():
        setattr(head, name, part.eval())
    return [head.projections, head.fuse, head.norm, head.dropout, head.classifier]


def projections(first: nn.Module) -> nn.Module:
    return nn.ModuleList([first, nn.Linear(8, 16)])


def test_all_mlp_is_computed_in_groups_in_evaluation_on_cpus(
    runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, other = "in_groups_of_channels", "fused_at_each_level"
    fused_map = 4 * 4 * 16 * 4  # bytes
    monkeypatch.setattr(memory, "PIECE", fused_map)
    assert runs("all_mlp", FEATURES, *all_mlp()) == other
    monkeypatch.setattr(memory, "PIECE", fused_map - 1)
    assert runs("all_mlp", FEATURES, *all_mlp()) == fast
    assert runs("all_mlp", FEATURES, *all_mlp(), recorded=True) == other
    with torch.autocast("cpu", torch.bfloat16):
        assert runs("all_mlp", FEATURES, *all_mlp()) == other
    assert runs("all_mlp", [x[:0] for x in FEATURES], *all_mlp()) == other
    assert runs("all_mlp", on_meta(FEATURES), *all_mlp()) == other
    assert under_vmap(runs, "all_mlp", FEATURES, *all_mlp()) == other
    assert while_traced(runs, "all_mlp", FEATURES, *all_mlp()) == other
    for part in (
        {"norm": nn.SyncBatchNorm(16)},
        {"dropout": nn.Dropout(0.1)},
        {"dropout": nn.Identity()},
    ):
        assert runs("all_mlp", FEATURES, *all_mlp(**part)) == fast


@pytest.mark.parametrize(
    "parts",
    [
        {"projections": projections(nn.Linear(4, 16, bias=False))},
        {"projections": projections(nn.Sequential(nn.Linear(4, 16)))},
        {"projections": projections(hooked(nn.Linear(4, 16)))},
        {"norm": nn.GroupNorm(2, 16)},
        {"norm": hooked(nn.BatchNorm2d(16))},
        {"norm": nn.BatchNorm2d(16, affine=False)},
        {"norm": nn.BatchNorm2d(16, track_running_stats=False)},
        {"dropout": nn.Hardtanh()},
        {"dropout": hooked(nn.Dropout2d())},
        {"classifier": nn.Conv2d(16, 3, 1, bias=False)},
        {"classifier": nn.Conv2d(16, 3, 3, padding=1)},
        {"classifier": hooked(nn.Conv2d(16, 3, 1))},
        {"fuse": nn.Conv2d(32, 16, 1, bias=False).half()},
        {"fuse": nn.Conv2d(32, 16, 1, bias=False).bfloat16()},
    ],
    ids=str,
)
@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
def test_all_mlp_calls_parts_that_it_cannot_compose(
    parts: dict[str, nn.Module],
    recorded: bool,
    runs: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "PIECE", 1)
    layers = all_mlp(**parts)
    assert runs("all_mlp", FEATURES, *layers, recorded=recorded) == "fused_at_each_level"


@pytest.mark.parametrize("place", [2, 3], ids=["norm", "dropout"])
@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
def test_all_mlp_is_fused_at_each_level_in_training(
    place: int, recorded: bool, runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PIECE", 1)
    layers = all_mlp()
    layers[place].train()
    assert runs("all_mlp", FEATURES, *layers, recorded=recorded) == "fused_at_each_level"


FUSIONS = [
    (nn.Conv2d(32, 16, 1, bias=False), True),
    (nn.Conv2d(32, 16, 1), False),
    (nn.Conv2d(32, 16, 3, padding=1, bias=False), False),
    (hooked(nn.Conv2d(32, 16, 1, bias=False)), False),
    (nn.Sequential(nn.Conv2d(32, 16, 1, bias=False)), False),
]


@pytest.mark.parametrize(("fuse", "is_split"), FUSIONS, ids=str)
@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
def test_only_a_plain_fusion_is_split_into_levels(
    fuse: nn.Module,
    is_split: bool,
    recorded: bool,
    runs: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "PIECE", 1)
    layers = all_mlp(fuse=fuse)
    ran = runs("all_mlp", FEATURES, *layers, recorded=recorded)
    assert (ran != "plain") == is_split
    layers[2].train()
    ran = runs("all_mlp", FEATURES, *layers, recorded=recorded)
    assert ran == ("fused_at_each_level" if is_split else "plain")
    levels = [torch.randn(1, 16, 4, 4), torch.randn(1, 16, 2, 2)]
    ran = runs("upsample_and_fuse", levels, fuse, recorded=recorded)
    assert ran == ("fused_before_upsampling" if is_split else "plain")


@pytest.mark.parametrize("name", ["projections.1", "fuse", "classifier"])
@pytest.mark.parametrize(
    "change", [hooked, lambda old: nn.Conv2d(old.in_channels, old.out_channels, 1, bias=False)]
)
def test_linear_head_classifies_first_where_all_its_layers_are_plain(
    name: str, change: Callable[[nn.Module], nn.Module], runs: Callable[..., str]
) -> None:
    head = LinearHead((4, 8), 3, 16)

    def ran() -> str:
        return runs("linear_head", FEATURES, head.projections, head.fuse, head.classifier)

    assert ran() == "classified_before_upsampling"
    parent, _, attribute = name.rpartition(".")
    setattr(head.get_submodule(parent), attribute, change(head.get_submodule(name)))
    assert ran() == "plain"


def test_mmsegmentations_head_is_fused_before_upsampling(runs: Callable[..., str]) -> None:
    head = MMSegHead((4, 8), 3, 16)
    levels = [project(x) for x, project in zip(FEATURES, head.projections, strict=True)]
    assert runs("upsample_and_fuse", levels, head.fuse) == "fused_before_upsampling"


# --- from cells to pixels

LOGITS = torch.randn(1, 3, 4, 4)
TARGET = torch.zeros(1, 8, 8, dtype=torch.int64)


@pytest.mark.usefixtures("on_gpu")
def test_upsample_sum_is_a_kernel_on_gpus_without_gradients(
    runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runs("upsample_sum", FEATURES) == "sum_by_triton"
    assert runs("upsample_sum", FEATURES[:1]) == "plain"
    assert runs("upsample_sum", FEATURES, recorded=True) == "plain"
    assert under_vmap(runs, "upsample_sum", FEATURES) == "plain"
    assert while_traced(runs, "upsample_sum", FEATURES) == "plain"
    monkeypatch.setattr(triton, "agrees_on", lambda device: False)
    assert runs("upsample_sum", FEATURES) == "plain"


def test_upsample_sum_is_plain_on_cpus(
    runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "agrees_on", lambda device: True)
    assert runs("upsample_sum", FEATURES) == "plain"


def labels_are_plain_where_nothing_is_interpolated(runs: Callable[..., str]) -> None:
    assert runs("upsample_argmax", LOGITS, (4, 4)) == "plain"
    assert runs("upsample_argmax", LOGITS[:0], (8, 8)) == "plain"
    assert under_vmap(runs, "upsample_argmax", LOGITS, (8, 8)) == "plain"
    assert while_traced(runs, "upsample_argmax", LOGITS, (8, 8)) == "plain"


@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
def test_labels_on_cpus(
    recorded: bool, runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "agrees_on", lambda device: True)
    for size in ((8, 4), (4, 8)):
        ran = runs("upsample_argmax", LOGITS, size, recorded=recorded)
        assert ran == "argmax_between_cells"
    labels_are_plain_where_nothing_is_interpolated(runs)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize(
    ("agrees", "expected"), [(True, "argmax_by_triton"), (False, "argmax_in_strips")]
)
def test_labels_on_gpus(
    agrees: bool,
    expected: str,
    recorded: bool,
    runs: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton, "agrees_on", lambda device: agrees)
    assert runs("upsample_argmax", LOGITS, (8, 8), recorded=recorded) == expected
    labels_are_plain_where_nothing_is_interpolated(runs)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_loss_is_computed_in_strips_of_finite_logits(
    value: float, runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "agrees_on", lambda device: True)
    infinite = LOGITS.clone()
    infinite[0, 1, 2, 3] = value
    for recorded in (False, True):
        for logits, expected in ((LOGITS, "cross_entropy_in_strips"), (infinite, "plain")):
            ran = runs("upsample_cross_entropy", logits, TARGET, recorded=recorded)
            assert ran == expected
    # Half precision does not overflow in the sum.
    large = torch.full((1, 3, 4, 4), 60_000.0, dtype=torch.float16)
    assert runs("upsample_cross_entropy", large, TARGET) == "cross_entropy_in_strips"
    # The values on other devices are not waited for.
    meta = on_meta(infinite)
    assert runs("upsample_cross_entropy", meta, on_meta(TARGET)) == "cross_entropy_in_strips"
    assert under_vmap(runs, "upsample_cross_entropy", LOGITS, TARGET) == "plain"
    assert while_traced(runs, "upsample_cross_entropy", LOGITS, TARGET) == "plain"


@pytest.mark.usefixtures("on_gpu")
def test_the_loss_is_a_kernel_on_gpus(
    runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"label_smoothing": 0.1, "over_all_pixels": True}
    for recorded in (False, True):
        ran = runs("upsample_cross_entropy", LOGITS, TARGET, recorded=recorded, **options)
        assert ran == "cross_entropy_by_triton"
    assert under_vmap(runs, "upsample_cross_entropy", LOGITS, TARGET) == "plain"
    assert while_traced(runs, "upsample_cross_entropy", LOGITS, TARGET) == "plain"
    monkeypatch.setattr(triton, "agrees_on", lambda device: False)
    assert runs("upsample_cross_entropy", LOGITS, TARGET) == "cross_entropy_in_strips"


# --- what conditions are made of


def test_graphs_are_recorded_by_tracers_and_compilers() -> None:
    x = torch.zeros(1)
    assert not is_traced(x)
    assert while_traced(is_traced, x)
    assert torch.compile(lambda x: x + is_traced(x), backend="eager", fullgraph=True)(x) == 1
    with FakeTensorMode() as mode:
        assert is_traced(mode.from_tensor(x))

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + is_traced(x)

    graph = torch.fx.symbolic_trace(Module())
    assert graph(x) == 1
    assert not is_transformed()
    assert not under_vmap(is_traced, x)


def test_transforms_are_torch_funcs_and_forward_mode() -> None:
    x = torch.zeros(1)
    assert not is_recorded(x)
    assert under_vmap(is_transformed)
    assert under_vmap(is_recorded, x)
    assert while_traced(is_recorded, x)
    with torch.autograd.forward_ad.dual_level():
        assert is_transformed()
        assert is_recorded(x)
    assert not is_transformed()


def test_pieces_are_for_cpus_where_nothing_is_recorded() -> None:
    x = torch.zeros(1)
    assert not in_pieces(x)
    with torch.no_grad():
        assert in_pieces(x)
        assert not in_pieces(x[:0])
        assert not in_pieces(on_meta(x))
        assert not under_vmap(in_pieces, x)
    with torch.inference_mode():
        assert in_pieces(x)


def test_autocast_is_turned_off_and_on_again() -> None:
    x = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    with without_autocast(on_meta(x)):  # which has none
        pass


class Another(nn.Linear):
    pass


class Subclass(Tensor):
    pass


def own_forward(layer: nn.Linear) -> nn.Module:
    layer.forward = layer.forward  # type: ignore[method-assign]
    return layer


def with_buffer(layer: nn.Linear) -> nn.Module:
    layer.register_buffer("scale", torch.ones(1).as_subclass(Subclass))
    return layer


def with_parameter(layer: nn.Linear) -> nn.Module:
    layer.bias = nn.Parameter(layer.bias.detach().as_subclass(Subclass))
    return layer


def registered(name: str) -> Callable[[nn.Linear], nn.Module]:
    def register(layer: nn.Linear) -> nn.Module:
        getattr(layer, name)(lambda *_: None)
        return layer

    return register


@pytest.mark.parametrize(
    "touch",
    [
        lambda layer: Another(4, 4),
        lambda layer: nn.Identity(),
        lambda layer: layer.forward,
        own_forward,
        with_buffer,
        with_parameter,
        registered("register_forward_hook"),
        registered("register_forward_pre_hook"),
        registered("register_full_backward_hook"),
        registered("register_full_backward_pre_hook"),
    ],
)
def test_a_module_that_something_changed_is_not_plain(touch: Callable[[Any], Any]) -> None:
    assert is_plain(nn.Linear(4, 4), nn.Linear)
    assert not is_plain(touch(nn.Linear(4, 4)), nn.Linear)


def test_plain_modules_have_one_of_the_classes() -> None:
    assert is_plain(nn.ReLU(), nn.GELU, nn.ReLU)
    assert is_plain(nn.BatchNorm2d(4), nn.BatchNorm2d)
    assert is_plain(nn.Linear(4, 4, bias=False), nn.Linear)
    assert not is_plain(nn.ReLU(), nn.GELU, nn.SiLU)
    with FakeTensorMode():
        assert is_plain(nn.Linear(4, 4), nn.Linear)


def test_with_global_hooks_nothing_is_plain() -> None:
    layer = nn.Linear(4, 4)
    with global_hook():
        assert not is_plain(layer, nn.Linear)
        assert hooked_module(layer) == "every module"
    assert is_plain(layer, nn.Linear)
    assert hooked_module(layer) is None


def test_the_first_hooked_module_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.ReLU()))
    assert hooked_module(model) is None
    hooked(model[1][1])
    assert hooked_module(model) == "'1.1'"
    registered("register_full_backward_pre_hook")(model)
    assert hooked_module(model) == "'Sequential'"


CONVOLUTION: dict[str, Any] = {"kernel_size": 3, "padding": 1, "groups": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 2},
        {"kernel_size": (3, 1), "padding": (1, 0)},
        {"padding": 0},
        {"padding": "same"},
        {"padding_mode": "reflect"},
        {"padding_mode": "circular"},
        {"stride": 2},
        {"dilation": 2},
        {"groups": 1},
        {"groups": 4},
    ],
    ids=str,
)
def test_another_convolution_is_not_the_plain_one(change: dict[str, Any]) -> None:
    assert is_plain_convolution(nn.Conv2d(4, 4, **CONVOLUTION), 3, groups=2)
    assert not is_plain_convolution(nn.Conv2d(4, 4, **{**CONVOLUTION, **change}), 3, groups=2)


def test_a_bias_counts_where_it_is_asked_for() -> None:
    for has, bias in itertools.product((True, False), (True, False, None)):
        conv = nn.Conv2d(4, 4, 1, bias=has)
        assert is_plain_convolution(conv, 1, bias=bias) == (bias in (None, has))
    assert not is_plain_convolution(hooked(nn.Conv2d(4, 4, 1)), 1)
    assert not is_plain_convolution(nn.ConvTranspose2d(4, 4, 1), 1)
    assert not is_plain_convolution(nn.Sequential(), 1)


# --- Triton


@pytest.mark.usefixtures("on_gpu")
def test_kernels_run_on_devices_on_which_they_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    assert triton.runs_on(x)
    assert not under_vmap(triton.runs_on, x)
    monkeypatch.setattr(triton, "agrees_on", lambda device: False)
    assert not triton.runs_on(x)


def test_kernels_do_not_run_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "agrees_on", lambda device: True)
    assert not triton.runs_on(torch.zeros(1))


def test_hooks_are_all_of_torchs() -> None:
    """A kind of hook that a later version of PyTorch adds must be looked at."""
    kinds = {name for name in nn.Module().__dict__ if name.endswith("_hooks")}
    of_state = {name for name in kinds if "state_dict" in name}
    assert kinds - of_state == set(conditions.HOOKS)
