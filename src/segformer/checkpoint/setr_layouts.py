"""The layouts of SETR weights: mmsegmentation's, and fudan-zvg's, whose MLA head differs. In a row ``{s}`` is the block or level."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from math import isqrt
from typing import Any, ClassVar

import torch

from segformer.checkpoint.files import State, WeightFile
from segformer.checkpoint.layout import BackboneOnlyError, Layout, Table
from segformer.checkpoint.report import Report
from segformer.data.classes import Classes

PATCH = 16


@dataclass(frozen=True)
class SETRLayout(Layout):
    """A layout of a Vision Transformer under one of SETR's heads.

    Args:
        naive_scales: how many times the naive head enlarges before its classifier.
        pup_scales: the same of the progressive head, whose last enlargement commutes with the
            classifier, and with what follows only where the image is a whole number of patches.
        mla: numerics of the MLA head.
        backbone_numerics: numerics of the backbone, as arguments of ``TimmBackbone``.
    """

    naive_scales: tuple[int, ...] = (1,)
    pup_scales: tuple[int, ...] = (2, 2, 2, 1)
    mla: tuple[tuple[str, Any], ...] = ()
    backbone_numerics: tuple[tuple[str, Any], ...] = ()

    BACKBONES: ClassVar[dict[tuple[int, int], str]] = {  # by width and depth
        (1024, 24): "vit_large_patch16_384",
        (768, 12): "vit_base_patch16_384",
        (192, 12): "vit_tiny_patch16_384",
    }

    def infer(
        self, state: State, file: WeightFile, num_classes: int | None, report: Report
    ) -> dict[str, Any]:
        """Sizes and the kind of head from the shapes."""
        if self.theirs("decode_head.classifier.weight") not in state:
            raise BackboneOnlyError(
                f"{str(file.path)!r} holds a Vision Transformer without a decode head; build SETR(…, pretrained=True), which reads timm's"
            )
        _, tokens, width = self.shape("backbone.model.model.pos_embed", 3, state, file)
        depth = self.count("backbone.model.model.blocks.{}.norm1.weight", state)
        if (width, depth) not in self.BACKBONES:
            known = ", ".join(f"{width} and {depth}" for width, depth in self.BACKBONES)
            raise ValueError(
                f"{str(file.path)!r} has a transformer of width {width} and {depth} blocks; SETR's have {known}"
            )
        is_mla = self.theirs("decode_head.aggregation.norms.0.weight") in state
        side = isqrt(tokens - (not is_mla))
        if side**2 != tokens - (not is_mla):
            raise ValueError(
                f"{str(file.path)!r} has a position embedding of {tokens} tokens, which is no square of patches"
            )
        known_classes, channels = self.shape("decode_head.classifier.weight", 4, state, file)[:2]
        if is_mla:
            blocks, head = (6, 12, 18, 24), "MLAHead"
            channels, level = (
                self.shape("decode_head.aggregation.projections.0.conv.weight", 4, state, file)[0],
                channels // 4,
            )
            config = {"channels": channels, "level_channels": level, **dict(self.mla)}
        else:
            blocks = (10, 15, 20, 24)
            is_naive = self.shape("decode_head.layers.0.conv.weight", 4, state, file)[-1] == 1
            head, scales = (
                ("NaiveHead", self.naive_scales) if is_naive else ("PUPHead", self.pup_scales)
            )
            layers = self.count("decode_head.layers.{}.conv.weight", state)
            if layers != len(scales):
                raise ValueError(
                    f"{str(file.path)!r}: the {head} has {layers} layers where {len(scales)} are expected"
                )
            config = {"channels": channels, "scales": scales}
        named = file.classes is not None and file.classes.fit(known_classes)
        classes = file.classes if named else Classes.of_logits(known_classes)
        return {
            "backbone": {
                "class": "TimmBackbone",
                "config": {
                    "name": self.BACKBONES[width, depth],
                    "in_channels": self.shape(
                        "backbone.model.model.patch_embed.proj.weight", 4, state, file
                    )[1],
                    "out_indices": [block * depth // 24 - 1 for block in blocks],
                    "class_token": not is_mla,
                    "img_size": PATCH * side,
                    **dict(self.backbone_numerics),
                },
            },
            "decode_head": {
                "class": head,
                "config": {"in_channels": [width] * 4, "num_classes": known_classes, **config},
            },
            "classes": asdict(classes),  # type: ignore[arg-type]
            "align_corners": False,
        }


def _without_class_token(state: State, pos_embed: str, cls_token: str) -> dict[str, str]:
    """The class token is dropped before the first block, with its place in the position embedding."""
    if cls_token not in state:
        return {}
    state[pos_embed] = state[pos_embed][:, 1:]
    del state[cls_token]
    return {cls_token: "out: this model drops it before its first block"}


def _fold_mmsegmentation(state: State) -> dict[str, str]:
    bias, folded = "backbone.patch_embed.projection.bias", {}
    if bias not in state:
        state[bias] = torch.zeros_like(state["backbone.patch_embed.projection.weight"][:, 0, 0, 0])
        folded[bias] = "zeros: its patch embedding has none"
    if "neck.norm.0.weight" in state:
        folded |= _without_class_token(state, "backbone.pos_embed", "backbone.cls_token")
    return folded


def _fold_fudan(state: State) -> dict[str, str]:
    """A bias before BatchNorm only shifts its mean; the last convolution is the classifier."""
    folded = {}
    convs = sorted(key for key in state if re.fullmatch(r"decode_head\.conv_\d+\.weight", key))
    for key in (convs[-1], convs[-1].replace("weight", "bias")):
        if key in state:
            state[f"decode_head.classifier.{key.rpartition('.')[2]}"] = state.pop(key)
    for key in convs[:-1]:
        bias, mean = (
            key.replace("weight", "bias"),
            key.replace("conv_", "syncbn_fc_").replace("weight", "running_mean"),
        )
        if bias in state and mean in state:
            state[mean] = state[mean] - state.pop(bias)
            folded[bias] = "into the running mean of the BatchNorm behind it"
    return folded


def _fold_fudan_mla(state: State) -> dict[str, str]:
    """Its concatenation is shallowest first, ours deepest first."""
    classifier = state["decode_head.cls.weight"]
    state["decode_head.cls.weight"] = classifier.unflatten(1, (4, -1)).flip(1).flatten(1, 2)
    return _without_class_token(state, "backbone.pos_embed", "backbone.cls_token")


_UNUSED = {
    "backbone.norm.": "a norm behind the last block, which no head reads",
    "backbone.ln1.": "a norm behind the last block, which no head reads",
    "backbone.head.": "the ImageNet classifier",
    "decode_head.conv_seg.": "made by its framework, used by no head of this layout",
}
_VIT = "model.model"
_BLOCKS = "model.model.blocks.{s}."

_TIMM_BACKBONE: Table = {
    _VIT: "",
    _VIT + ".patch_embed.proj": "patch_embed.proj",
    **{
        _BLOCKS + name: "blocks.{s}." + name
        for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    },
}

MMSEGMENTATION_SETR = SETRLayout(
    "mmsegmentation_setr",
    marker="layers.0.ln1.weight",
    backbone={
        _VIT: "",
        _VIT + ".patch_embed.proj": "patch_embed.projection",
        _BLOCKS + "norm1": "layers.{s}.ln1",
        _BLOCKS + "attn.qkv": "layers.{s}.attn.attn.in_proj_",
        _BLOCKS + "attn.proj": "layers.{s}.attn.attn.out_proj",
        _BLOCKS + "norm2": "layers.{s}.ln2",
        _BLOCKS + "mlp.fc1": "layers.{s}.ffn.layers.0.0",
        _BLOCKS + "mlp.fc2": "layers.{s}.ffn.layers.1",
    },
    decode_head={
        "norm": "decode_head.norm",
        "layers.{s}.conv": "decode_head.up_convs.{s}.0.conv",
        "layers.{s}.norm": "decode_head.up_convs.{s}.0.bn",
        "aggregation.norms.{s}": "neck.norm.{s}",
        "aggregation.projections.{s}.conv": "neck.mla.channel_proj.{s}.conv",
        "aggregation.projections.{s}.norm": "neck.mla.channel_proj.{s}.bn",
        "aggregation.layers.{s}.conv": "neck.mla.feat_extract.{3-s}.conv",
        "aggregation.layers.{s}.norm": "neck.mla.feat_extract.{3-s}.bn",
        "levels.{s}.{j}.conv": "decode_head.up_convs.{3-s}.{j}.conv",
        "levels.{s}.{j}.norm": "decode_head.up_convs.{3-s}.{j}.bn",
        "classifier": "decode_head.conv_seg",
    },
    unused={name: reason for name, reason in _UNUSED.items() if "conv_seg" not in name},
    holds="a Vision Transformer under one of SETR's heads",
    naive_scales=(4,),
    pup_scales=(2, 2, 2, 2),
    mla=(("kernel_size", 1), ("align_corners", False)),
    backbone_numerics=(("positions", "bilinear"), ("fit", "pad")),
    fold=_fold_mmsegmentation,
)

FUDAN = SETRLayout(
    "fudan",
    marker="blocks.0.attn.qkv.weight",
    backbone=_TIMM_BACKBONE,
    decode_head={
        "norm": "decode_head.norm",
        "layers.{s}.conv": "decode_head.conv_{s}",
        "layers.{s}.norm": "decode_head.syncbn_fc_{s}",
        "aggregation.norms.{s}": "backbone.norm_{s}",
        "classifier": "decode_head.classifier",
    },
    sign="decode_head.conv_0.weight",
    unused=_UNUSED,
    holds="a Vision Transformer under SETR's naive or progressive head",
    fold=_fold_fudan,
)

FUDAN_MLA = SETRLayout(
    "fudan_mla",
    marker="blocks.0.attn.qkv.weight",
    backbone=_TIMM_BACKBONE,
    decode_head={
        "aggregation.norms.{s}": "backbone.norm_{s}",
        "aggregation.projections.{s}.conv": "backbone.mla.mla_p{s+2}_1x1.0",
        "aggregation.projections.{s}.norm": "backbone.mla.mla_p{s+2}_1x1.1",
        "aggregation.layers.{s}.conv": "backbone.mla.mla_p{s+2}.0",
        "aggregation.layers.{s}.norm": "backbone.mla.mla_p{s+2}.1",
        "levels.{s}.{j}.conv": "decode_head.mlahead.head{s+2}.{3*j}",
        "levels.{s}.{j}.norm": "decode_head.mlahead.head{s+2}.{3*j+1}",
        "classifier": "decode_head.cls",
    },
    sign="decode_head.cls.weight",
    unused=_UNUSED,
    holds="a Vision Transformer under SETR's MLA head",
    mla=(("kernel_size", 3), ("align_corners", True)),
    fold=_fold_fudan_mla,
)
