"""The three decode heads of SETR (arXiv 2012.15840, section 3.3).

They read maps of one stride, from chosen blocks of a Vision Transformer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from segformer.networks.config import Config, check_at_least_1, check_features
from segformer.ops import upsample


def conv_norm_act(in_channels: int, channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU; height and width stay."""
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(channels), act=nn.ReLU()))


def classifier(channels: int, num_classes: int, kernel_size: int = 1) -> nn.Conv2d:
    """The convolution from features to logits."""
    conv = nn.Conv2d(channels, num_classes, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class UpsamplingHeadConfig(Config):
    """The arguments of :class:`UpsamplingHead`, which describes them.

    Raises:
        ValueError: as :class:`UpsamplingHead`.
    """

    in_channels: tuple[int, ...]
    num_classes: int
    channels: int
    scales: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("in_channels", "scales"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_features(self.in_channels)
        check_at_least_1(
            num_classes=self.num_classes,
            channels=self.channels,
            scales=min(self.scales, default=0),
        )


def indices_of(blocks: Sequence[int], depth: int) -> list[int]:
    """The blocks that a head reads, counted from 0, in a transformer of this depth.

    Args:
        blocks: the same, counted from 1, in a transformer of 24 blocks.
        depth: number of blocks.
    """
    return [block * depth // 24 - 1 for block in blocks]


class UpsamplingHead(nn.Module):
    """LayerNorm, then layers of convolution, BatchNorm, ReLU and upsampling, then a classifier.

    It reads the deepest map only. The model interpolates the logits to the size of the image. A 1×1
    convolution and bilinear interpolation commute, so that the paper's last upsampling, before the
    classifier, is the same after it, and cheaper there.

    Args:
        in_channels: number of channels of each feature map.
        num_classes: number of classes.
        channels: width of the layers.
        scales: how many times each layer's result is enlarged; by default the paper's.

    Attributes:
        config: the arguments that build this head again.

    Raises:
        ValueError: if there is no feature map, or a size is below 1.
    """

    BLOCKS: ClassVar[tuple[int, ...]] = (10, 15, 20, 24)  # that it reads, counted from 1, of 24
    CLASS_TOKEN: ClassVar[bool] = True  # whether the class token passes through the blocks
    KERNEL_SIZE: ClassVar[int]
    SCALES: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        *,
        scales: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        scales = self.SCALES if scales is None else tuple(scales)
        self.config = UpsamplingHeadConfig(tuple(in_channels), num_classes, channels, scales)
        self.num_classes = num_classes
        self.scales = scales
        self.norm = ChannelLayerNorm(in_channels[-1], eps=1e-6)
        widths = [in_channels[-1], *[channels] * len(scales)]
        self.layers = nn.ModuleList(
            conv_norm_act(before, after, self.KERNEL_SIZE) for before, after in pairwise(widths)
        )
        self.classifier = classifier(channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h, w) to logits (B, K, s·h, s·w); s is the product of the scales."""
        x: Tensor = self.norm(features[-1])
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = enlarge(layer(x), scale)
        x = self.classifier(x)
        return x


def enlarge(x: Tensor, scale: int, align_corners: bool = False) -> Tensor:
    """A map (B, C, h, w) to (B, C, scale·h, scale·w), bilinear."""
    if scale == 1:
        return x
    return upsample(x, [scale * side for side in x.shape[-2:]], align_corners)


class NaiveHead(UpsamplingHead):
    """Naive upsampling: two 1×1 layers, then one bilinear interpolation to the image's size.

    mmsegmentation interpolates twice, by four before the classifier and by four after it:
    ``scales=(4,)``. Arguments and attributes are those of :class:`UpsamplingHead`.
    """

    KERNEL_SIZE = 1
    SCALES = (1,)


class PUPHead(UpsamplingHead):
    """Progressive upsampling: four 3×3 layers, each enlarged twice; the last after the classifier.

    Arguments and attributes are those of :class:`UpsamplingHead`.
    """

    KERNEL_SIZE = 3
    SCALES = (2, 2, 2, 1)


@dataclass(frozen=True)
class MLAHeadConfig(Config):
    """The arguments of :class:`MLAHead`, which describes them.

    Raises:
        ValueError: as :class:`MLAHead`.
    """

    in_channels: tuple[int, ...]
    num_classes: int
    channels: int = 256
    level_channels: int = 128
    kernel_size: int = 1
    align_corners: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_channels", tuple(self.in_channels))
        check_features(self.in_channels)
        names = ("num_classes", "channels", "level_channels", "kernel_size")
        check_at_least_1(**{name: self[name] for name in names})


class MLAHead(nn.Module):
    """Multi-level aggregation.

    Each level is added to the sum of the deeper ones. Convolutions take each sum, upsampling
    enlarges it to stride 4, and a classifier reads the concatenation, deepest first.

    Args:
        in_channels: number of channels of each feature map, shallowest block first.
        num_classes: number of classes.
        channels: width of the aggregation.
        level_channels: width of each level in the concatenation.
        kernel_size: kernel size of the classifier: 1 in mmsegmentation, 3 in the authors' own code.
        align_corners: how each level is enlarged: false in mmsegmentation, true in the authors' own
            code.

    Attributes:
        config: the arguments that build this head again.

    Raises:
        ValueError: if there is no feature map, or a size is below 1.
    """

    BLOCKS: ClassVar[tuple[int, ...]] = (6, 12, 18, 24)  # that it reads, counted from 1, of 24
    CLASS_TOKEN: ClassVar[bool] = False  # whether the class token passes through the blocks

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        *,
        level_channels: int = 128,
        kernel_size: int = 1,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.config = MLAHeadConfig(
            tuple(in_channels), num_classes, channels, level_channels, kernel_size, align_corners
        )
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.aggregation = Aggregation(in_channels, channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                conv_norm_act(channels, level_channels, 3),
                conv_norm_act(level_channels, level_channels, 3),
            )
            for _ in in_channels
        )
        self.classifier = classifier(len(in_channels) * level_channels, num_classes, kernel_size)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h, w), shallowest block first, to logits (B, num_classes, 4h, 4w)."""
        maps = self.aggregation(features)
        maps = [level(x) for level, x in zip(self.levels, maps, strict=True)]
        maps = [enlarge(x, 4, self.align_corners) for x in maps]
        x: Tensor = self.classifier(torch.cat(maps[::-1], 1))
        return x


class Aggregation(nn.Module):
    """Each level plus the sum of all deeper ones, projected to one width, then a 3×3 layer."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.channels = (channels,) * len(in_channels)
        self.norms = nn.ModuleList(ChannelLayerNorm(c, eps=1e-6) for c in in_channels)
        self.projections = nn.ModuleList(conv_norm_act(c, channels, 1) for c in in_channels)
        self.layers = nn.ModuleList(conv_norm_act(channels, channels, 3) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, h, w), shallowest block first, to as many (B, channels, h, w)."""
        maps = [norm(x) for norm, x in zip(self.norms, features, strict=True)]
        maps = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        for level in reversed(range(len(maps) - 1)):
            maps[level] = maps[level] + maps[level + 1]
        return [layer(x) for layer, x in zip(self.layers, maps, strict=True)]


class FCNHead(nn.Module):
    """A 1×1 classifier of the last feature map, for an auxiliary loss."""

    def __init__(self, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        check_features(tuple(in_channels))
        check_at_least_1(num_classes=num_classes)
        self.num_classes = num_classes
        self.classifier = nn.Conv2d(in_channels[-1], num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) to logits (B, num_classes, h, w) of the last one's size."""
        x: Tensor = self.classifier(features[-1])
        return x
