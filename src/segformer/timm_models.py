"""The timm models ``mit_b0`` … ``mit_b5``: classifiers, and pyramids with ``features_only=True``.

``timm.create_model("mit_b0", pretrained=True)`` downloads NVIDIA's ImageNet weights from the
Hugging Face hub. ``pretrained_cfg_overlay={"file": …}`` reads a file in any layout of
:mod:`segformer.checkpoint` instead. The model gets the layout's epsilons and activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from segformer import checkpoint
from segformer.networks.initialization import init_weights
from segformer.networks.mit import VARIANTS, MiT, Variant
from segformer.networks.timm_backbone import (
    check_name,
    create,
    licence_of,
    timms_normalization,
)


class MiTClassifier(MiT):
    """MiT with a linear classifier of its last feature map's mean, and timm's interface.

    Args:
        variant: Size, as for :class:`~segformer.MiT`.
        num_classes: Number of classes; 0 for no classifier.
        in_chans: Number of image channels.
        global_pool: ``"avg"``, or ``""`` for no pooling, without a classifier.
        drop_rate: Dropout rate before the classifier.
        drop_path_rate: Stochastic depth rate.
        device: Device of the parameters.
        dtype: Type of the parameters.
        **numerics: ``norm_eps``, ``embed_norm_eps`` and ``act`` of :class:`~segformer.MiT`.

    Raises:
        ValueError: If ``global_pool`` is another, or ``""`` with a classifier, or
            :class:`~segformer.MiT` raises it.
    """

    def __init__(
        self,
        variant: str | Variant = "b0",
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **numerics: Any,
    ) -> None:
        super().__init__(variant, in_channels=in_chans, drop_path=drop_path_rate, **numerics)
        self.to(device=device, dtype=dtype)
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = self.channels[-1]
        self.feature_info = [
            {"num_chs": channels, "reduction": 4 * 2**s, "module": f"stages.{s}"}
            for s, channels in enumerate(self.channels)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    @property
    def numerics(self) -> dict[str, Any]:
        """The numerics among the arguments, which a file of pretrained weights may have set."""
        return {name: self.config[name] for name in ("norm_eps", "embed_norm_eps", "act")}

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the last feature map (B, C_4, ⌈H/32⌉, ⌈W/32⌉) of images (B, C, H, W)."""
        return self.first_features(images, len(self.stages))[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the logits (B, ``num_classes``) of the last map, or the classifier's input."""
        x = self.head_drop(x.mean((-2, -1)) if self.global_pool else x)
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Returns the logits (B, ``num_classes``) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Returns the last feature map and the list of those of the chosen stages.

        Args:
            images: Images (B, C, H, W).
            indices: Stages; by default all. A number stands for the last stages.
            norm: Has no effect, as each stage ends in its own norm.
            stop_early: Whether the stages after the last chosen one are left out.
            output_fmt: ``"NCHW"``.
            intermediates_only: Whether only the list is returned.

        Raises:
            ValueError: If ``output_fmt`` is another.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}; MiT's maps are NCHW: pass 'NCHW'")
        chosen, last = feature_take_indices(len(self.stages), indices)  # type: ignore[arg-type]
        features = self.first_features(images, last + 1 if stop_early else len(self.stages))
        intermediates = [features[index] for index in chosen]
        return intermediates if intermediates_only else (features[-1], intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last chosen one, and the classifier; returns the chosen."""
        chosen, last = feature_take_indices(len(self.stages), indices)  # type: ignore[arg-type]
        pruned = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        self.num_features = self.head_hidden_size = self.channels[last]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return chosen

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Makes a new, random classifier, or none if ``num_classes`` is 0.

        Raises:
            ValueError: If ``global_pool`` is unknown, or a classifier would get unpooled maps.
        """
        global_pool = self.global_pool if global_pool is None else global_pool
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool={global_pool!r}; choose 'avg' or ''")
        if num_classes and not global_pool:
            raise ValueError(
                f"global_pool='' and num_classes={num_classes}, but the classifier needs pooled "
                "features; set global_pool='avg', or num_classes=0"
            )
        self.global_pool = global_pool
        self.num_classes = num_classes
        like = next(self.parameters())
        self.head = (
            nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )
        init_weights(self.head)

    def no_weight_decay(self) -> set[str]:
        return set()


class TimmClassifier(nn.Module):
    """A classifier of timm by its name, such as ``mit_b0`` or ``pvt_v2_b1``, to be trained.

    Args:
        name: timm's name.
        num_classes: Number of classes.
        drop_path_rate: Stochastic depth rate; by default that of timm, 0 for most models. Models
            without stochastic depth, such as VGG and DenseNet, do not take it.
        checkpoint_path: Weights file of a classifier of this name and number of classes, as timm
            writes it; by default the weights are random.
        **options: Further arguments of the timm model, such as ``drop_rate``.

    Attributes:
        model: timm's model.
        normalization: How images are normalized: as timm states for this name.
        licence: With ``pretrained``, the licence that timm states for its weights; else None.

    Raises:
        ValueError: If timm has no model of this name, or the model has no such argument.
        FileNotFoundError: If its pretrained weights cannot be had.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        drop_path_rate: float | None = None,
        checkpoint_path: str = "",
        **options: Any,
    ) -> None:
        super().__init__()
        check_name(name)
        self.model: Any = create(
            name,
            num_classes=num_classes,
            drop_path_rate=drop_path_rate,
            checkpoint_path=checkpoint_path,
            **options,
        )
        given = {"checkpoint_path": checkpoint_path, **options}
        self.licence = licence_of(self.model, given) if options.get("pretrained") else None
        self.num_classes = num_classes
        self.normalization = timms_normalization(self.model)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (B, ``num_classes``) of images (B, C, H, W)."""
        logits: Tensor = self.model(images)
        return logits


def _translate(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of an encoder in any layout for a model, and sets its numerics."""
    state, config = checkpoint.translate_encoder(tensors)
    _set_numerics(model, config["norm_eps"], config["embed_norm_eps"], config["act"])
    return state


def _set_numerics(model: Any, norm_eps: float, embed_norm_eps: float, act: str) -> None:
    """Sets the numerics of a model; the arguments are those of :class:`MiT`."""
    for stage in model.stages:
        stage.embed.norm.eps = embed_norm_eps
        stage.norm.eps = norm_eps
        for block in stage.blocks:
            block.norm1.eps = block.norm2.eps = norm_eps
            block.ffn.act = MiT.ACTIVATIONS[act]()
            if not isinstance(block.attn.reduce, nn.Identity):
                block.attn.reduce.norm.eps = embed_norm_eps
    model.config = replace(model.config, norm_eps=norm_eps, embed_norm_eps=embed_norm_eps, act=act)


def _register(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        features = {
            "out_indices": options.pop("out_indices", (0, 1, 2, 3)),
            "feature_cls": "getter",
        }
        model = partial(MiTClassifier, name)
        return build_model_with_cfg(
            model,
            f"mit_{name}",
            pretrained,
            pretrained_filter_fn=_translate,
            feature_cfg=features,
            **options,
        )

    create.__name__ = f"mit_{name}"
    create.__doc__ = f"MiT-{name.upper()} with timm's interface; see :class:`MiTClassifier`."
    return register_model(create)


default_cfgs = generate_default_cfgs(
    {
        f"mit_{name}.nvidia_in1k": {
            "hf_hub_id": f"nvidia/mit-{name}",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "stages.0.embed.proj",
            "classifier": "head",
            "license": checkpoint.NVIDIA_LICENCE,
        }
        for name in VARIANTS
    }
)
globals().update({f"mit_{name}": _register(name) for name in VARIANTS})
