"""Modules that are hooked, wrapped, replaced, pruned, parametrised, quantised, sharded, offloaded
or adapted.

The judge is the paper's computation, written here with each module called once and nothing else.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, randomized
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune

from segformer import SETR, ConvSegFormer, MLAHead, PUPHead, SegFormer, SegmentationModel
from segformer.networks.all_mlp import MMSegHead
from segformer.ops.modes import evaluating
from segformer.train.task import SegmentationTask

SIZE = (1, 3, 72, 104)
LEAVES = [
    "backbone.stages.0.embed.proj",
    "backbone.stages.0.blocks.0.attn.q",
    "backbone.stages.1.blocks.0.attn.reduce.conv",
    "backbone.stages.2.blocks.1.attn.kv",
    "backbone.stages.3.blocks.0.attn.proj",
    "backbone.stages.0.blocks.0.ffn.fc1",
    "backbone.stages.0.blocks.0.ffn.dwconv",
    "backbone.stages.1.blocks.0.ffn.fc2",
    "decode_head.projections.0",
    "decode_head.projections.3",
    "decode_head.fuse",
    "decode_head.classifier",
]


def literal(model: Any, images: Tensor) -> Tensor:
    """Stride-4 logits as figure 2 and equations 1 to 4 of the paper compute them."""

    def attention(attn: Any, x: Tensor) -> Tensor:
        q, kv = attn.q(x).flatten(1, 2), attn.kv(attn.reduce(x)).flatten(1, 2)
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, *kv.chunk(2, -1)))
        shares = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
        return attn.proj((shares @ v).transpose(1, 2).flatten(2).view(x.shape))

    def mix_ffn(ffn: Any, x: Tensor) -> Tensor:
        x = ffn.dwconv(ffn.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return ffn.fc2(ffn.act(x))

    features, x = [], images
    for stage in model.backbone.stages:
        x = stage.embed(x)
        for block in stage.blocks:
            x = x + block.drop_path(attention(block.attn, block.norm1(x)))
            x = x + block.drop_path(mix_ffn(block.ffn, block.norm2(x)))
        x = stage.norm(x).permute(0, 3, 1, 2)
        features.append(x)
    head = model.decode_head
    if isinstance(head, MMSegHead):
        levels = [project(x) for x, project in zip(features, head.projections, strict=True)]
    else:
        levels = [
            project(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for x, project in zip(features, head.projections, strict=True)
        ][::-1]
    size = features[0].shape[-2:]
    x = head.fuse(torch.cat([F.interpolate(x, size, mode="bilinear") for x in levels], 1))
    return head.classifier(head.dropout(F.relu(head.norm(x))))


def stride_4(model: Any, images: Tensor) -> Tensor:
    return model.decode_head(model.backbone(images))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> SegFormer:
    """A network that works in several strips and groups of channels without gradients."""
    monkeypatch.setattr("segformer.ops.memory.PIECE", 4096)
    return randomized(SegFormer(TINY, num_classes=5)).double()


def assert_literal(model: Any, training: bool = False) -> None:
    """Equal logits without gradients; equal logits and gradients with them."""
    images = torch.randn(SIZE, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout2d | nn.Dropout) or type(module).__name__ == "DropPath":
            module.eval()  # no random numbers
    with torch.no_grad():
        torch.testing.assert_close(
            stride_4(model, images), literal(model, images), rtol=0, atol=1e-10
        )
    results = []
    for forward in (stride_4, literal):
        model.zero_grad()
        logits = forward(model, images)
        logits.square().mean().backward()
        results.append(
            [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
        )
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-10)


def doubled_output(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, inputs, output: 2 * output)


def shifted_input(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def scaled_gradient(module: nn.Module) -> None:
    module.register_full_backward_hook(
        lambda module, d_inputs, d_outputs: (None if d_inputs[0] is None else 3 * d_inputs[0],)
    )


def own_forward(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda x: forward(x).tanh()


def pruned(module: nn.Module) -> None:
    prune.random_unstructured(module, "weight", 0.5)


def old_weight_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module)
    module.weight_g.data.mul_(1.5)


def weight_norm(module: nn.Module) -> None:
    parametrizations.weight_norm(module)
    module.parametrizations.weight.original0.data.mul_(1.5)


class Subclass(Tensor):
    """A tensor that intercepts operations, as DTensor and quantised tensors do."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (F.linear, F.conv2d, torch.conv2d):
            plain = [arg.as_subclass(Tensor) if isinstance(arg, Subclass) else arg for arg in args]
            return 2 * function(*plain, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs or {})


