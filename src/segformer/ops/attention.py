"""Softmax attention between maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from segformer.ops import memory
from segformer.ops.conditions import in_pieces, without_autocast
from segformer.ops.linear import products_by_convolution
from segformer.ops.registry import operator

TILE = 2**15  # queries × head dimension: smaller tiles are slower than PyTorch's own attention

torch.fx.wrap("rearrange")  # it reads shapes, which torch.fx does not have while it traces


@operator
def attention(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    """softmax(q kᵀ / √d) v, head by head (arXiv 2105.15203, section 3.1, equation 1).

    Args:
        q: queries (B, H, W, C).
        kv: keys, then values (B, h, w, 2C).
        heads: number of heads that the C channels are split into.

    Returns:
        (B, H, W, C)
    """
    height = q.shape[1]
    q = rearrange(q, "b h w (n d) -> b n (h w) d", n=heads)
    k, v = rearrange(kv, "b h w (two n d) -> two b n (h w) d", two=2, n=heads).unbind()
    x = F.scaled_dot_product_attention(q, k, v)
    return rearrange(x, "b n (h w) d -> b h w (n d)", h=height)


def tiles_win(q: Tensor, kv: Tensor, heads: int) -> bool:
    """on AMD processors with AVX-512, without gradients, for maps that fill a tile"""
    if not (in_pieces(q) and products_by_convolution(q)):
        return False
    return min(_most_queries(kv), q.shape[1] * q.shape[2]) >= _least_queries(q, heads)


@attention.implementation(when=tiles_win)
def in_tiles(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    """Tile by tile: a tile's scores stay in cache, and both products are 1×1 convolutions."""
    most = _most_queries(kv)
    together = min(heads, max(1, most // _least_queries(q, heads)))
    # PyTorch's own attention gains nothing from less precision on these processors either.
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q):
        return _in_tiles(q.to(dtype), kv.to(dtype), heads, together, most).to(q.dtype)


def _least_queries(q: Tensor, heads: int) -> int:
    return max(1, TILE * heads // q.shape[3])


def _most_queries(kv: Tensor) -> int:
    """How many queries of one head have scores that fit into a piece of memory."""
    return memory.PIECE // (4 * kv.shape[1] * kv.shape[2])


def _in_tiles(q: Tensor, kv: Tensor, heads: int, heads_per_tile: int, max_queries: int) -> Tensor:
    """Attention in tiles of some heads: of one head, ``max_queries`` queries fit into a tile."""
    depth, out = q.shape[3] // heads, torch.empty_like(q)
    for image, k_and_v, result in zip(q, kv, out, strict=True):
        queries = image.reshape(-1, heads, depth).split(heads_per_tile, 1)
        into = result.view(-1, heads, depth).split(heads_per_tile, 1)
        keys, values = rearrange(k_and_v, "h w (two n d) -> two n (h w) d", two=2, n=heads)
        kv_groups = keys.split(heads_per_tile), values.split(heads_per_tile)
        for group in zip(queries, *kv_groups, into, strict=True):
            _attend(*group, rows=max(1, max_queries // heads_per_tile))
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, rows: int) -> None:
    """Attention as two grouped 1×1 convolutions, with one group per head.

    The keys are the kernels of the first convolution, the values those of the second.

    Args:
        q: queries (N, heads, d).
        k: keys (heads, M, d).
        v: values (heads, M, d).
        out: the result (N, heads, d), written in place.
        rows: number of queries in a tile.
    """
    heads, keys, depth = k.shape
    k = k.reshape(heads * keys, depth, 1, 1) * depth**-0.5
    v = v.mT.reshape(heads * depth, keys, 1, 1)
    for tile, into in zip(q.split(rows), out.split(rows), strict=True):
        scores = _convolved(tile.flatten(1), k, heads).view(-1, heads, keys)
        torch.softmax(scores, -1, out=scores)
        into.copy_(_convolved(scores.flatten(1), v, heads).view_as(into))


def _convolved(x: Tensor, kernels: Tensor, groups: int) -> Tensor:
    """(T, groups · C) to (T, kernels)."""
    image = x[None, :, None].permute(0, 3, 1, 2)  # (1, C, T, 1), with channels-last strides
    return F.conv2d(image, kernels, groups=groups).permute(0, 2, 3, 1).reshape(len(x), -1)
