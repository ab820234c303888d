"""Any of timm's feature pyramids or Vision Transformers as a backbone."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format, resample_abs_pos_embed
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from segformer.data.normalization import IMAGENET, Normalization
from segformer.ops import upsample

# Arguments that say where weights come from; what is built of a file has them from the file.
SOURCES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
# Arguments of the functions that build a timm model, and not of the model.
BUILDERS = {
    "features_only",
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
}


class TimmBackbone(nn.Module):
    """A timm model's feature maps, finest first, at any image size.

    Where a model takes whole patches or windows only, or drops what is left over, the image is interpolated (or padded, see ``fit``)
    to the next size that divides. A Vision Transformer's position embedding is resampled to the image's grid, its class and other
    prefix tokens are left out of the maps. The few models that timm builds for one size of image (such as maxvit, hiera and coat) take
    no other.

    Args:
        name: timm's name, such as ``"resnet50"`` or ``"vit_large_patch16_384"``.
        pretrained: load timm's weights for it from the Hugging Face hub.
        in_channels: channels of the images.
        out_indices: which of its feature maps, or of a Vision Transformer's blocks, are read, from 0. By default one map a stride from 4
            on; of a model of one stride four, evenly spread over its depth.
        class_token: whether a Vision Transformer's class token goes through the blocks beside the patches (it is in no map).
        positions: how a Vision Transformer's position embedding is resampled: ``"bicubic"``, with
            antialiasing, as timm does, or ``"bilinear"``, without, as mmsegmentation's SETR does.
        fit: how an image gets a size that divides: ``"resize"``, by which positions keep their
            proportions, or ``"pad"``, with zeros right and below, as mmsegmentation's SETR does.
        **options: more of the timm model's own arguments, such as ``drop_path_rate`` or ``img_size``.

    Attributes:
        channels: channels of the feature maps, finest first.
        strides: pixels a cell, of each.
        min_size: pixels a side of the smallest image.
        multiple: what the sides are rounded up to, where the model asks for it.
        normalization: how images are normalised: with ``pretrained`` as timm says for its weights,
            and as for ImageNet without.
        config: the arguments that build this backbone again, JSON-able.

    Raises:
        ValueError: on an unknown name, a model without feature maps, an index that is out of range, no class token to leave out, or
            ``positions`` or ``fit`` that are unknown or that the model does not have.
    """

    FITS = ("resize", "pad")
    POSITIONS = ("bicubic", "bilinear")

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        class_token: bool = True,
        positions: str = "bicubic",
        fit: str = "resize",
        **options: Any,
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels}")
        for argument, value, known in (
            ("positions", positions, self.POSITIONS),
            ("fit", fit, self.FITS),
        ):
            if value not in known:
                raise ValueError(f"{argument}={value!r}; choose one of {', '.join(known)}")
        strides = _strides(name, options)
        indices = (
            _spread(strides)
            if out_indices is None
            else [index if index >= 0 else len(strides) + index for index in out_indices]
        )
        if any(after <= before for before, after in pairwise(indices)):
            raise ValueError(
                f"out_indices {out_indices} of {name!r} must rise: the maps come finest first, each once"
            )
        outside = [index for index in indices if not 0 <= index < len(strides)]
        if outside or not indices:
            raise ValueError(
                f"out_indices {out_indices} of {name!r}, which has {len(strides)} feature maps; choose from 0 to {len(strides) - 1}"
            )
        self.config: dict[str, Any] = {
            "name": name,
            "in_channels": in_channels,
            "out_indices": list(indices),
            "class_token": class_token,
            "positions": positions,
            "fit": fit,
            **{option: value for option, value in options.items() if option not in SOURCES},
        }
        wanted = {
            "features_only": True,
            "in_chans": in_channels,
            "out_indices": tuple(indices),
            **options,
        }
        try:
            model: Any = _create(name, pretrained=pretrained, **wanted)
        except (RuntimeError, AttributeError) as error:
            raise ValueError(
                f"{name!r} has no feature maps to read: {error}; choose another of timm.list_models()"
            ) from error
        if not class_token:
            _leave_out_class_token(getattr(model, "model", model), name)
        if positions == "bilinear":
            _resample_bilinear(getattr(model, "model", model), name)
        self.model = model
        self.fit = fit
        normalization = _normalization(model) if pretrained else IMAGENET
        self.normalization = normalization.for_channels(in_channels)
        self.in_channels = in_channels
        self.channels = tuple(model.feature_info.channels())
        self.strides = tuple(model.feature_info.reduction())
        self.min_size = max(self.strides)
        with torch.device("meta"):
            self.multiple = _multiple(_create(name, **wanted), in_channels, self.strides)

    @classmethod
    def checked_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """A config as a file states it, without what says where weights come from.

        A file may come from anybody: it names one of timm's own models, and arguments of that model's
        class with plain values, so that building it reads no other file and opens no address.

        Raises:
            ValueError: naming what is no such thing.
        """
        config = {name: value for name, value in config.items() if name not in SOURCES}
        if not isinstance(config.get("name"), str) or not timm.is_model(config["name"]):
            raise ValueError(
                f"the file names {config.get('name')!r}, which is none of timm's models"
            )
        own = set(inspect.signature(cls).parameters) - {"options"}
        arguments = own | _arguments(config["name"])
        given = f"the file gives {config['name']!r}"
        for name, value in config.items():
            if name not in arguments and ("**" not in arguments or name in BUILDERS):
                raise ValueError(f"{given} the argument {name!r}, which it does not have")
            if not _is_plain(value):
                raise ValueError(f"{given} {name}={value!r}, which is no plain value")
        return config

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute parts in the backward pass instead of keeping their activations, as the timm model has it."""
        model: Any = (
            self.model if hasattr(self.model, "set_grad_checkpointing") else self.model.model
        )
        model.set_grad_checkpointing(enable)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to maps (B, C_i, ⌈H/s_i⌉, ⌈W/s_i⌉), H and W rounded up to ``multiple``.

        Raises:
            ValueError: when the images are not (B, ``in_channels``, H, W) or smaller than one cell of the coarsest map.
        """
        height, width = self._checked(images)
        size = [-(-side // self.multiple) * self.multiple for side in (height, width)]
        if size != [height, width]:
            images = self._fitted(images, size)
        maps = [to_channels_first(self.model, x) for x in self.model(images)]
        if any(x.ndim != 4 for x in maps):
            raise ValueError(
                f"{self.config['name']!r} gives {[tuple(x.shape) for x in maps]}, which are no maps (B, C, H, W)"
            )
        return maps

    def _fitted(self, images: Tensor, size: Sequence[int]) -> Tensor:
        if self.fit == "resize":
            return upsample(images, size)
        return F.pad(images, (0, size[1] - images.shape[-1], 0, size[0] - images.shape[-2]))

    def _checked(self, images: Tensor) -> tuple[int, int]:
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images must be (B, {self.in_channels}, H, W), got shape {tuple(images.shape)}"
            )
        height, width = images.shape[-2:]
        if min(height, width) < self.min_size:
            raise ValueError(
                f"images of {height}×{width} are too small for {self.config['name']!r}, whose cells are {self.min_size} pixels wide; "
                "resize or pad them"
            )
        return height, width


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, a truth value, none, or a list of such."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _arguments(name: str) -> set[str]:
    """The arguments of a timm model's own class; ``**`` where it has more, for its configuration."""
    with torch.device("meta"):
        kinds = type(timm.create_model(name)).__mro__
    own = [kind for kind in kinds if not kind.__module__.startswith(("torch.", "builtins"))]
    parameters = [p for kind in own for p in inspect.signature(kind).parameters.values()]
    return {"**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters}


def _normalization(model: Any) -> Normalization:
    """How timm normalises images for a model's pretrained weights."""
    config = model.pretrained_cfg
    mean, std = (config.get(name) or getattr(IMAGENET, name) for name in ("mean", "std"))
    return Normalization(mean, std)


def _create(name: str, **options: Any) -> nn.Module:
    """The timm model, open to images of any size where that must be asked for."""
    for asked in ({"dynamic_img_size": True, **options}, options):
        try:
            return timm.create_model(name, **asked)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise ValueError(f"{name!r} does not take these arguments: {error}") from error
    raise ValueError(f"{name!r} does not take the argument dynamic_img_size")


def _strides(name: str, options: dict[str, Any]) -> list[int]:
    """The stride of each of the model's feature maps."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 5, 0.5)
        raise ValueError(
            f"unknown timm model {name!r}; "
            + (f"did you mean {', '.join(near)}?" if near else "see timm.list_models()")
        )
    with torch.device("meta"):
        infos = getattr(_create(name, **options), "feature_info", None)
    if not infos:
        raise ValueError(
            f"{name!r} has no feature maps; choose one of timm.list_models() that supports features_only"
        )
    return [info["reduction"] for info in infos]


def _spread(strides: list[int]) -> list[int]:
    """The last map of each stride from 4 on, or four maps spread over the depth where all have one stride."""
    if len(set(strides)) == 1:
        return (
            [len(strides) * quarter // 4 - 1 for quarter in range(1, 5)]
            if len(strides) >= 4
            else list(range(len(strides)))
        )
    last = {stride: index for index, stride in enumerate(strides) if stride >= 4}
    return sorted(last.values())


@torch.no_grad()
def _multiple(model: Any, in_channels: int, strides: Sequence[int]) -> int:
    """What an image's sides must divide by for maps of ⌈side/stride⌉, tried with a size that does not divide."""
    side = 2 * max(strides) + 1
    try:
        maps = [
            to_channels_first(model, x)
            for x in model.eval()(torch.empty(1, in_channels, side, side, device="meta"))
        ]
    except Exception:  # each model refuses such a size in its own way
        return max(strides)
    fits = all(
        x.shape[2:] == (-(-side // stride),) * 2 for x, stride in zip(maps, strides, strict=True)
    )
    return 1 if fits else max(strides)


def to_channels_first(model: Any, x: Tensor) -> Tensor:
    """A feature map (B, C, H, W), as the head reads it, whatever the model's own format."""
    return (
        x.permute(0, 3, 1, 2) if Format(getattr(model, "output_fmt", "NCHW")) == Format.NHWC else x
    )


def _leave_out_class_token(vit: Any, name: str) -> None:
    """Cut the class token off a Vision Transformer, and its place off the position embedding."""
    if (
        getattr(vit, "cls_token", None) is None
        or getattr(vit, "num_prefix_tokens", 0) != 1
        or vit.no_embed_class
    ):
        raise ValueError(
            f"{name!r} has no class token, or more tokens beside the patches, so that class_token=False cannot leave it out"
        )
    vit.cls_token = None
    vit.num_prefix_tokens = 0
    vit.pos_embed = nn.Parameter(vit.pos_embed.detach()[:, 1:].clone())


class BilinearVisionTransformer(VisionTransformer):
    """timm's Vision Transformer, with its position embedding resampled bilinear, without antialiasing."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches (B, H, W, C) to tokens (B, N, C), the class token first where there is one."""
        positions = resample_abs_pos_embed(
            self.pos_embed,
            list(x.shape[1:3]),
            list(self.patch_embed.grid_size),
            self.num_prefix_tokens,
            interpolation="bilinear",
            antialias=False,
        )
        tokens: Tensor = x.flatten(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = self.pos_drop(tokens + positions)
        return tokens


def _resample_bilinear(vit: Any, name: str) -> None:
    """Have a Vision Transformer's position embedding resampled as mmsegmentation does."""
    is_simple = (
        type(vit) is VisionTransformer and vit.reg_token is None and vit.pos_embed is not None
    )
    if (
        not is_simple
        or not vit.dynamic_img_size
        or (vit.cls_token is not None and vit.no_embed_class)
    ):
        raise ValueError(
            f"{name!r} is no plain Vision Transformer with a position embedding of patches and class "
            "token, so that positions='bilinear' cannot be had; leave it 'bicubic'"
        )
    vit.__class__ = BilinearVisionTransformer
