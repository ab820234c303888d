"""Softmax attention between maps, by way of the faster of a CPU's two libraries for matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from segformer import workspace
from segformer.linear import by_convolution
from segformer.workspace import in_pieces

TILE = 2**15  # queries × head dimension: smaller tiles are slower than PyTorch's own attention

torch.fx.wrap("rearrange")  # it looks into shapes, which torch.fx does not have while it traces


def attention(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    """softmax(q kᵀ / √d) v, head by head (arXiv 2105.15203, section 3.1, equation 1).

    Args:
        q: queries (B, H, W, C).
        kv: keys, then values (B, h, w, 2C).
        heads: how many heads the C channels are split into.

    Returns:
        (B, H, W, C)
    """
    if in_pieces(q) and by_convolution(q):
        least, most = max(1, TILE * heads // q.shape[3]), workspace.PIECE // (4 * kv.shape[1] * kv.shape[2])
        if min(most, q.shape[1] * q.shape[2]) >= least:
            dtype = torch.promote_types(q.dtype, torch.float32)  # PyTorch's own gains nothing from less precision either
            with workspace.without_autocast(q):
                return _in_tiles(q.to(dtype), kv.to(dtype), heads, min(heads, most // least), most).to(q.dtype)
    height = q.shape[1]
    q = rearrange(q, "b h w (n d) -> b n (h w) d", n=heads)
    k, v = rearrange(kv, "b h w (two n d) -> two b n (h w) d", two=2, n=heads).unbind()
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b n (h w) d -> b h w (n d)", h=height)


def _in_tiles(q: Tensor, kv: Tensor, heads: int, together: int, scores: int) -> Tensor:
    """The same, tile by tile: some heads together, and so many queries that a tile holds the scores of this many queries of one head."""
    depth, out = q.shape[3] // heads, torch.empty_like(q)
    for image, k_and_v, result in zip(q, kv, out, strict=True):
        queries, into = image.reshape(-1, heads, depth).split(together, 1), result.view(-1, heads, depth).split(together, 1)
        ks, vs = (x.split(together) for x in rearrange(k_and_v, "h w (two n d) -> two n (h w) d", two=2, n=heads))
        for group in zip(queries, ks, vs, into, strict=True):
            _heads(*group, rows=scores // together)
    return out


def _heads(q: Tensor, k: Tensor, v: Tensor, out: Tensor, rows: int) -> None:
    """Attention of n heads, as two 1×1 convolutions, a head a group, whose kernels are the keys and the values.

    Queries and output (N, n, d), keys and values (n, M, d); so many rows of queries at a time.
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
    image = x[None, :, None].permute(0, 3, 1, 2)  # (1, C, T, 1) with the strides of channels-last memory
    return F.conv2d(image, kernels, groups=groups).permute(0, 2, 3, 1).reshape(len(x), -1)
