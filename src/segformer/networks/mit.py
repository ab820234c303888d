"""MiT, the hierarchical Mix Transformer encoder of SegFormer (arXiv 2105.15203, section 3.1).

Where the released weights differ from the paper's text, the comments say so.

Inside a stage a map is (B, H, W, C), where the paper has sequences (B, N, C). Permuted to
(B, C, H, W) it has the channels-last memory format, so that convolutions need no copy.

``linear(x, layer)`` is ``layer(x)``, and ``mix_ffn`` returns what the comment beside it says. Their
plain definitions are in :mod:`segformer.ops`, with faster implementations for some devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segformer.networks.config import Config, check_at_least_1, check_heads
from segformer.networks.images import check_images, refuse_scripting, smallest_side
from segformer.networks.initialization import init_weights
from segformer.ops import channels_last, linear, mix_ffn

# They read shapes, which torch.fx does not have while it traces.
torch.fx.wrap("channels_last")
torch.fx.wrap("check_images")
torch.fx.wrap("rearrange")

Norm = Callable[[int], nn.Module]  # makes a norm for a number of channels


@dataclass(frozen=True)
class Variant(Config):
    """One size of SegFormer (table 6). Each tuple has one value per stage.

    Args:
        dims: number of channels C_i.
        depths: number of blocks L_i.
        decoder_channels: width C of the decoder (section 4.2).
        heads: number of attention heads N_i.
        sr_ratios: factor R_i by which keys and values are coarser than queries, along each side.
        mlp_ratio: hidden channels of the Mix-FFN divided by C_i, the same in all stages: 4 in the
            released weights, while table 6 prints 8, 8, 4, 4.

    Raises:
        ValueError: if the tuples differ in length, a number is below 1, or heads do not divide the
            channels.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    decoder_channels: int
    heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for name in ("dims", "depths", "heads", "sr_ratios"):
            values = tuple(getattr(self, name))  # a file has lists
            object.__setattr__(self, name, values)
            if len(values) != len(self.dims):
                raise ValueError(
                    f"{name}={values} does not have one value a stage; dims={self.dims} has "
                    f"{len(self.dims)}"
                )
        for name in ("dims", "depths", "heads", "sr_ratios"):
            check_at_least_1(**{name: min(getattr(self, name), default=0)})
        check_at_least_1(decoder_channels=self.decoder_channels, mlp_ratio=self.mlp_ratio)
        check_heads(self.dims, self.heads)