def tensor_subclass(module: nn.Module) -> None:
    module.weight = nn.Parameter(module.weight.detach().as_subclass(Subclass), requires_grad=False)


TOUCHES = (
    doubled_output,
    shifted_input,
    scaled_gradient,
    own_forward,
    pruned,
    old_weight_norm,
    weight_norm,
    tensor_subclass,
)


@pytest.mark.filterwarnings(
    "ignore:Full backward hook is firing:UserWarning"
)  # of the stem: images have no gradient
@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("touch", TOUCHES, ids=lambda touch: touch.__name__)
def test_a_touched_module_is_called(
    leaf: str, touch: Callable[[nn.Module], None], model: SegFormer
) -> None:
    touch(model.get_submodule(leaf))
    assert_literal(model)


REPLACED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "backbone.stages.0.blocks.0.ffn.dwconv": lambda old: nn.Conv2d(32, 32, 5, padding=2, groups=32),
    "backbone.stages.1.blocks.0.ffn.dwconv": lambda old: nn.Conv2d(
        64, 64, 3, padding=2, dilation=2, groups=64
    ),
    "backbone.stages.2.blocks.0.ffn.dwconv": lambda old: nn.Conv2d(
        96, 96, 3, padding=1, groups=96, padding_mode="reflect"
    ),
    "backbone.stages.3.blocks.0.ffn.dwconv": lambda old: nn.Sequential(old, nn.Tanh()),
    "backbone.stages.0.blocks.0.ffn.act": lambda old: nn.PReLU(),
    "backbone.stages.0.blocks.0.ffn.fc1": lambda old: nn.Sequential(old, nn.LayerNorm(32)),
    "decode_head.projections.1": lambda old: nn.Linear(16, 16, bias=False),
    "decode_head.projections.2": lambda old: nn.Sequential(old, nn.GELU()),
    "decode_head.fuse": lambda old: nn.Conv2d(64, 16, 3, padding=1, bias=False),
    "decode_head.norm": lambda old: nn.GroupNorm(2, 16),
    "decode_head.dropout": lambda old: nn.Sequential(
        nn.Hardtanh(0.0, 0.3)
    ),  # does not commute with ReLU
    "decode_head.classifier": lambda old: nn.Conv2d(16, 7, 1, bias=False),
    "decode_head": lambda old: nn.Sequential(old, nn.Tanh()),
}


@pytest.mark.parametrize("name", [name for name in REPLACED if name != "decode_head"])
def test_a_replaced_module_is_called(name: str, model: SegFormer) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(
        model.get_submodule(parent), attribute, REPLACED[name](model.get_submodule(name)).double()
    )
    assert_literal(model)


@pytest.mark.filterwarnings(
    "ignore:Full backward hook is firing:UserWarning"
)  # of the stem: images have no gradient
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize(
    "build",
    [
        lambda: SegFormer(TINY, 5),
        lambda: SegmentationModel(SegFormer(TINY).backbone, MMSegHead(TINY.dims, 5, 16)),
        lambda: ConvSegFormer(dims=8, heads=2, num_layers=1, num_classes=5),
        lambda: SETR("tiny", 5, PUPHead, channels=8, img_size=64),
        lambda: SETR("tiny", 5, MLAHead, channels=8, img_size=64),
    ],
    ids=["SegFormer", "MMSegHead", "convolutional", "PUP", "MLA"],
)
def test_every_module_is_called_once_and_its_hooks_see_what_it_returned(
    build: Callable[[], SegmentationModel], training: bool, recorded: bool
) -> None:
    model = build().train(training)
    calls: dict[str, int] = {}
    outputs: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, Tensor):
                outputs[name] = output, output.detach().clone()

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
        if training and recorded and not list(module.children()):
            module.register_full_backward_hook(lambda *_: None)
    with torch.set_grad_enabled(recorded):
        logits = model(torch.randn(2, 3, 64, 96))
    if recorded:
        logits.sum().backward()
    for name, module in model.named_modules():
        if not name.startswith("backbone.model"):  # timm's Transformer is timm's matter
            twice = name.endswith("drop_path")  # after attention and after Mix-FFN
            assert calls.get(name, 0) == (0 if isinstance(module, nn.ModuleList) else 1 + twice), (
                name
            )
    for name, (output, as_returned) in outputs.items():
        torch.testing.assert_close(
            output.detach(), as_returned, msg=f"{name} was written over", equal_nan=True
        )


