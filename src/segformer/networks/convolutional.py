"""The convolutional Segformer of Phil Wang's segformer-pytorch: MiT's stages with other parts, under a head without non-linearities.

Where it differs from the paper's network: no biases in the attention, whose keys and values come straight from one strided convolution;
a LayerNorm of its own; a pointwise convolution more in the Mix-FFN, whose expansion is 8, 8, 4, 4 (the paper's table 6, not its weights);
no norm after a patch embedding or a stage; nearest-neighbour upsampling; neither BatchNorm, ReLU nor dropout in the head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segformer.networks.images import smallest_side
from segformer.networks.initialization import init_weights
from segformer.networks.mit import (
    Block,
    EfficientSelfAttention,
    MixFFN,
    OverlapPatchEmbed,
    Pyramid,
    Stage,
    patch,
)
from segformer.ops import linear_head

PerStage = int | Sequence[int]


class ChannelNorm(nn.Module):
    """(x - mean) / (standard deviation + eps) over the channels of (B, H, W, C); eps is outside the root."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) / (variance.sqrt() + self.eps) * self.weight + self.bias


class KeysAndValues(nn.Module):
    """Keys and values (B, ⌊H/R⌋, ⌊W/R⌋, 2C) of a map (B, H, W, C), by one convolution of stride R."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 2 * dim, ratio, ratio, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.permute(0, 3, 1, 2))
        return x.permute(0, 2, 3, 1)


class ConvolutionalAttention(EfficientSelfAttention):
    """Attention without biases, whose keys and values are one convolution. (B, H, W, C) → (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        nn.Module.__init__(self)
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.reduce = nn.Identity()
        self.kv = KeysAndValues(dim, ratio)  # type: ignore[assignment]
        self.proj = nn.Linear(dim, dim, bias=False)


class SeparableConv(nn.Sequential):
    """A depthwise 3×3 convolution, then a pointwise one."""

    def __init__(self, channels: int) -> None:
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        super().__init__(
            OrderedDict(depthwise=depthwise, pointwise=nn.Conv2d(channels, channels, 1))
        )
        self.out_channels = channels


class ConvolutionalFFN(MixFFN):
    """Mix-FFN with a separable convolution in the depthwise one's place. (B, H, W, C) → (B, H, W, C)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim, nn.GELU())
        self.dwconv = SeparableConv(hidden_dim)  # type: ignore[assignment]


class ConvolutionalMiT(Pyramid):
    """MiT's stages with the convolutional parts; arguments as for :class:`~segformer.ConvSegFormer`.

    Raises:
        ValueError: when an argument has neither one value nor one a stage, or heads do not divide the channels.
    """

    def __init__(
        self,
        dims: PerStage = (32, 64, 160, 256),
        heads: PerStage = (1, 2, 5, 8),
        ff_expansion: PerStage = (8, 8, 4, 4),
        reduction_ratio: PerStage = (8, 4, 2, 1),
        num_layers: PerStage = 2,
        in_channels: int = 3,
    ) -> None:
        given = {
            "dims": dims,
            "heads": heads,
            "ff_expansion": ff_expansion,
            "reduction_ratio": reduction_ratio,
            "num_layers": num_layers,
        }
        sizes = {name: one_a_stage(name, values) for name, values in given.items()}
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels}")
        stages, before = [], in_channels
        for s, (dim, head, expansion, ratio, depth) in enumerate(zip(*sizes.values(), strict=True)):
            if dim % head:
                raise ValueError(
                    f"a stage of {dim} channels cannot be split into {head} heads; choose a divisor of {dim}"
                )
            embed = OverlapPatchEmbed(before, dim, *patch(s), lambda dim: nn.Identity())
            blocks: list[nn.Module] = [
                Block(
                    dim,
                    ConvolutionalAttention(dim, head, ratio),
                    ConvolutionalFFN(dim, expansion * dim),
                    ChannelNorm,
                )
                for _ in range(depth)
            ]
            stages.append(Stage(embed, blocks, nn.Identity()))
            before = dim
        super().__init__(
            stages, in_channels, sizes["dims"], smallest_side(sizes["reduction_ratio"])
        )
        self.config: dict[str, Any] = {**sizes, "in_channels": in_channels}


def one_a_stage(name: str, values: PerStage) -> tuple[int, ...]:
    """Four values, or one repeated.

    Raises:
        ValueError: on another number of values, or one below 1.
    """
    four = (values,) * 4 if isinstance(values, int) else tuple(values)
    if len(four) != 4 or min(four) < 1:
        raise ValueError(f"{name}={values!r} is neither one positive integer nor four, one a stage")
    return four


class LinearHead(nn.Module):
    """The decoder: 1×1 convolutions and nearest-neighbour upsampling, nothing that is not linear.

    Each level is projected to ``channels`` and upsampled to the finest; the concatenation, finest
    first, is fused and classified by two more 1×1 convolutions.

    Args:
        in_channels: channels of the feature maps, finest first.
        num_classes: classes to tell apart.
        channels: the decoder's width.

    Attributes:
        config: the arguments that build this head again, JSON-able.

    Raises:
        ValueError: when ``num_classes`` or ``channels`` is below 1.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 256) -> None:
        super().__init__()
        if num_classes < 1 or channels < 1:
            raise ValueError(
                f"num_classes and the decoder's width must be at least 1, got {num_classes} and {channels}"
            )
        self.config: dict[str, Any] = {
            "in_channels": list(in_channels),
            "num_classes": num_classes,
            "channels": channels,
        }
        self.num_classes = num_classes
        self.projections: Any = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.fuse: Any = nn.Conv2d(
            len(in_channels) * channels, channels, 1
        )  # the concatenation is finest first
        self.classifier: Any = nn.Conv2d(channels, num_classes, 1)
        self.apply(init_weights)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        return linear_head(features, self.projections, self.fuse, self.classifier)
