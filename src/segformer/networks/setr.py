"""SETR (arXiv 2012.15840): a Vision Transformer under one of three convolutional decode heads (section 3.3).

The heads read maps of one stride from chosen blocks of the transformer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segformer.ops import upsample


def conv_norm_act(in_channels: int, channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU; the size stays."""
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(channels), act=nn.ReLU()))


def check_sizes(in_channels: Sequence[int], **sizes: int) -> None:
    """Refuse a head without a map, or without a class or channel."""
    if not in_channels:
        raise ValueError("in_channels is empty; the head needs at least one feature map")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class UpsamplingHead(nn.Module):
    """Of the deepest map: a LayerNorm, layers of convolution, BatchNorm and ReLU, each with an upsampling behind it, a 1×1 classifier.

    What the scales leave to the image's size, the model does: a 1×1 convolution and bilinear interpolation commute, so that the last
    upsampling before the classifier is the same behind it, and cheaper there.

    Args:
        in_channels: channels of the feature maps.
        num_classes: classes to tell apart.
        channels: the layers' width.
        scales: how many times each layer's result is enlarged; by default the paper's.

    Attributes:
        config: the arguments that build this head again, JSON-able.

    Raises:
        ValueError: on sizes below 1.
    """

    # Which blocks of 24 are read, and whether the class token goes through them.
    BLOCKS: ClassVar[tuple[int, ...]] = (10, 15, 20, 24)
    CLASS_TOKEN: ClassVar[bool] = True
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
        scales = self.SCALES if scales is None else scales
        check_sizes(
            in_channels, num_classes=num_classes, channels=channels, scales=min(scales, default=0)
        )
        self.config: dict[str, Any] = {
            "in_channels": list(in_channels),
            "num_classes": num_classes,
            "channels": channels,
            "scales": list(scales),
        }
        self.num_classes = num_classes
        self.scales = tuple(scales)
        self.norm = ChannelLayerNorm(in_channels[-1], eps=1e-6)
        widths = [in_channels[-1], *[channels] * len(scales)]
        self.layers = nn.ModuleList(
            conv_norm_act(before, after, self.KERNEL_SIZE) for before, after in pairwise(widths)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps (B, C_i, h, w) to logits (B, num_classes, s·h, s·w), where s is the product of the scales."""
        x = self.norm(features[-1])
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = layer(x)
            if scale > 1:
                x = upsample(x, [scale * side for side in x.shape[-2:]])
        logits: Tensor = self.classifier(x)
        return logits


class NaiveHead(UpsamplingHead):
    """The naive upsampling: two layers of 1×1 convolutions, then one bilinear interpolation to the pixels.

    mmsegmentation interpolates twice, four times before the classifier and four times behind it: ``scales=(4,)``. The rest is
    :class:`UpsamplingHead`'s.
    """

    KERNEL_SIZE = 1
    SCALES = (1,)


class PUPHead(UpsamplingHead):
    """Progressive upsampling: four layers of 3×3 convolutions, each followed by an enlargement of two, the last behind the classifier.

    The rest is :class:`UpsamplingHead`'s.
    """

    KERNEL_SIZE = 3
    SCALES = (2, 2, 2, 1)


class MLAHead(nn.Module):
    """Multi-level aggregation: levels summed from the deepest up, each then through convolutions to stride 4, and concatenated.

    Args:
        in_channels: channels of the feature maps, shallowest block first.
        num_classes: classes to tell apart.
        channels: the aggregation's width.
        level_channels: the width a level has in the concatenation, which is deepest first.
        kernel_size: of the classifier: 1 in mmsegmentation, 3 in the authors' own code.
        align_corners: how each level is enlarged: false in mmsegmentation, true in the authors' own code.

    Attributes:
        config: the arguments that build this head again, JSON-able.

    Raises:
        ValueError: on sizes below 1.
    """

    BLOCKS: ClassVar[tuple[int, ...]] = (6, 12, 18, 24)
    CLASS_TOKEN: ClassVar[bool] = False

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
        check_sizes(
            in_channels,
            num_classes=num_classes,
            channels=channels,
            level_channels=level_channels,
            kernel_size=kernel_size,
        )
        self.config: dict[str, Any] = {
            "in_channels": list(in_channels),
            "num_classes": num_classes,
            "channels": channels,
            "level_channels": level_channels,
            "kernel_size": kernel_size,
            "align_corners": align_corners,
        }
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
        self.classifier = nn.Conv2d(
            len(in_channels) * level_channels, num_classes, kernel_size, padding=kernel_size // 2
        )
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps (B, C_i, h, w), shallowest block first, to logits (B, num_classes, 4h, 4w)."""
        size = [4 * side for side in features[0].shape[-2:]]
        maps = [
            upsample(level(x), size, self.align_corners)
            for level, x in zip(self.levels, self.aggregation(features), strict=True)
        ]
        logits: Tensor = self.classifier(torch.cat(maps[::-1], 1))
        return logits


class Aggregation(nn.Module):
    """Feature maps, shallowest block first, to as many of one width, each the sum of its own and all deeper ones, then a 3×3 layer."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.channels = (channels,) * len(in_channels)
        self.norms = nn.ModuleList(ChannelLayerNorm(c, eps=1e-6) for c in in_channels)
        self.projections = nn.ModuleList(conv_norm_act(c, channels, 1) for c in in_channels)
        self.layers = nn.ModuleList(conv_norm_act(channels, channels, 3) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps = [
            project(norm(x))
            for x, norm, project in zip(features, self.norms, self.projections, strict=True)
        ]
        for level in reversed(range(len(maps) - 1)):
            maps[level] = maps[level] + maps[level + 1]
        return [layer(x) for layer, x in zip(self.layers, maps, strict=True)]


class FCNHead(nn.Module):
    """A 1×1 classifier of the last feature map, as an auxiliary loss reads it."""

    def __init__(self, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        check_sizes(in_channels, num_classes=num_classes)
        self.num_classes = num_classes
        self.classifier = nn.Conv2d(in_channels[-1], num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps (B, C_i, h_i, w_i) to logits of the chosen one's size."""
        logits: Tensor = self.classifier(features[-1])
        return logits