VARIANTS = {  # with the depths of the released weights
    "b0": Variant((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": Variant((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": Variant((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": Variant((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": Variant((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": Variant((64, 128, 320, 512), (3, 6, 40, 3), 768),
}


def find_variant(variant: str | Variant | Mapping[str, Any]) -> Variant:
    """Returns the :class:`Variant` of this name or with these fields; a variant is returned as is.

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
    """Returns the name in :data:`VARIANTS` of the variant with the same encoder, or None."""
    for name, known in VARIANTS.items():
        if replace(variant, decoder_channels=known.decoder_channels) == known:
            return name
    return None


class OverlapPatchEmbed(nn.Module):
    """Overlapped patch merging (section 3.1): a convolution whose stride is below its kernel size.

    The released network adds a LayerNorm.

    (B, C_in, H, W) → (B, ⌈H/stride⌉, ⌈W/stride⌉, C_out)
    """

    def __init__(
        self, in_channels: int, dim: int, kernel_size: int, stride: int, norm: Norm
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)  # (B, C_out, ⌈H/stride⌉, ⌈W/stride⌉)
        x = self.norm(x.permute(0, 2, 3, 1))
        return x


class SpatialReduction(nn.Module):
    """The sequence reduction before keys and values (section 3.1, equation 2).

    The R×R tokens of a square are projected to one, by a convolution of kernel size and stride R.
    R is that of table 6 (8, 4, 2, 1); the R of equation 2 is its square (64, 16, 4, 1). The
    released network reduces the input of both projections, adds a LayerNorm, and drops the rows and
    columns beyond the last whole square.

    (B, H, W, C) → (B, ⌊H/R⌋, ⌊W/R⌋, C)
    """

    def __init__(self, dim: int, ratio: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, ratio, ratio)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.permute(0, 3, 1, 2))  # (B, C, ⌊H/R⌋, ⌊W/R⌋)
        x = self.norm(x.permute(0, 2, 3, 1))
        return x


class EfficientSelfAttention(nn.Module):
    """Self-attention over a reduced sequence of keys and values (section 3.1, equations 1 and 2).

    For each head: Attention(Q, K, V) = softmax(Q Kᵀ / √d_head) V. The heads, of C / ``heads``
    channels each, are concatenated and projected.

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
        height = x.shape[1]
        q = linear(x, self.q)  # (B, H, W, C)
        kv = linear(self.reduce(x), self.kv)  # (B, ⌊H/R⌋, ⌊W/R⌋, 2C): all keys, then all values
        q = rearrange(q, "b h w (n d) -> b n (h w) d", n=self.heads)
        k, v = rearrange(kv, "b h w (two n d) -> two b n (h w) d", two=2, n=self.heads).unbind()
        x = F.scaled_dot_product_attention(q, k, v)  # equation 1
        x = rearrange(x, "b n (h w) d -> b h w (n d)", h=height)  # heads concatenated
        return linear(x, self.proj)


class MixFFN(nn.Module):
    """Mix-FFN (section 3.1, equation 3): MLP(GELU(Conv3×3(MLP(x)))).

    Each MLP is one linear layer, and the convolution is depthwise. Its zero padding leaks the
    position, so that no position embedding is needed. :class:`Block` adds the residual.

    (B, H, W, C) → (B, H, W, C)
    """

    def __init__(self, dim: int, hidden_dim: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.act = act
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # fc2(act(dwconv(fc1(x)))), with hidden_dim channels between fc1 and fc2
        return mix_ffn(x, self.fc1, self.dwconv, self.act, self.fc2)


class Block(nn.Module):
    """Attention, then Mix-FFN: one of the N repetitions in a "transformer block" of figure 2.

    Each follows a norm, which the figure omits. As in the released network, each residual branch is
    skipped at random in training, image by image (stochastic depth).

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
    """Patch merging, then blocks, then a norm, as in the released network.

    Figure 2 draws the merging at the end of the stage before.

    (B, C_in, H, W) → (B, C_out, ⌈H/stride⌉, ⌈W/stride⌉), in channels-last memory
    """

    def __init__(self, embed: nn.Module, blocks: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)  # (B, ⌈H/stride⌉, ⌈W/stride⌉, C_out)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        x = self.norm(x)
        return x.permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """A sequence of stages, whose maps are the features: base of hierarchical encoders.

    Args:
        stages: modules from (B, C, H, W) to a coarser map.
        in_channels: number of channels of the images.
        channels: number of channels of each feature map, finest first.
        min_size: smallest height and width of an image, in pixels.
    """

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
        self.apply(init_weights)  # truncated normal for linear layers, as released

    __prepare_scriptable__ = refuse_scripting  # called by torch.jit.script, which cannot compile it

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations.

        Training takes less memory, and one more forward pass.
        """
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to maps (B, C_i, ⌈H/s_i⌉, ⌈W/s_i⌉), s_i = 4, 8, 16, 32.

        Raises:
            ValueError: if the images are not (B, ``in_channels``, H, W), or H or W is below
                ``min_size``.
        """
        return self.first_features(images, len(self.stages))

    def first_features(self, images: Tensor, count: int) -> list[Tensor]:
        """The maps of the first ``count`` stages, for models that use no others."""
        check_images(images, self.in_channels, self.min_size)
        x = channels_last(images)  # so that all maps are
        features = []
        for stage in self.stages[:count]:
            x = stage(x)
            features.append(x)
        return features


@dataclass(frozen=True)
class MiTConfig(Config):
    """The arguments of :class:`MiT`, checked; see there for their meaning.

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
            object.__setattr__(self, "variant", asdict(size))  # plain values, for a file
        check_at_least_1(in_channels=self.in_channels)
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is a probability below 1, got {self.drop_path}")
        if self.act not in MiT.ACTIVATIONS:
            known = ", ".join(MiT.ACTIVATIONS)
            raise ValueError(f"unknown activation {self.act!r}; choose one of {known}")


class MiT(Pyramid):
    """The Mix Transformer encoder (section 3.1): stages at strides 4, 8, 16 and 32.

    Args:
        variant: ``"b0"`` … ``"b5"``, or a :class:`Variant` of your own (or its fields).
        in_channels: number of channels of the images.
        drop_path: stochastic-depth rate of the last block; it rises linearly from 0 at the first.
        norm_eps: LayerNorm epsilon in the blocks and at the end of a stage (1e-6 in the released
            weights).
        embed_norm_eps: LayerNorm epsilon after patch merging and after the sequence reduction
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

        def make_block(dim: int, heads: int, ratio: int, rate: float) -> nn.Module:
            # The released weights' sequence reduction has the epsilon of patch merging.
            attn = EfficientSelfAttention(dim, heads, ratio, embed_norm)
            ffn = MixFFN(dim, size.mlp_ratio * dim, self.ACTIVATIONS[act]())
            return Block(dim, attn, ffn, norm, rate)

        stages, before = [], in_channels
        sizes = zip(size.dims, size.depths, size.heads, size.sr_ratios, strict=True)
        for i, (dim, depth, heads, ratio) in enumerate(sizes):
            embed = OverlapPatchEmbed(before, dim, *kernel_and_stride(i), embed_norm)
            blocks = [make_block(dim, heads, ratio, next(rates)) for _ in range(depth)]
            stages.append(Stage(embed, blocks, norm(dim)))
            before = dim
        # In a smaller image, some stage would have no whole R×R square.
        min_size = smallest_side(size.sr_ratios)
        super().__init__(stages, in_channels, size.dims, min_size)
        self.config = config

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer each parameter is in, from the images to the features, as timm's models say.

        Layer-wise learning rates follow it.

        Args:
            coarse: whether a layer is a stage instead of a block.
        """
        stem = r"^stages\.0\.embed"
        return {
            "stem": stem,
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),  # after the blocks
                (r"^stages\.(\d+)\.embed", (-1,)),
            ],
        }


def kernel_and_stride(stage: int) -> tuple[int, int]:
    """Kernel size and stride of a stage's patch merging (section 3.1); stages count from 0."""
    return (7, 4) if stage == 0 else (3, 2)


def linear_rates(last: float, depth: int) -> list[float]:
    """The stochastic-depth rates of all blocks: linear from 0 at the first to ``last``."""
    return [last * block / max(1, depth - 1) for block in range(depth)]
