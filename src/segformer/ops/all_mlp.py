"""The all-MLP decoder, fused at each level's own resolution.

The paper projects each level to D channels (W_i, b_i), upsamples all to the finest, concatenates,
and fuses with a 1×1 convolution F before BatchNorm. Everything between W_i and BatchNorm is linear,
and bilinear interpolation acts on each channel separately with weights that sum to one, so that

    F · concat(up(W_i x_i + b_i)) = Σ up(F_i W_i x_i + F_i b_i),

the same function of the same parameters, in training too, for a twelfth of the work in B2 to B5. In
evaluation BatchNorm is affine, and composes with F_i W_i.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer.ops import memory
from segformer.ops.bilinear import upsample, upsample_into, upsample_sum
from segformer.ops.conditions import (
    in_pieces,
    is_plain,
    is_plain_convolution,
    is_traced,
    without_autocast,
)
from segformer.ops.linear import Layer, affine, linear
from segformer.ops.registry import operator

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout2d, nn.Dropout, nn.Identity)


@operator
def all_mlp(
    features: Sequence[Tensor],
    projections: Iterable[Layer],
    fuse: Layer,
    norm: Layer,
    dropout: Layer,
    classifier: Layer,
) -> Tensor:
    """The all-MLP decoder (arXiv 2105.15203, section 3.2, equation 4).

    Args:
        features: maps (B, C_i, H_i, W_i), finest first.
        projections: a linear layer for each level, from C_i to D channels.
        fuse: 1×1 convolution of the concatenated levels, coarsest first, to D channels.
        norm: BatchNorm.
        dropout: dropout of channels.
        classifier: 1×1 convolution to K classes.

    Returns:
        Logits (B, K, H_0, W_0).
    """
    size = features[0].shape[-2:]
    maps = [x.permute(0, 2, 3, 1) for x in features]  # (B, H_i, W_i, C_i)
    levels = [project(x).permute(0, 3, 1, 2) for x, project in zip(maps, projections, strict=True)]
    x = fuse(torch.cat([upsample(x, size) for x in levels[::-1]], 1))
    return classifier(dropout(F.relu(norm(x))))


def takes_groups(
    features: Sequence[Tensor],
    projections: Iterable[Any],
    fuse: Any,
    norm: Any,
    dropout: Any,
    classifier: Any,
) -> bool:
    """in evaluation on CPUs, without gradients or autocast, plain layers, fused map over 8 MiB"""
    return (
        in_pieces(features[0])
        and not torch.is_autocast_enabled("cpu")
        and is_affine_in_evaluation(projections, fuse, norm, dropout)
        and not (norm.training or dropout.training)
        and fuse.weight.dtype in (torch.float32, torch.float64)
        and is_plain_convolution(classifier, 1, bias=True)
        and _channel(features[0], fuse) * fuse.out_channels > memory.PIECE
    )


def is_affine_in_evaluation(projections: Iterable[Any], fuse: Any, norm: Any, dropout: Any) -> bool:
    """Whether all layers before the classifier are plain, and those before ReLU compose."""
    return (
        all(map(_is_linear, projections))
        and is_plain_convolution(fuse, 1, bias=False)
        and is_plain(norm, *NORMS)
        and all(x is not None for x in (norm.running_mean, norm.running_var, norm.weight))
        and is_plain(dropout, *DROPOUTS)
    )


@all_mlp.implementation(when=takes_groups)
def in_groups_of_channels(
    features: Sequence[Tensor],
    projections: Iterable[Any],
    fuse: Any,
    norm: Any,
    dropout: Any,
    classifier: Any,
) -> Tensor:
    """Composed with BatchNorm, some channels at a time from the features to the logits.

    Channels are independent until the classifier, so that all groups share the same temporaries.
    """
    (finest, *coarser), weights, bias = _composed(features, projections, fuse, norm)
    batch, height, width, _ = finest.shape
    size = max(32, 2 * memory.PIECE // _channel(features[0], fuse) // 32 * 32)
    fine = bias.new_empty(batch * height * width * min(size, len(bias)))
    logits: Tensor = classifier.bias.repeat(batch, height, width, 1)
    for start in range(0, len(bias), size):
        group = slice(start, start + size)
        x = affine(finest, weights[0][group], bias[group])
        up = fine[: x.numel()].view_as(x)
        for coarse, weight in zip(coarser, weights[1:], strict=True):
            upsample_into(up.permute(0, 3, 1, 2), affine(coarse, weight[group]).permute(0, 3, 1, 2))
            x += up
        logits += affine(x.relu_(), classifier.weight[:, group].flatten(1))
    return logits.permute(0, 3, 1, 2)


def _channel(finest: Tensor, fuse: nn.Conv2d) -> int:
    """Bytes of a channel of the fused map."""
    return finest[:, 0].numel() * fuse.weight.element_size()


def head_fuses_plainly(
    features: Sequence[Tensor], projections: Iterable[Any], fuse: Any, *layers: Any
) -> bool:
    """elsewhere, for a plain fusion"""
    return is_plain_convolution(fuse, 1, bias=False)


@all_mlp.implementation(when=head_fuses_plainly)
def fused_at_each_level(
    features: Sequence[Tensor],
    projections: Iterable[Any],
    fuse: Any,
    norm: Layer,
    dropout: Layer,
    classifier: Layer,
) -> Tensor:
    """Σ up(F_i (W_i x_i + b_i)); F_i W_i is composed where W_i is plain and that costs less."""
    fused = []
    used = 0
    for x, project in reversed(list(zip(features, projections, strict=True))):  # coarsest first
        x = x.permute(0, 2, 3, 1)
        composes = (
            _composes(x) and _is_linear(project) and project.weight.dtype == fuse.weight.dtype
        )
        if not composes:
            x = linear(x, project)
        width = project.out_features if composes else x.shape[-1]
        weight, bias = fuse.weight.flatten(1)[:, used : used + width], None  # F_i
        used += width
        if composes:
            with without_autocast(x):
                weight, bias = weight @ project.weight, weight @ project.bias
        fused.append(_projected(x, weight, bias))
    x = norm(upsample_sum(fused[::-1]))
    if is_plain(norm, *NORMS) and is_plain(dropout, *DROPOUTS):
        # Plain dropout commutes with ReLU, which may write over what dropout returned.
        return classifier(F.relu(dropout(x), inplace=True))
    return classifier(dropout(F.relu(x)))


def _composed(
    features: Sequence[Tensor], projections: Iterable[Any], fuse: Any, norm: Any
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """BN(Σ up(F_i (W_i x_i + b_i))) as Σ up(A_i y_i) + c.

    Returns the y_i (B, h, w, C), the A_i (D, C), finest level first, and c (D,).
    """
    maps = [x.permute(0, 2, 3, 1) for x in features]
    blocks, bias = normalized_blocks(projections, fuse, norm)
    levels = list(zip(maps, blocks, projections, strict=True))
    weights = [block @ project.weight if _composes(x) else block for x, block, project in levels]
    maps = [x if _composes(x) else affine(x, project.weight) for x, _, project in levels]
    return maps, weights, bias


def normalized_blocks(
    projections: Iterable[Any], fuse: Any, norm: Any
) -> tuple[list[Tensor], Tensor]:
    """BN(Σ F_i (y_i + b_i)) as Σ A_i y_i + c: the A_i (D, C), finest level first, and c (D,)."""
    projections = list(projections)
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    widths = [project.out_features for project in reversed(projections)]
    blocks = (scale[:, None] * fuse.weight.flatten(1)).split(widths, 1)[::-1]
    bias = norm.bias - scale * norm.running_mean
    bias = bias + sum(
        block @ project.bias for block, project in zip(blocks, projections, strict=True)
    )
    return list(blocks), bias


def _composes(x: Tensor) -> bool:
    """Whether F_i W_i costs less than applying both: over more pixels than W_i has inputs."""
    return is_traced(x) or x[..., 0].numel() > x.shape[-1]


def _is_linear(module: Any) -> bool:
    return is_plain(module, nn.Linear) and module.bias is not None


def _projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A projection of maps (B, h, w, C) to (B, D, h, w).

    In compiled graphs it is a convolution, whose memory format compilers choose themselves.
    """
    if torch.compiler.is_compiling():
        return F.conv2d(x.permute(0, 3, 1, 2), weight[..., None, None], bias)
    return affine(x, weight, bias).permute(0, 3, 1, 2)


