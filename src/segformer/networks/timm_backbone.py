"""Any feature pyramid or Vision Transformer of timm as a backbone."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format, resample_abs_pos_embed
from timm.models import PretrainedCfg, build_model_with_cfg
from timm.models._manipulate import group_with_matcher
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from segformer.data.normalization import IMAGENET, Normalization
from segformer.networks.config import Config, check_at_least_1
from segformer.networks.images import check_images
from segformer.networks.initialization import without_values
from segformer.ops import upsample

# Arguments that say where weights come from. A model that is built for a file has them from the
# file.
SOURCES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
# Arguments of the functions that build a timm model, and not of the model.
BUILDERS = {
    "features_only",
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
}


@dataclass(frozen=True)
class TimmConfig(Config):
    """The arguments of :class:`TimmBackbone` except ``pretrained``; they are described there.

    The entries of ``options`` are entries of this mapping, too.

    Raises:
        ValueError: as :class:`TimmBackbone`.
    """

    name: str
    in_channels: int = 3
    out_indices: tuple[int, ...] = ()
    class_token: bool = True
    positions: str = "bicubic"
    fit: str = "resize"
    options: Mapping[str, Any] = field(default_factory=dict)

    FITS: ClassVar[tuple[str, ...]] = ("resize", "pad")
    POSITIONS: ClassVar[tuple[str, ...]] = ("bicubic", "bilinear")

    def __post_init__(self) -> None:
        check_at_least_1(in_channels=self.in_channels)
        for name, known in (("positions", self.POSITIONS), ("fit", self.FITS)):
            if self[name] not in known:
                raise ValueError(f"{name}={self[name]!r}; choose one of {', '.join(known)}")
        options = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.options.items()
            if name not in SOURCES
        }
        object.__setattr__(self, "options", options)

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in super().__iter__() if name != "options")
        yield from self.options

    def __len__(self) -> int:
        return super().__len__() - 1 + len(self.options)

    def __getitem__(self, name: str) -> Any:
        return self.options[name] if name in self.options else super().__getitem__(name)


class TimmBackbone(nn.Module):
    """A timm model's feature maps, finest first, at any image size.

    Some models need a height and width that are multiples of their patch or window size. Images are
    then interpolated or padded up to the next multiple. The position embedding of a Vision
    Transformer is resampled to the grid of the image. The feature maps do not contain its class
    token and other prefix tokens. A few timm models, such as maxvit, hiera and coat, take images
    of one size only.

    Args:
        name: timm's name, such as ``"resnet50"`` or ``"vit_large_patch16_384"``.
        pretrained: whether to load timm's weights for it from the Hugging Face hub.
        in_channels: number of channels of the images.
        out_indices: the feature maps, or a Vision Transformer's blocks, that are returned, counted
            from 0. By default the last map of each stride from 4 on; of a model whose maps have one
            stride, four maps evenly spread over its depth.
        class_token: whether a Vision Transformer's class token passes through the blocks beside the
            patches.
        positions: how a Vision Transformer's position embedding is resampled: ``"bicubic"``, with
            antialiasing, as timm does, or ``"bilinear"``, without, as mmsegmentation's SETR does.
        fit: how an image is brought to the next multiple: ``"resize"`` interpolates it, ``"pad"``
            adds zeros at the right and the bottom, as mmsegmentation's SETR does.
        **options: further arguments of the timm model, such as ``drop_path_rate`` or ``img_size``.

    Attributes:
        channels: number of channels of each feature map, finest first.
        strides: the stride in pixels of each feature map.
        min_size: height and width in pixels of the smallest image.
        multiple: height and width of images are rounded up to a multiple of this number.
        normalization: how images are normalised: with ``pretrained`` as timm does for its weights,
            otherwise as for ImageNet.
        licence: with ``pretrained``, the licence that timm states for its weights, and their name;
            of weights from elsewhere, the ``license`` of the options that say from where.
        config: the arguments that build this backbone again.

    Raises:
        ValueError: if the name is unknown, the model has no feature maps, an index is out of range,
            there is no class token to leave out, or ``positions`` or ``fit`` is unknown or does not
            apply to the model.
    """

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
        config = TimmConfig(
            name,
            in_channels,
            class_token=class_token,
            positions=positions,
            fit=fit,
            options=options,
        )
        indices = _chosen(name, out_indices, _strides(name, options))
        wanted = {"in_chans": in_channels, "out_indices": indices, **options}
        self.model = _pyramid(name, pretrained=pretrained, **wanted)
        inner = getattr(self.model, "model", self.model)
        options |= getattr(inner, "numerics", {})  # MiT's, which the weights may have set
        self.config = replace(config, out_indices=indices, options=options)
        if not class_token:
            _leave_out_class_token(inner, name)
        if positions == "bilinear":
            _resample_bilinear(inner, name)
        self.fit = fit
        self.licence = licence_of(self.model, options) if pretrained else None
        normalization = timms_normalization(self.model) if pretrained else IMAGENET
        self.normalization = normalization.for_channels(in_channels)
        self.in_channels = in_channels
        self.channels = tuple(self.model.feature_info.channels())
        self.strides = tuple(self.model.feature_info.reduction())
        self.min_size = max(self.strides)
        with without_values():
            self.multiple = _multiple(_pyramid(name, **wanted), in_channels, self.strides)

    @classmethod
    def checked_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a file's config without the arguments that say where weights come from.

        A file may come from anybody. It may name one of timm's own models and arguments of that
        model's class with plain values, so that building it reads no other file and opens no
        address.

        Raises:
            ValueError: if the file names anything else.
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
        """Recompute parts in the backward pass instead of keeping their activations.

        Raises:
            ValueError: if timm's network cannot.
        """
        has_method = hasattr(self.model, "set_grad_checkpointing")
        model: Any = self.model if has_method else self.model.model
        try:
            model.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            raise ValueError(
                f"timm's {type(model).__name__} has no gradient checkpointing; leave it out, or "
                "take another backbone"
            ) from error

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layers of the parameters, for layer-wise learning rates.

        A module that is added to one of timm's, such as an adapter, belongs to that one's layer.

        Args:
            coarse: as timm's method of this name has it, such as stages instead of blocks.

        Returns:
            A function from a parameter's name to its layer in timm's whole model, counted from the
            images. Other names are in the layer of the classifier.

        Raises:
            ValueError: if timm's model has no such method.
        """
        with without_values():
            model: Any = _create_for_any_size(self.config.name, **self.config.options)
        if not hasattr(model, "group_matcher"):
            raise ValueError(
                f"timm's model {self.config.name!r} has no method group_matcher, which says what "
                "its layers are; leave layer_decay out"
            )
        named = ((name, None) for name in [*model.state_dict(), ""])
        layer_of = group_with_matcher(named, model.group_matcher(coarse), reverse=True)
        # A pyramid joins the names of nested modules with underscores.
        layers = {name.replace(".", "_"): layer for name, layer in layer_of.items()}
        for name, number in layer_of.items():
            layers.setdefault(name.rpartition(".")[0].replace(".", "_"), number)

        def layer(name: str) -> int:
            path = name.removeprefix("model.").removeprefix("model.")
            while path.replace(".", "_") not in layers:
                path = path.rpartition(".")[0]
            return int(layers[path.replace(".", "_")])

        return layer

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to maps (B, C_i, ⌈H/s_i⌉, ⌈W/s_i⌉).

        H and W are rounded up to ``multiple``.

        Raises:
            ValueError: if the images are not float (B, ``in_channels``, H, W), or smaller than one
                cell of the coarsest map.
        """
        check_images(images, self.in_channels, self.min_size)
        maps = [to_channels_first(self.model, x) for x in self.model(self._fitted(images))]
        if any(x.ndim != 4 for x in maps):
            shapes = [tuple(x.shape) for x in maps]
            raise ValueError(
                f"{self.config.name!r} returns {shapes}, which are no maps (B, C, H, W)"
            )
        return maps

    def _fitted(self, images: Tensor) -> Tensor:
        """The images at the next size that ``multiple`` divides."""
        if self.multiple == 1:
            return images
        height, width = images.shape[-2:]
        last = self.multiple - 1  # exporters round quotients of negative numbers differently
        size = [(side + last) // self.multiple * self.multiple for side in (height, width)]
        if self.fit == "resize":
            return upsample(images, size)
        return F.pad(images, (0, size[1] - width, 0, size[0] - height))


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a string, a truth value, None, or a list of such values."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


@cache
def _arguments(name: str) -> set[str]:
    """The arguments of a timm model's own class, and ``**`` if it passes others on."""
    with without_values():
        kinds = type(timm.create_model(name)).__mro__
    own = [kind for kind in kinds if not kind.__module__.startswith(("torch.", "builtins"))]
    parameters = [p for kind in own for p in inspect.signature(kind).parameters.values()]
    return {"**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters}


def timms_normalization(model: Any) -> Normalization:
    """How timm normalises images for a model and its pretrained weights."""
    config = model.pretrained_cfg
    mean, std = (config.get(name) or getattr(IMAGENET, name) for name in ("mean", "std"))
    return Normalization(mean, std)


def licence_of(model: Any, options: Mapping[str, Any]) -> str | None:
    """The licence of a model's pretrained weights, with the name of timm's; None if not stated."""
    given = [options.get(name) or {} for name in ("pretrained_cfg_overlay", "pretrained_cfg")]
    others = [
        vars(config) if isinstance(config, PretrainedCfg) else config
        for config in given
        if not isinstance(config, str)  # the name of weights of timm's own
    ]
    if options.get("checkpoint_path") or any(others):  # somebody's own weights
        return next((config["license"] for config in others if config.get("license")), None)
    config = model.pretrained_cfg
    name = f"{config.get('architecture')}.{config.get('tag')}"
    return f"{config['license']} (timm's {name})" if config.get("license") else None


def _pyramid(name: str, **options: Any) -> Any:
    """The timm model as a pyramid of feature maps.

    Raises:
        ValueError: if timm cannot build one.
    """
    try:
        return _create_for_any_size(name, features_only=True, **options)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{name!r} has no feature maps: {error}; choose another of timm.list_models()"
        ) from error


