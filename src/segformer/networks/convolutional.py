"""The convolutional Segformer of Phil Wang's segformer-pytorch: MiT's stages with other parts.

It differs from the paper's network as follows. The attention has no biases, and its keys and values
come from one strided convolution. LayerNorm adds epsilon outside the root. The Mix-FFN has one more
pointwise convolution, and its expansion is 8, 8, 4, 4 (the paper's table 6, not its weights). No
norm follows a patch embedding or a stage. The head upsamples by nearest neighbour, and has no
BatchNorm, ReLU or dropout.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segformer.networks.config import Config, check_at_least_1, check_features, check_heads
from segformer.networks.images import smallest_side
from segformer.networks.initialization import init_weights
from segformer.networks.mit import (
    Block,
    EfficientSelfAttention,
    MixFFN,
    OverlapPatchEmbed,
    Pyramid,
    Stage,
    kernel_and_stride,
)
from segformer.ops import linear_head

PerStage = int | Sequence[int]


class ChannelNorm(nn.Module):
    """(x - mean) / (standard deviation + eps) over the channels of a map (B, H, W, C)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) / (variance.sqrt() + self.eps) * self.weight + self.bias


class KeysAndValues(nn.Module):
    """Keys and values of a map by one R×R convolution of stride R.

    (B, H, W, C) → (B, ⌊H/R⌋, ⌊W/R⌋, 2C)
    """

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 2 * dim, ratio, ratio, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.permute(0, 3, 1, 2))
        return x.permute(0, 2, 3, 1)


class ConvolutionalAttention(EfficientSelfAttention):
    """Attention without biases, whose keys and values are one convolution.

    (B, H, W, C) → (B, H, W, C)
    """

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
        pointwise = nn.Conv2d(channels, channels, 1)
        super().__init__(OrderedDict(depthwise=depthwise, pointwise=pointwise))
        self.out_channels = channels


class ConvolutionalFFN(MixFFN):
    """Mix-FFN with a separable convolution instead of the depthwise one.

    (B, H, W, C) → (B, H, W, C)
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim, nn.GELU())
        self.dwconv = SeparableConv(hidden_dim)  # type: ignore[assignment]


@dataclass(frozen=True)
class ConvolutionalMiTConfig(Config):
    """The arguments of :class:`ConvolutionalMiT`, with one value a stage.

    Raises:
        ValueError: as :class:`ConvolutionalMiT`.
    """

    dims: PerStage = (32, 64, 160, 256)
    heads: PerStage = (1, 2, 5, 8)
    ff_expansion: PerStage = (8, 8, 4, 4)
    reduction_ratio: PerStage = (8, 4, 2, 1)
    num_layers: PerStage = 2
    in_channels: int = 3

    def __post_init__(self) -> None:
        for name in ("dims", "heads", "ff_expansion", "reduction_ratio", "num_layers"):
            object.__setattr__(self, name, one_a_stage(name, getattr(self, name)))
        check_at_least_1(in_channels=self.in_channels)
        check_heads(self.dims, self.heads)  # type: ignore[arg-type]


def one_a_stage(name: str, values: PerStage) -> tuple[int, ...]:
    """Returns four values, or one value four times.

    Raises:
        ValueError: if there are neither one value nor four, or a value is below 1.
    """
    four = (values,) * 4 if isinstance(values, int) else tuple(values)
    if len(four) != 4 or min(four) < 1:
        raise ValueError(f"{name}={values!r} is neither one positive integer nor four, one a stage")
    return four


class ConvolutionalMiT(Pyramid):
    """MiT's four stages with the convolutional parts.

    Each argument but ``in_channels`` is one value for all stages, or four values, one per stage.

    Args:
        dims: number of channels.
        heads: number of attention heads.
        ff_expansion: hidden channels of the Mix-FFN, divided by the number of channels.
        reduction_ratio: factor by which keys and values are coarser than queries, along each side.
        num_layers: number of blocks.
        in_channels: number of channels of the images.

    Attributes:
        channels: number of channels of each feature map, finest first.
        config: the arguments that build this encoder again.

    Raises:
        ValueError: if an argument has neither one value nor four, a value is below 1, or heads do
            not divide the channels.
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
        config = ConvolutionalMiTConfig(
            dims, heads, ff_expansion, reduction_ratio, num_layers, in_channels
        )
        sizes: list[tuple[int, ...]] = list(config.values())[:-1]
        stages, channels = [], in_channels
        for s, (dim, head, expansion, ratio, depth) in enumerate(zip(*sizes, strict=True)):
            embed = OverlapPatchEmbed(
                channels, dim, *kernel_and_stride(s), lambda dim: nn.Identity()
            )
            blocks = [block(dim, head, ratio, expansion) for _ in range(depth)]
            stages.append(Stage(embed, blocks, nn.Identity()))
            channels = dim
        dims, _, _, ratios, _ = sizes
        super().__init__(stages, in_channels, tuple(dims), smallest_side(ratios))
        self.config = config


def block(dim: int, heads: int, ratio: int, expansion: int) -> nn.Module:
    """One transformer block of the convolutional parts."""
    attn = ConvolutionalAttention(dim, heads, ratio)
    ffn = ConvolutionalFFN(dim, expansion * dim)
    return Block(dim, attn, ffn, ChannelNorm)


@dataclass(frozen=True)
class LinearHeadConfig(Config):
    """The arguments of :class:`LinearHead`, which describes them.

    Raises:
        ValueError: as :class:`LinearHead`.
    """

    in_channels: tuple[int, ...]
    num_classes: int
    channels: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_channels", tuple(self.in_channels))
        check_features(self.in_channels)
        check_at_least_1(num_classes=self.num_classes, channels=self.channels)


class LinearHead(nn.Module):
    """A decoder of 1×1 convolutions and nearest-neighbour upsampling, without non-linearities.

    It projects each level to ``channels``, upsamples all to the finest, and applies two more 1×1
    convolutions to the concatenation, finest first: one that fuses, one that classifies.

    Args:
        in_channels: number of channels of each feature map, finest first.
        num_classes: number of classes K.
        channels: width of the decoder.

    Attributes:
        config: the arguments that build this head again.

    Raises:
        ValueError: if ``num_classes`` or ``channels`` is below 1, or there are no feature maps.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.config = LinearHeadConfig(tuple(in_channels), num_classes, channels)
        self.num_classes = num_classes
        self.projections = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.fuse = nn.Conv2d(len(in_channels) * channels, channels, 1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.apply(init_weights)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        return linear_head(features, self.projections, self.fuse, self.classifier)