@operator
def upsample_and_fuse(levels: Sequence[Tensor], fuse: Layer) -> Tensor:
    """F · concat(up(x_i)): levels (B, D_i, H_i, W_i), finest first, to (B, D, H_0, W_0).

    Args:
        levels: the maps.
        fuse: 1×1 convolution of the concatenated levels, finest first.
    """
    size = levels[0].shape[-2:]
    return fuse(torch.cat([upsample(x, size) for x in levels], 1))


def levels_fuse_plainly(levels: Sequence[Tensor], fuse: Any) -> bool:
    """for a plain fusion"""
    return is_plain_convolution(fuse, 1, bias=False)


@upsample_and_fuse.implementation(when=levels_fuse_plainly)
def fused_before_upsampling(levels: Sequence[Tensor], fuse: Any) -> Tensor:
    """Σ up(F_i x_i): each level fused at its own resolution."""
    blocks = fuse.weight.split([x.shape[1] for x in levels], 1)  # F_i
    return upsample_sum([F.conv2d(x, block) for x, block in zip(levels, blocks, strict=True)])


@operator
def linear_head(
    features: Sequence[Tensor], projections: Iterable[Layer], fuse: Layer, classifier: Layer
) -> Tensor:
    """C · F · concat(up(W_i x_i)), where up copies the nearest cell; logits (B, K, H_0, W_0).

    Args:
        features: maps (B, C_i, H_i, W_i), finest first.
        projections: a 1×1 convolution W_i for each level, to D channels.
        fuse: 1×1 convolution F of the concatenated levels, finest first.
        classifier: 1×1 convolution C to K classes.
    """
    size = features[0].shape[-2:]
    levels = [project(x) for x, project in zip(features, projections, strict=True)]
    return classifier(fuse(torch.cat([F.interpolate(x, size, mode="nearest") for x in levels], 1)))


def is_linear_throughout(
    features: Sequence[Tensor], projections: Iterable[Any], fuse: Any, classifier: Any
) -> bool:
    """for plain convolutions"""
    layers = (*projections, fuse, classifier)
    return all(is_plain_convolution(layer, 1, bias=True) for layer in layers)


@linear_head.implementation(when=is_linear_throughout)
def classified_before_upsampling(
    features: Sequence[Tensor], projections: Iterable[Any], fuse: Any, classifier: Any
) -> Tensor:
    """Σ up(C F_i W_i x_i) + const: each level goes to its classes at its own resolution.

    Copying a cell commutes with what is done to its channels, in training too.
    """
    classify, size = classifier.weight.flatten(1), features[0].shape[-2:]
    widths = [project.out_channels for project in projections]
    blocks = (classify @ fuse.weight.flatten(1)).split(widths, dim=1)  # C F_i: (K, D)
    total: Tensor = (classify @ fuse.bias + classifier.bias)[:, None, None]
    for x, block, project in zip(features, blocks, projections, strict=True):
        weight = block @ project.weight.flatten(1)
        x = F.conv2d(x, weight[:, :, None, None], block @ project.bias)
        total = total + F.interpolate(x, size, mode="nearest")
    return total