def create(name: str, **options: Any) -> nn.Module:
    """The timm model.

    Raises:
        ValueError: if the model has no such argument.
        FileNotFoundError: if its pretrained weights cannot be had.
    """
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        raise ValueError(
            f"{name!r} does not take these arguments: {error}; leave them out, or set them to null"
        ) from error
    except OSError as error:
        if not options.get("pretrained"):
            raise
        raise FileNotFoundError(
            f"no pretrained weights of timm's {name!r}: {str(error).rstrip('.')}; connect to the "
            "internet, or set pretrained to false"
        ) from error


def _create_for_any_size(name: str, **options: Any) -> nn.Module:
    """The timm model, for images of any size if the model has an argument for that."""
    for arguments in ({"dynamic_img_size": True, **options}, options):
        try:
            return create(name, **arguments)
        except ValueError as error:
            if "dynamic_img_size" not in str(error):
                raise
    raise ValueError(f"{name!r} does not take the argument dynamic_img_size")


def _strides(name: str, options: Mapping[str, Any]) -> list[int]:
    """The stride of each of the model's feature maps."""
    check_name(name)
    with without_values():
        infos = getattr(_create_for_any_size(name, **options), "feature_info", None)
    if not infos:
        raise ValueError(
            f"{name!r} has no feature maps; choose one of timm.list_models() that supports "
            "features_only"
        )
    return [info["reduction"] for info in infos]