@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
def test_global_hooks_see_every_module(recorded: bool, model: SegFormer) -> None:
    seen: set[nn.Module] = set()
    handle = torch_module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        with torch.set_grad_enabled(recorded):
            stride_4(model, torch.randn(SIZE, dtype=torch.double))
    finally:
        handle.remove()
    leaves = {module for module in model.modules() if not list(module.children())}
    assert {type(module).__name__ for module in leaves - seen} == set()


def test_adapters_on_all_linear_layers_learn_and_merge(model: SegFormer) -> None:
    """LoRA (arXiv 2106.09685) through peft."""
    peft = pytest.importorskip("peft", reason="needs the package peft")
    images = torch.randn(SIZE, dtype=torch.double)
    config = peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), config).double().eval()
    assert_literal(adapted.base_model.model)
    stride_4(adapted, images).square().mean().backward()
    adapters = {name: p.grad for name, p in adapted.named_parameters() if "lora_" in name}
    assert any("decode_head.projections" in name for name in adapters)
    assert [
        name for name, gradient in adapters.items() if gradient is None or not gradient.any()
    ] == []
    with torch.no_grad():
        before = stride_4(adapted, images)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(stride_4(merged, images), before, rtol=0, atol=1e-10)


def test_offloaded_weights_arrive_in_time(model: SegFormer) -> None:
    """accelerate keeps the weights elsewhere, and brings them while a module's forward runs."""
    accelerate = pytest.importorskip("accelerate", reason="needs the package accelerate")
    images = torch.randn(SIZE, dtype=torch.double)
    with torch.no_grad():
        expected = literal(model, images)
        offloaded = accelerate.cpu_offload(
            copy.deepcopy(model), execution_device=torch.device("cpu")
        )
        torch.testing.assert_close(stride_4(offloaded, images), expected, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view:UserWarning")
def test_layers_sharded_one_by_one_are_called(model: SegFormer) -> None:
    """FSDP2 gathers a layer's weights, which are DTensors, while its own forward runs."""
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        sharded, mesh = copy.deepcopy(model), init_device_mesh("cpu", (1,))
        for layer in [
            module
            for module in sharded.modules()
            if not list(module.children()) and list(module.parameters())
        ]:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        images = torch.randn(SIZE, dtype=torch.double)
        logits = [network(images) for network in (sharded, model)]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-10)
        for values in logits:
            values.square().mean().backward()
        for (name, p), q in zip(sharded.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p.grad.full_tensor(), q.grad, rtol=0, atol=1e-10, msg=name)
        assert torch.equal(sharded.predict(images), model.predict(images))
    finally:
        destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamically_quantised_layers_are_called() -> None:
    """As timm's own tests ask: int8 weights in every linear layer, the rest as it was."""
    model = randomized(SegFormer(TINY, num_classes=5))
    quantised = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(model), {nn.Linear}, torch.qint8
    )
    assert not any(type(module) is nn.Linear for module in quantised.modules())
    images = torch.randn(SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            stride_4(quantised, images), literal(quantised, images), rtol=1e-4, atol=1e-4
        )
        assert not torch.allclose(
            stride_4(quantised, images), stride_4(model, images), rtol=1e-4, atol=1e-4
        )


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_an_ensemble_under_vmap_is_each_of_its_models() -> None:
    models = [randomized(SegFormer(TINY, num_classes=5)).double() for _ in range(2)]
    images = torch.randn(SIZE, dtype=torch.double)
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def forward(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(base, (parameters, buffers), (images,))

    with torch.no_grad():
        stacked = torch.func.vmap(forward)(parameters, buffers)
        torch.testing.assert_close(
            stacked, torch.stack([model(images) for model in models]), rtol=0, atol=1e-10
        )


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_of_each_image_are_those_of_images_one_by_one() -> None:
    model = randomized(SegFormer(TINY, num_classes=3)).double().eval()
    images, target = torch.randn(2, 3, 64, 64).double(), torch.randint(0, 3, (2, 16, 16))
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (image[None],))
        return F.cross_entropy(logits[..., ::4, ::4], label[None])

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, images, target)
    for number in range(2):
        alone = torch.func.grad(loss)(parameters, images[number], target[number])
        for name, gradient in alone.items():
            torch.testing.assert_close(gradients[name][number], gradient, rtol=1e-9, atol=1e-12)


