"""MiT, the hierarchical Mix Transformer encoder of SegFormer (arXiv 2105.15203, section 3.1).

Inside a stage a map stays (B, H, W, C): it carries its own shape, and permuted to (B, C, H, W) it is
channels-last memory, so that convolutions and the pyramid share it without a copy.
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

from segformer.networks.config import Config
from segformer.networks.images import check_images, refuse_scripting, smallest_side
from segformer.networks.initialization import init_weights
from segformer.ops import attention, linear, mix_ffn

Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Variant(Config):
    """One size of SegFormer (paper, table 6). Each tuple has one value a stage.

    Args:
        dims: number of channels.
        depths: number of blocks.
        decoder_channels: width of the decoder.
        heads: number of attention heads.
        sr_ratios: how many times coarser keys and values are than queries, a side.
        mlp_ratio: width of the Mix-FFN over the stage's channels: 4 in every stage of the released
            weights; the paper's table prints 8, 8, 4, 4.

    Raises:
        ValueError: if the tuples differ in length, or heads do not divide the channels.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    decoder_channels: int
    heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for name in ("dims", "depths", "heads", "sr_ratios"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != len(self.dims):
                raise ValueError(
                    f"{name}={values} does not have one value a stage; dims={self.dims} has {len(self.dims)}"
                )
        for dim, heads in zip(self.dims, self.heads, strict=True):
            if dim % heads:
                raise ValueError(
                    f"a stage of {dim} channels cannot be split into {heads} heads; choose a divisor of {dim}"
                )


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
        ValueError: if no variant has this name.
    """
    if isinstance(variant, Variant):
        return variant
    if isinstance(variant, Mapping):
        return Variant(**variant)
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[variant]


def variant_name(variant: Variant) -> str | None:
    """The name of the encoder with these sizes in :data:`VARIANTS`, under a decoder of any width."""
    for name, known in VARIANTS.items():
        if replace(variant, decoder_channels=known.decoder_channels) == known:
            return name
    return None


class OverlapPatchEmbed(nn.Module):
    """Overlapped patch merging (section 3.1): a strided convolution of overlapping patches, a norm.

    (B, C_in, H, W) → (B, ⌈H/stride⌉, ⌈W/stride⌉, C_out)
    """

    def __init__(
        self, in_channels: int, dim: int, kernel_size: int, stride: int, norm: Norm
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)  # (B, C_out, H/stride, W/stride)
        x = self.norm(x.permute(0, 2, 3, 1))
        return x


class SpatialReduction(nn.Module):
    """The sequence reduction before keys and values (section 3.1, equation 2).

    The paper reshapes each R×R patch into one token and projects it: an R×R convolution of stride R.

    (B, H, W, C) → (B, ⌊H/R⌋, ⌊W/R⌋, C)
    """

    def __init__(self, dim: int, ratio: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, ratio, ratio)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.permute(0, 3, 1, 2))  # (B, C, H/R, W/R)
        x = self.norm(x.permute(0, 2, 3, 1))
        return x


class EfficientSelfAttention(nn.Module):
    """Self-attention over a reduced sequence of keys and values (section 3.1, equations 1 and 2).

    Attention(Q, K, V) = softmax(Q Kᵀ / √d_head) V for each head; then a projection.

    (B, H, W, C) → (B, H, W, C)
    """

    def __init__(self, dim: int, heads: int, sr_ratio: int, norm: Norm) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.reduce = SpatialReduction(dim, sr_ratio, norm) if sr_ratio > 1 else nn.Identity()
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q = linear(x, self.q)  # (B, H, W, C)
        kv = linear(self.reduce(x), self.kv)  # (B, H/R, W/R, 2C): keys, then values
        return linear(attention(q, kv, self.heads), self.proj)


class MixFFN(nn.Module):
    """Mix-FFN (section 3.1, equation 3): MLP(GELU(Conv3×3(MLP(x)))).

    The zero padding of the depthwise convolution tells positions, so that no position embedding is
    needed. The residual is the block's.

    (B, H, W, C) → (B, H, W, C)
    """

    def __init__(self, dim: int, hidden_dim: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.act = act
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return mix_ffn(x, self.fc1, self.dwconv, self.act, self.fc2)


class Block(nn.Module):
    """One transformer block, norms first: attention, then Mix-FFN.

    Each is a residual that is dropped at random in training (stochastic depth).

    (B, H, W, C) → (B, H, W, C)
    """

    def __init__(
        self, dim: int, attn: nn.Module, ffn: nn.Module, norm: Norm, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = attn
        self.norm2 = norm(dim)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.ffn(self.norm2(x)))
        return x


class Stage(nn.Module):
    """One level of the pyramid: patch embedding, blocks, norm.

    (B, C_in, H, W) → (B, C_out, ⌈H/s⌉, ⌈W/s⌉), in channels-last memory
    """

    def __init__(self, embed: nn.Module, blocks: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)  # (B, H/s, W/s, C_out)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        x = self.norm(x)
        return x.permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """Stages in a row, each with a coarser map than the one before.

    Args:
        stages: modules from (B, C, H, W) to a coarser map.
        in_channels: number of channels of the images.
        channels: number of channels of each feature map, finest first.
        min_size: height and width in pixels of the smallest image.
    """

    STEM = "stages.0.embed.proj.weight"  # the first convolution, which reads the images' channels

    def __init__(
        self,
        stages: Sequence[nn.Module],
        in_channels: int,
        channels: tuple[int, ...],
        min_size: int,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.in_channels = in_channels
        self.channels = channels
        self.min_size = min_size
        self.apply(init_weights)

    __prepare_scriptable__ = refuse_scripting

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations.

        Training takes less memory and about a third more time.
        """
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to four maps (B, C_i, ⌈H/s⌉, ⌈W/s⌉), s = 4, 8, 16, 32, finest first.

        Raises:
            ValueError: if the images are not (B, ``in_channels``, H ≥ 32, W ≥ 32).
        """
        return self.pyramid(images, len(self.stages))

    def pyramid(self, images: Tensor, depth: int) -> list[Tensor]:
        """The maps of the first ``depth`` stages."""
        check_images(images, self.in_channels, self.min_size)
        x = images.contiguous(memory_format=torch.channels_last)
        features = []
        for stage in self.stages[:depth]:
            x = stage(x)
            features.append(x)
        return features


@dataclass(frozen=True)
class MiTConfig(Config):
    """The arguments of :class:`MiT`, which describes them.

    Raises:
        ValueError: as :class:`MiT`.
    """

    variant: str | Variant | Mapping[str, Any] = "b0"
    in_channels: int = 3
    drop_path: float = 0.1
    norm_eps: float = 1e-6
    embed_norm_eps: float = 1e-5
    act: str = "gelu"

    def __post_init__(self) -> None:
        size = find_variant(self.variant)
        if not isinstance(self.variant, str):
            object.__setattr__(self, "variant", asdict(size))
        if self.in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {self.in_channels}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is a probability below 1, got {self.drop_path}")
        if self.act not in MiT.ACTIVATIONS:
            known = ", ".join(MiT.ACTIVATIONS)
            raise ValueError(f"unknown activation {self.act!r}; choose one of {known}")


class MiT(Pyramid):
    """The Mix Transformer encoder (section 3.1): four stages, each at half the resolution before.

    Args:
        variant: ``"b0"`` … ``"b5"``, or a :class:`Variant` of your own (or its fields).
        in_channels: number of channels of the images.
        drop_path: stochastic-depth rate of the last block; it rises linearly from 0 at the first.
        norm_eps: LayerNorm epsilon in the blocks and at the end of a stage (1e-6 in the released
            weights).
        embed_norm_eps: LayerNorm epsilon after a patch embedding and after the sequence reduction
            (1e-5 in the released weights).
        act: activation in Mix-FFN: ``"gelu"`` (exact, as released) or ``"gelu_tanh"``.

    Attributes:
        channels: number of channels of each feature map, finest first.
        config: the arguments that build this encoder again.

    Raises:
        ValueError: on an unknown variant or activation, fewer than one channel, or a ``drop_path``
            outside [0, 1).
    """

    ACTIVATIONS: ClassVar[dict[str, Callable[[], nn.Module]]] = {
        "gelu": nn.GELU,
        "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    }

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
        config = MiTConfig(variant, in_channels, drop_path, norm_eps, embed_norm_eps, act)
        size = find_variant(variant)
        norm = partial(nn.LayerNorm, eps=norm_eps)
        embed_norm = partial(nn.LayerNorm, eps=embed_norm_eps)
        rates = iter(linear_rates(drop_path, sum(size.depths)))

        def block(dim: int, heads: int, sr_ratio: int) -> nn.Module:
            attn = EfficientSelfAttention(dim, heads, sr_ratio, embed_norm)
            ffn = MixFFN(dim, size.mlp_ratio * dim, self.ACTIVATIONS[act]())
            return Block(dim, attn, ffn, norm, next(rates))

        stages, channels = [], in_channels
        for s, (dim, depth) in enumerate(zip(size.dims, size.depths, strict=True)):
            embed = OverlapPatchEmbed(channels, dim, *patch(s), embed_norm)
            blocks = [block(dim, size.heads[s], size.sr_ratios[s]) for _ in range(depth)]
            stages.append(Stage(embed, blocks, norm(dim)))
            channels = dim
        super().__init__(stages, in_channels, size.dims, smallest_side(size.sr_ratios))
        self.config = config


def patch(stage: int) -> tuple[int, int]:
    """Kernel size and stride of a stage's patch embedding (section 3.1)."""
    return (3, 2) if stage else (7, 4)


def linear_rates(last: float, depth: int) -> list[float]:
    """Stochastic-depth rates that rise linearly from 0 at the first block to that of the last."""
    return [last * block / max(1, depth - 1) for block in range(depth)]