def check_name(name: str) -> None:
    """Raises ValueError with the closest names if timm has no model of this name."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 5, 0.5)
        cure = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise ValueError(f"unknown timm model {name!r}; {cure}")


def _chosen(name: str, indices: Sequence[int] | None, strides: list[int]) -> tuple[int, ...]:
    """The indices of the maps that are read, from 0."""
    if indices is None:
        return tuple(_spread(strides))
    chosen = tuple(index if index >= 0 else len(strides) + index for index in indices)
    if any(after <= before for before, after in pairwise(chosen)):
        raise ValueError(
            f"out_indices={indices} of {name!r} must be strictly increasing, because feature maps "
            "are returned finest first; sort them and remove duplicates"
        )
    if not chosen or chosen[0] < 0 or chosen[-1] >= len(strides):
        raise ValueError(
            f"out_indices {indices} of {name!r}, which has {len(strides)} feature maps; choose "
            f"from 0 to {len(strides) - 1}"
        )
    return chosen


def _spread(strides: list[int]) -> list[int]:
    """The last map of each stride from 4 on; if all maps have one stride, four over the depth."""
    if len(set(strides)) > 1:
        last = {stride: index for index, stride in enumerate(strides) if stride >= 4}
        return sorted(last.values())
    if len(strides) < 4:
        return list(range(len(strides)))
    return [len(strides) * quarter // 4 - 1 for quarter in range(1, 5)]


@torch.no_grad()
def _multiple(model: Any, in_channels: int, strides: Sequence[int]) -> int:
    """The number of which height and width must be multiples.

    It is 1 if a trial with an odd size gives maps of ⌈side/stride⌉, else the greatest stride.
    """
    side = 2 * max(strides) + 1
    images = torch.empty(1, in_channels, side, side, device="meta")
    try:
        maps = [to_channels_first(model, x) for x in model.eval()(images)]
    except Exception:  # each model refuses such a size in its own way
        return max(strides)
    sizes = [(-(-side // stride),) * 2 for stride in strides]
    return 1 if [x.shape[2:] for x in maps] == sizes else max(strides)


def to_channels_first(model: Any, x: Tensor) -> Tensor:
    """A feature map (B, C, H, W) of a timm model, whatever the model's own format."""
    is_last = Format(getattr(model, "output_fmt", "NCHW")) == Format.NHWC
    return x.permute(0, 3, 1, 2) if is_last else x