def negated(model: Any) -> Any:
    forward = model.forward
    model.forward = lambda images: -forward(images)
    return model


def hooked(model: Any) -> Any:
    model.register_forward_hook(lambda module, images, logits: -logits)
    return model


class Negated(SegFormer):
    def forward(self, images: Tensor) -> Tensor:
        return -super().forward(images)


def subclassed(model: Any) -> Any:
    other = Negated(TINY, num_classes=5)
    other.load_state_dict(model.state_dict())
    return other.eval()


@pytest.mark.parametrize("change", [negated, hooked, subclassed])
def test_predict_is_of_what_the_model_returns(change: Callable[[Any], Any]) -> None:
    model = change(randomized(SegFormer(TINY, num_classes=5)).eval())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits = model(images)
    assert torch.equal(model.predict(images), logits.argmax(1))
    assert model.predict(images, (20, 30)).shape == (2, 20, 30)
    labels, probabilities = model.predict_with_probabilities(images)
    assert torch.equal(labels, logits.argmax(1))
    torch.testing.assert_close(probabilities, logits.softmax(1))
    with pytest.raises(ValueError, match="has hooks or a forward of its own, which training does"):
        SegmentationTask(model)


def test_models_that_share_a_backbone_evaluate_it_until_both_are_done() -> None:
    one = SegFormer(TINY, num_classes=3)
    other = SegFormer(one.backbone, num_classes=2)
    other.decode_head.eval()
    with evaluating(other):
        with evaluating(one):
            assert not any(module.training for module in (*one.modules(), *other.modules()))
        assert one.training
        assert not any(module.training for module in other.modules())
    assert all(module.training for module in (other, *one.modules()))
    assert not any(module.training for module in other.decode_head.modules())


def test_labels_of_images_without_values_have_a_shape() -> None:
    model = SegFormer(TINY, num_classes=5).to("meta")
    assert model.predict(torch.empty(2, 3, 64, 96, device="meta")).shape == (2, 64, 96)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_labels_of_half_precision_are_the_most_probable(dtype: torch.dtype) -> None:
    model = randomized(SegFormer(TINY, num_classes=5)).to(dtype)
    labels, probabilities = model.predict_with_probabilities(torch.randn(2, 3, 96, 96, dtype=dtype))
    assert torch.equal(labels, probabilities.argmax(1))


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:FutureWarning"
)  # by torch.func.jvp itself
def test_forward_mode_differentiation_is_the_finite_difference(model: SegFormer) -> None:
    images, direction = (torch.randn(SIZE, dtype=torch.double) for _ in range(2))
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):  # the others have no such derivative
        _, tangent = torch.func.jvp(lambda x: stride_4(model, x), (images,), (direction,))
        step = 1e-6
        difference = (
            stride_4(model, images + step * direction) - stride_4(model, images - step * direction)
        ) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-7)


def test_checkpointed_parts_of_any_make_are_recomputed(model: SegFormer) -> None:
    """Hooks, and gradients recomputed in the backward pass."""
    doubled_output(model.get_submodule("backbone.stages.0.blocks.0.ffn.fc1"))
    model.set_grad_checkpointing()
    assert_literal(model)


def test_graphs_refuse_hooks(model: SegFormer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "is_cuda", True)
    model.decode_head.norm.register_forward_hook(lambda *_: None)
    with pytest.raises(
        ValueError, match=r"cannot replay hooks, and 'decode_head\.norm' has some; remove them"
    ):
        model.predict(torch.randn(SIZE, dtype=torch.double), cuda_graph=True)


def test_a_model_compiled_in_place_is_called_compiled(model: SegFormer) -> None:
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    images = torch.randn(SIZE, dtype=torch.double)
    expected = model.predict(images)
    model.compile(backend=counting)
    assert torch.equal(model.predict(images), expected)
    assert graphs
