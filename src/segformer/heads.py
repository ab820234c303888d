"""Decode heads: a list of feature maps, finest first, to stride-4 logits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer import workspace
from segformer.initialization import init_weights
from segformer.linear import linear
from segformer.upsample import upsample_into, upsample_sum
from segformer.workspace import in_pieces, is_plain


class AllMLPHead(nn.Module):
    """The all-MLP decoder (arXiv 2105.15203, section 3.2, equation 4).

    The paper projects each level to ``channels`` (W_i, b_i), upsamples all to the finest, concatenates, and fuses with a 1×1 convolution
    F before BatchNorm. Nothing non-linear stands between W_i and BatchNorm, and bilinear interpolation acts on each channel alone with
    weights that sum to one, so

        F · concat(up(W_i x_i + b_i)) = Σ up(F_i W_i x_i + F_i b_i),

    the same function of the same parameters with the fusion done at each level's own resolution: in training too, for a twelfth of
    the work in B2 to B5.

    Args:
        in_channels: channels of the feature maps, finest first.
        num_classes: classes to tell apart.
        channels: the decoder's width (256 in B0 and B1, 768 in B2 to B5).
        dropout: probability of dropping a whole channel before the classifier.
        norm_eps: BatchNorm epsilon.

    Attributes:
        config: the arguments that build this head again, JSON-able.

    Raises:
        ValueError: when ``num_classes`` or ``channels`` is below 1, or there are no feature maps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        *,
        dropout: float = 0.1,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if channels < 1:
            raise ValueError(f"the decoder's width must be at least 1 channel, got {channels}")
        if not in_channels:
            raise ValueError("in_channels is empty; the head needs at least one feature map")
        self.config: dict[str, Any] = {
            "in_channels": list(in_channels),
            "num_classes": num_classes,
            "channels": channels,
            "dropout": dropout,
            "norm_eps": norm_eps,
        }
        self.num_classes = num_classes
        self.projections: Any = nn.ModuleList(self.projection(c, channels, norm_eps) for c in in_channels)
        # The published order of the concatenation is coarsest first.
        self.fuse = nn.Conv2d(len(in_channels) * channels, channels, 1, bias=False)
        self.norm: Any = nn.BatchNorm2d(channels, eps=norm_eps)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier: Any = nn.Conv2d(channels, num_classes, 1)
        self._cache = Cache()
        self.apply(init_weights)

    @staticmethod
    def projection(in_channels: int, channels: int, norm_eps: float) -> nn.Module:
        """What takes one level to the decoder's width."""
        return nn.Linear(in_channels, channels)

    def project_and_fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Σ up(F_i W_i x_i + F_i b_i): (B, channels, H/4, W/4) in channels-last memory."""
        fuses = self.fuse.weight.flatten(1).chunk(len(self.projections), dim=1)[::-1]  # (D, D) each, finest first
        maps = [  # composed each time: a product of weights costs little beside the maps, and the gradient finds its way to each factor
            linear(x.permute(0, 2, 3, 1), fuse @ proj.weight, fuse @ proj.bias).permute(0, 3, 1, 2)
            for x, fuse, proj in zip(features, fuses, self.projections, strict=True)
        ]
        return upsample_sum(maps)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        if self._is_affine():
            return self._in_groups(features) if self._takes_groups(features[0]) else self._at_once(features)
        x = self.project_and_fuse(features)
        x = self.dropout(self.norm(x))  # before ReLU, with which it commutes: what ReLU and the classifier keep for the gradient is one map
        return self.classifier(F.relu(x, inplace=True))

    # In evaluation BatchNorm is an affine map, which composes with F_i W_i; and every channel between the features and the classifier is
    # by itself, so that a group of channels at a time goes all the way, in the same few temporaries.

    def _is_affine(self) -> bool:
        if self.training or self.norm.training or self.dropout.training:  # dropout by itself: Monte Carlo's
            return False
        if self.fuse.weight.dtype not in (torch.float32, torch.float64):
            return False
        if type(self).project_and_fuse is not AllMLPHead.project_and_fuse or not is_plain(
            self.dropout, nn.Dropout2d, nn.Dropout, nn.Identity
        ):
            return False
        linears = all(is_plain(projection, nn.Linear) for projection in self.projections)
        norm = is_plain(self.norm, nn.BatchNorm2d, nn.SyncBatchNorm) and self.norm.track_running_stats and self.norm.affine
        return linears and norm and is_plain(self.fuse, nn.Conv2d) and is_plain(self.classifier, nn.Conv2d)

    def _composed(self) -> tuple[list[Tensor], Tensor]:
        """BN(Σ up(F_i W_i x_i + F_i b_i)) as Σ up(A_i x_i) + c: the A_i (channels, C_i), finest first, and c (channels,)."""
        fuses = self.fuse.weight.flatten(1).chunk(len(self.projections), dim=1)[::-1]
        scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        weights = [scale[:, None] * (fuse @ proj.weight) for fuse, proj in zip(fuses, self.projections, strict=True)]
        biases = sum(fuse @ proj.bias for fuse, proj in zip(fuses, self.projections, strict=True))
        return weights, scale * (biases - self.norm.running_mean) + self.norm.bias

    def _takes_groups(self, finest: Tensor) -> bool:
        return in_pieces(finest) and not torch.is_autocast_enabled("cpu")

    def _at_once(self, features: Sequence[Tensor]) -> Tensor:
        with workspace.without_autocast(features[0]):
            weights, bias = self._composed()
        biases = [bias, *[None] * (len(features) - 1)]
        maps = [_projected(x, weight, b) for x, weight, b in zip(features, weights, biases, strict=True)]
        return self.classifier(F.relu(upsample_sum(maps), inplace=True))

    def _in_groups(self, features: Sequence[Tensor]) -> Tensor:
        weights, bias = self._cache.of(self._composed, list(self.state_dict(keep_vars=True).values()))
        batch, _, height, width = features[0].shape
        pixels = batch * height * width
        size = max(32, min(128, 2 * workspace.PIECE // (pixels * bias.element_size()) // 32 * 32))
        finest, *coarser = (x.permute(0, 2, 3, 1) for x in features)  # (B, h, w, C)
        fine = bias.new_empty(pixels * size)
        logits = self.classifier.bias.expand(batch, height, width, -1).contiguous()
        for start in range(0, len(bias), size):
            group = slice(start, start + size)
            x = linear(finest, weights[0][group], bias[group])
            up = fine[: x.numel()].view_as(x)
            for coarse, weight in zip(coarser, weights[1:], strict=True):
                upsample_into(up.permute(0, 3, 1, 2), linear(coarse, weight[group]).permute(0, 3, 1, 2))
                x += up
            logits += linear(x.relu_(), self.classifier.weight[:, group].flatten(1))
        return logits.permute(0, 3, 1, 2)


def _projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A projection of maps (B, C, h, w): in graphs a convolution, which engines go on from in their own memory order."""
    if torch.compiler.is_compiling():
        return F.conv2d(x, weight[..., None, None], bias)
    return linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class Cache:
    """One value, made again when a tensor that it was made of has changed."""

    def __init__(self) -> None:
        self.value: Any = None
        self.seen: list[tuple[int, int]] = []
        self.samples: list[Tensor] = []

    def of(self, make: Callable[[], Any], tensors: list[Tensor]) -> Any:
        # Versions count every change but those through .data, which moving averages use: a sample of the values finds these.
        samples = [tensor.flatten()[:: max(1, tensor.numel() // 64)] for tensor in tensors]
        seen = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if self.value is None or seen != self.seen or not all(map(torch.equal, samples, self.samples)):
            self.value, self.seen, self.samples = make(), seen, [sample.clone() for sample in samples]
        return self.value

    def __deepcopy__(self, memo: Any) -> Cache:
        return Cache()

    def __reduce__(self) -> tuple[type[Cache], tuple[()]]:
        return Cache, ()


class MMSegHead(AllMLPHead):
    """The all-MLP decoder as mmsegmentation builds it: each level through a 1×1 convolution, BatchNorm and ReLU before it is upsampled.

    The concatenation is finest first. Arguments and attributes are those of :class:`AllMLPHead`; a width of 256 is what its
    configurations use for all variants.
    """

    @staticmethod
    def projection(in_channels: int, channels: int, norm_eps: float) -> nn.Module:
        conv, norm = nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels, eps=norm_eps)
        return nn.Sequential(OrderedDict(conv=conv, norm=norm, act=nn.ReLU()))

    def project_and_fuse(self, features: Sequence[Tensor]) -> Tensor:
        """F · concat(up(ReLU(BN(W_i x_i)))) as Σ up(F_i ReLU(BN(W_i x_i)))."""
        fuses = self.fuse.weight.chunk(len(self.projections), dim=1)
        return upsample_sum([F.conv2d(project(x), fuse) for x, fuse, project in zip(features, fuses, self.projections, strict=True)])
