"""MiT, the hierarchical Mix Transformer encoder of SegFormer (arXiv 2105.15203, section 3.1).

Inside a stage the map stays (B, H, W, C): it carries its own shape, and permuted to (B, C, H, W) it is channels-last memory, so
convolutions, reductions and the pyramid share it without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segformer import workspace
from segformer.attention import attention
from segformer.initialization import init_weights
from segformer.linear import linear
from segformer.workspace import in_pieces, is_plain, is_plain_convolution

torch.fx.wrap("check_images")  # it looks into shapes, which torch.fx does not have while it traces

Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Variant:
    """One size of SegFormer: its widths, depths and attention heads a stage (paper, table 6).

    The MLP ratio is 4 in every stage, as in the released weights; the paper's table prints 8, 8, 4, 4.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    decoder_channels: int
    heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for name in ("dims", "depths", "heads", "sr_ratios"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != len(self.dims):
                raise ValueError(f"{name}={getattr(self, name)} does not have one value a stage; dims={self.dims} has {len(self.dims)}")
        for dim, heads in zip(self.dims, self.heads, strict=True):
            if dim % heads:
                raise ValueError(f"a stage of {dim} channels cannot be split into {heads} heads; choose a divisor of {dim}")


VARIANTS = {
    "b0": Variant((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": Variant((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": Variant((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": Variant((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": Variant((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": Variant((64, 128, 320, 512), (3, 6, 40, 3), 768),
}


def find_variant(variant: str | Variant | Mapping[str, Any]) -> Variant:
    """The :class:`Variant` of a name or of its fields, or the variant itself.

    Raises:
        ValueError: when no variant has this name.
    """
    if isinstance(variant, Variant):
        return variant
    if isinstance(variant, Mapping):
        return Variant(**variant)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[variant]


def variant_name(variant: Variant) -> str | None:
    """The name of the encoder in :data:`VARIANTS` with these sizes, under a decoder of any width; None where there is none."""
    return next((name for name, v in VARIANTS.items() if replace(variant, decoder_channels=v.decoder_channels) == v), None)


class OverlapPatchEmbed(nn.Module):
    """Overlapped patch merging (section 3.1): a strided convolution whose patches overlap, then a norm.

    (B, C_in, H, W) → (B, ⌈H/stride⌉, ⌈W/stride⌉, C_out).
    """

    def __init__(self, in_channels: int, dim: int, kernel_size: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SpatialReduction(nn.Module):
    """The sequence reduction before keys and values (section 3.1, equation 2): an R×R convolution of stride R, then a norm.

    (B, H, W, C) → (B, ⌊H/R⌋, ⌊W/R⌋, C).
    """

    def __init__(self, dim: int, ratio: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, ratio, ratio)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class EfficientSelfAttention(nn.Module):
    """Self-attention whose keys and values come from a map ``sr_ratio`` times coarser a side (section 3.1, equations 1 and 2).

    (B, H, W, C) → (B, H, W, C).
    """

    def __init__(self, dim: int, heads: int, sr_ratio: int, norm: Norm) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.reduce = SpatialReduction(dim, sr_ratio, norm) if sr_ratio > 1 else nn.Identity()
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, kv = linear(x, self.q), linear(self.reduce(x), self.kv)
        return linear(attention(q, kv, self.heads), self.proj)


class MixFFN(nn.Module):
    """Mix-FFN (section 3.1, equation 3): the zero-padded depthwise convolution tells positions, so no position embedding is needed.

    (B, H, W, C) → (B, H, W, C).
    """

    def __init__(self, dim: int, hidden_dim: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.act = act
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if self._fits_strips(x) and (rows := self._rows_of_a_strip(x)) < x.shape[1]:
            return self._in_strips(x, rows)
        x = linear(x, self.fc1)
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return linear(self.act(x), self.fc2)

    def _fits_strips(self, x: Tensor) -> bool:
        """Whether strips give the same: each module is plain, and a row needs its neighbours alone."""
        return (
            in_pieces(x)
            and is_plain(self.fc1, nn.Linear)
            and is_plain_convolution(self.dwconv, 3, groups=self.dwconv.out_channels)
            and is_plain(self.act, nn.GELU, nn.ReLU, nn.SiLU)
            and is_plain(self.fc2, nn.Linear)
        )

    def _rows_of_a_strip(self, x: Tensor) -> int:
        row = x.shape[2] * self.dwconv.out_channels * x.element_size()
        return max(1, workspace.PIECE // 2 // row)

    def _in_strips(self, x: Tensor, rows: int) -> Tensor:
        """The same, so many rows at a time: the hidden map, four times as wide as ``x``, never lies in memory whole."""
        height, out = x.shape[1], torch.empty_like(x)
        for image, result in zip(x.split(1), out.split(1), strict=True):
            for start in range(0, height, rows):
                stop = min(start + rows, height)
                above, below = max(start - 1, 0), min(stop + 1, height)  # the convolution's neighbours
                hidden = linear(image[:, above:below], self.fc1)
                hidden = self.dwconv(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, start - above : stop - above]
                result[:, start:stop] = linear(self.act(hidden), self.fc2)
        return out


class Block(nn.Module):
    """One transformer block, norms first: attention, then Mix-FFN, each a residual that may be dropped (stochastic depth).

    (B, H, W, C) → (B, H, W, C).
    """

    def __init__(self, dim: int, attn: nn.Module, ffn: nn.Module, norm: Norm, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = attn
        self.norm2 = norm(dim)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class Stage(nn.Module):
    """One level of the pyramid: patch embedding, blocks, norm. (B, C_in, H, W) → (B, C_out, ⌈H/s⌉, ⌈W/s⌉), channels-last memory."""

    def __init__(self, embed: nn.Module, blocks: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            recompute = self.grad_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.norm(x).permute(0, 3, 1, 2)


def refuse_scripting(self: nn.Module) -> None:
    """What torch.jit.script calls before it compiles a module.

    Raises:
        NotImplementedError: always, since TorchScript's compiler cannot read the code of these networks.
    """
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(self).__name__}; PyTorch has deprecated it: use torch.export.export, or torch.jit.trace"
    )


class Pyramid(nn.Module):
    """Stages one behind the other, each map coarser than the one before: what every encoder of this kind is, whatever its parts.

    Args:
        stages: (B, C, H, W) to a coarser map each.
        in_channels: channels of the images.
        channels: channels of the feature maps, finest first.
        min_size: pixels a side below which a stage would have nothing to work on.
    """

    STEM = "stages.0.embed.proj.weight"  # the first convolution, which knows the images' channels

    def __init__(self, stages: Sequence[nn.Module], in_channels: int, channels: tuple[int, ...], min_size: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.in_channels = in_channels
        self.channels = channels
        self.min_size = min_size
        self.apply(init_weights)

    __prepare_scriptable__ = refuse_scripting

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations: less memory, about a third more time."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to four maps (B, C_i, ⌈H/s⌉, ⌈W/s⌉), s = 4, 8, 16, 32, finest first.

        Raises:
            ValueError: when the images are not (B, ``in_channels``, H ≥ 32, W ≥ 32).
        """
        return self.pyramid(images, len(self.stages))

    def pyramid(self, images: Tensor, depth: int) -> list[Tensor]:
        """The maps of the first ``depth`` stages."""
        check_images(images, self.in_channels, self.min_size)
        workspace.reuse_blocks()
        x = images.contiguous(memory_format=torch.channels_last)
        features = []
        for stage in self.stages[:depth]:
            x = stage(x)
            features.append(x)
        return features


class MiT(Pyramid):
    """The Mix Transformer encoder (section 3.1): four stages, each a map half as fine as the one before.

    Args:
        variant: ``"b0"`` … ``"b5"``, or a :class:`Variant` of your own (or its fields).
        in_channels: channels of the images.
        drop_path: the last block's stochastic-depth rate; it rises linearly from 0 at the first.
        norm_eps: LayerNorm epsilon in the blocks and at the end of a stage (1e-6 in the released weights).
        embed_norm_eps: LayerNorm epsilon after a patch embedding and after the sequence reduction (1e-5 in the released weights).
        act: the activation in Mix-FFN: ``"gelu"`` (exact, as released) or ``"gelu_tanh"``.

    Attributes:
        channels: channels of the feature maps, finest first.
        config: the arguments that build this encoder again, JSON-able.

    Raises:
        ValueError: on an unknown variant or activation, fewer than one channel, or a ``drop_path`` outside [0, 1).
    """

    ACTIVATIONS: ClassVar[dict[str, Callable[[], nn.Module]]] = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh")}

    def __init__(
        self,
        variant: str | Variant | Mapping[str, Any] = "b0",
        *,
        in_channels: int = 3,
        drop_path: float = 0.1,
        norm_eps: float = 1e-6,
        embed_norm_eps: float = 1e-5,
        act: str = "gelu",
    ) -> None:
        size = find_variant(variant)
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is a probability below 1, got {drop_path}")
        if act not in self.ACTIVATIONS:
            raise ValueError(f"unknown activation {act!r}; choose one of {', '.join(self.ACTIVATIONS)}")
        norm, embed_norm = partial(nn.LayerNorm, eps=norm_eps), partial(nn.LayerNorm, eps=embed_norm_eps)
        rates = iter(torch.linspace(0, drop_path, sum(size.depths), device="cpu").tolist())
        stages = []
        for s, (dim, depth, heads, sr_ratio) in enumerate(zip(size.dims, size.depths, size.heads, size.sr_ratios, strict=True)):
            embed = OverlapPatchEmbed(in_channels if s == 0 else size.dims[s - 1], dim, *patch(s), embed_norm)
            blocks: list[nn.Module] = [
                Block(
                    dim,
                    EfficientSelfAttention(dim, heads, sr_ratio, embed_norm),
                    MixFFN(dim, size.mlp_ratio * dim, self.ACTIVATIONS[act]()),
                    norm,
                    next(rates),
                )
                for _ in range(depth)
            ]
            stages.append(Stage(embed, blocks, norm(dim)))
        super().__init__(stages, in_channels, size.dims, smallest_side(size.sr_ratios))
        self.config: dict[str, Any] = {
            "variant": variant if isinstance(variant, str) else asdict(size),
            "in_channels": in_channels,
            "drop_path": drop_path,
            "norm_eps": norm_eps,
            "embed_norm_eps": embed_norm_eps,
            "act": act,
        }


def patch(stage: int) -> tuple[int, int]:
    """Kernel size and stride of a stage's patch embedding (section 3.1)."""
    return (3, 2) if stage else (7, 4)


def smallest_side(sr_ratios: Sequence[int]) -> int:
    """Pixels a side below which some stage's map would be smaller than one cell of its sequence reduction, and at least 32."""
    return max(32, *(4 * 2**s * ratio for s, ratio in enumerate(sr_ratios)))


def check_images(images: Tensor, in_channels: int, min_size: int) -> None:
    """Refuse anything but float images (B, ``in_channels``, H, W) of at least ``min_size`` pixels a side.

    Raises:
        ValueError: naming the shape or type that was given, and what to do about it.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), got shape {tuple(images.shape)}; add the batch dimension with images[None]")
    if images.shape[1] != in_channels:
        raise ValueError(
            f"images have {images.shape[1]} channels (shape {tuple(images.shape)}), the model takes {in_channels}; "
            f"build it with in_channels={images.shape[1]}, or permute the images to (B, C, H, W)"
        )
    if images.shape[2] < min_size or images.shape[3] < min_size:
        raise ValueError(f"images of {images.shape[2]}×{images.shape[3]} are too small; at least {min_size}×{min_size}: resize or pad them")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; convert them to float and normalise with the ImageNet mean and std")
