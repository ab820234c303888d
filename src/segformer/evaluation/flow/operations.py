"""What a module computes, in the words of the papers."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from timm.layers import Mlp, PatchEmbed
from timm.models import vision_transformer
from torch import nn

from segformer.networks.all_mlp import AllMLPHead, MMSegHead
from segformer.networks.convolutional import (
    ChannelNorm,
    ConvolutionalAttention,
    ConvolutionalMiT,
    KeysAndValues,
    LinearHead,
)
from segformer.networks.mit import (
    Block,
    EfficientSelfAttention,
    MiT,
    MixFFN,
    OverlapPatchEmbed,
    SpatialReduction,
    Stage,
    find_variant,
    variant_name,
)
from segformer.networks.setr import Aggregation, ChannelLayerNorm, MLAHead, NaiveHead, PUPHead
from segformer.networks.timm_backbone import TimmBackbone

NAMES: dict[type[nn.Module], str] = {
    ConvolutionalMiT: "convolutional Mix Transformer encoder",
    OverlapPatchEmbed: "overlapped patch merging",
    Block: "transformer block",
    vision_transformer.Block: "transformer block",
    PatchEmbed: "patch embedding",
    KeysAndValues: "keys and values",
    AllMLPHead: "all-MLP decoder",
    MMSegHead: "all-MLP decoder of mmsegmentation",
    LinearHead: "linear decoder",
    NaiveHead: "naive upsampling",
    PUPHead: "progressive upsampling",
    MLAHead: "multi-level aggregation",
    Aggregation: "each level plus all deeper ones",
    ChannelNorm: "norm over channels",
    ChannelLayerNorm: "LayerNorm",
    nn.BatchNorm2d: "BatchNorm",
    nn.SyncBatchNorm: "BatchNorm",
}


@singledispatch
def operation(module: Any) -> str:
    """Returns what a module computes; of a class without a name of its own, the class."""
    heads = getattr(module, "num_heads", None)
    if isinstance(heads, int):
        return f"attention, {_plural(heads, 'head')}"
    return NAMES.get(type(module), type(module).__name__)


@operation.register
def _(module: nn.Conv2d) -> str:
    is_depthwise = 1 < module.groups == module.in_channels
    text = f"{_sides(module.kernel_size)} {'depthwise ' if is_depthwise else ''}convolution"
    if module.groups > 1 and not is_depthwise:
        text += f", {module.groups} groups"
    return text + _steps(module.stride, module.dilation)


@operation.register
def _(module: nn.MaxPool2d) -> str:
    return f"{_sides(module.kernel_size)} max pooling{_steps(module.stride)}"


@operation.register
def _(module: nn.AvgPool2d) -> str:
    return f"{_sides(module.kernel_size)} average pooling{_steps(module.stride)}"


@operation.register
def _(module: nn.Linear) -> str:
    return f"linear {module.in_features} → {module.out_features}"


@operation.register
def _(module: nn.Sequential) -> str:
    kinds = {type(child) for child in module}
    if len(module) <= 4 and not any(list(child.children()) for child in module):
        return ", ".join(operation(child) for child in module)
    if len(kinds) == 1 and nn.Sequential not in kinds:
        return f"{len(module)} × {operation(module[0])}"
    return f"{len(module)} layers"


@operation.register
def _(module: Mlp) -> str:
    fc1, fc2 = module.fc1, module.fc2
    sizes = [getattr(fc1, "in_features", 0), getattr(fc1, "out_features", 0)]
    return f"MLP {' → '.join(map(str, [*sizes, getattr(fc2, 'out_features', 0)]))}"


@operation.register
def _(module: MiT) -> str:
    name = variant_name(find_variant(module.config.variant))
    return f"Mix Transformer encoder {name or ''}".rstrip()


@operation.register
def _(module: TimmBackbone) -> str:
    return f"{module.config.name} of timm"


@operation.register
def _(module: Stage) -> str:
    return f"stage of {_plural(len(module.blocks), 'block')}"


@operation.register
def _(module: SpatialReduction) -> str:
    return f"sequence reduction {_sides(module.conv.stride)}"


@operation.register
def _(module: EfficientSelfAttention) -> str:
    ratio = module.reduce.conv.stride if isinstance(module.reduce, SpatialReduction) else (1, 1)
    return _attention(module.heads, ratio)


@operation.register
def _(module: ConvolutionalAttention) -> str:
    kv: Any = module.kv
    return _attention(module.heads, kv.conv.stride)


@operation.register
def _(module: MixFFN) -> str:
    fc1, fc2 = module.fc1, module.fc2
    return f"Mix-FFN {fc1.in_features} → {fc1.out_features} → {fc2.out_features}"


def _attention(heads: int, ratio: tuple[int, ...]) -> str:
    reduced = f", keys reduced {_sides(ratio)}" if max(ratio) > 1 else ""
    return f"attention, {_plural(heads, 'head')}{reduced}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _sides(value: int | tuple[int, ...]) -> str:
    height, width = (value, value) if isinstance(value, int) else value
    return f"{height}×{width}"


def _steps(stride: int | tuple[int, ...], dilation: int | tuple[int, ...] = 1) -> str:
    """Returns the stride and the dilation of a convolution, if they are not 1."""
    text = ""
    for name, value in (("stride", stride), ("dilation", dilation)):
        height, width = (value, value) if isinstance(value, int) else value
        if (height, width) != (1, 1):
            text += f", {name} {height if height == width else _sides((height, width))}"
    return text