def _leave_out_class_token(vit: Any, name: str) -> None:
    """Remove the class token of a Vision Transformer, and its position."""
    has_one = getattr(vit, "cls_token", None) is not None and vit.num_prefix_tokens == 1
    if not has_one or vit.no_embed_class:
        raise ValueError(
            f"{name!r} has no class token, or more tokens beside the patches, so that "
            "class_token=False cannot leave it out"
        )
    vit.cls_token = None
    vit.num_prefix_tokens = 0
    vit.pos_embed = nn.Parameter(vit.pos_embed.detach()[:, 1:].clone())


class BilinearVisionTransformer(VisionTransformer):
    """timm's Vision Transformer with a position embedding resampled bilinear, not antialiased."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches (B, H, W, C) to tokens (B, N, C), the class token first if there is one."""
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
    """Make a Vision Transformer resample its position embedding as mmsegmentation does."""
    is_standard = (
        type(vit) is VisionTransformer and vit.reg_token is None and vit.pos_embed is not None
    )
    has_positions = is_standard and (vit.cls_token is None or not vit.no_embed_class)
    if not has_positions or not vit.dynamic_img_size:
        raise ValueError(
            f"{name!r} is no plain Vision Transformer with a position embedding of patches and "
            "class token, which positions='bilinear' needs; leave it 'bicubic'"
        )
    vit.__class__ = BilinearVisionTransformer
