"""The layouts of SETR weights: mmsegmentation's, and fudan-zvg's, whose MLA head differs.

In a table, ``{s}`` is the block or level.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from math import isqrt
from typing import Any, ClassVar

import torch

from segformer.checkpoint.formats import State, WeightFile
from segformer.checkpoint.layout import LAST_WEIGHT, Layout, Table
from segformer.checkpoint.report import Report
from segformer.data.classes import Classes
from segformer.networks.setr import MLAHead, PUPHead, indices_of

PATCH = 16  # pixels
POSITIONS = "backbone.model.model.pos_embed"


@dataclass(frozen=True)
class SETRLayout(Layout):
    """A layout of a Vision Transformer under one of SETR's heads.

    Args:
        naive_scales: Upsampling factors of the naive head's layers, before its classifier.
        pup_scales: The same for the progressive head. Upsampling gives equal logits before and
            after the classifier. If the last upsampling is merged with the one to the size of the
            image, the logits are equal only if that size is a multiple of the patch size.
        mla: Numerics of the MLA head, as its arguments.
        backbone_numerics: Numerics of the backbone, as arguments of ``TimmBackbone``.
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
        """Sizes and the kind of head come from the shapes.

        Raises:
            ValueError: Also if there is no decode head, whatever ``num_classes`` is, because a
                Vision Transformer does not show which of SETR's heads is wanted.
        """
        if self.their_key(LAST_WEIGHT) not in state:
            raise ValueError(
                f"{str(file.path)!r} holds a Vision Transformer without a decode head, which does "
                "not show which of SETR's heads to build, with or without num_classes=…; build "
                "SETR(…, head=…, pretrained=True), which reads timm's weights"
            )
        is_mla = self.their_key("decode_head.aggregation.norms.0.weight") in state
        backbone = self._backbone(is_mla, state, file)
        head_class, head = (self._mla_head if is_mla else self._head_of_layers)(state, file)
        known_classes = self.shape(LAST_WEIGHT, 4, state, file)[0]
        width = self._width(state, file)
        is_named = file.classes is not None and file.classes.fit(known_classes)
        classes = file.classes if is_named else Classes.of_logits(known_classes)
        return {
            "backbone": {"class": "TimmBackbone", "config": backbone},
            "decode_head": {
                "class": head_class,
                "config": {"in_channels": [width] * 4, "num_classes": known_classes, **head},
            },
            "classes": asdict(classes),  # type: ignore[arg-type]
            "align_corners": False,
        }

    def _width(self, state: State, file: WeightFile) -> int:
        return self.shape(POSITIONS, 3, state, file)[2]

    def _backbone(self, is_mla: bool, state: State, file: WeightFile) -> dict[str, Any]:
        """Returns the arguments of ``TimmBackbone``."""
        width, tokens = self._width(state, file), self.shape(POSITIONS, 3, state, file)[1]
        depth = self.count("backbone.model.model.blocks.{}.norm1.weight", state)
        if (width, depth) not in self.BACKBONES:
            known = ", ".join(f"{width} and {depth}" for width, depth in self.BACKBONES)
            raise ValueError(
                f"{str(file.path)!r} has a transformer of width {width} and {depth} blocks; "
                f"SETR's have {known}"
            )
        patches = tokens if is_mla else tokens - 1  # without the class token
        rows = isqrt(patches)
        if rows**2 != patches:
            raise ValueError(
                f"{str(file.path)!r} has a position embedding of {tokens} tokens, which is no "
                "square of patches; SETR reads weights of square images"
            )
        head = MLAHead if is_mla else PUPHead  # which reads the blocks that the naive head reads
        stem = "backbone.model.model.patch_embed.proj.weight"
        return {
            "name": self.BACKBONES[width, depth],
            "in_channels": self.shape(stem, 4, state, file)[1],
            "out_indices": indices_of(head.BLOCKS, depth),
            "class_token": head.CLASS_TOKEN,
            "img_size": PATCH * rows,
            **dict(self.backbone_numerics),
        }

    def _mla_head(self, state: State, file: WeightFile) -> tuple[str, dict[str, Any]]:
        projection = "decode_head.aggregation.projections.0.conv.weight"
        return "MLAHead", {
            "channels": self.shape(projection, 4, state, file)[0],
            "level_channels": self.shape(LAST_WEIGHT, 4, state, file)[1] // 4,
            **dict(self.mla),
        }

    def _head_of_layers(self, state: State, file: WeightFile) -> tuple[str, dict[str, Any]]:
        """Returns the naive head, whose convolutions are 1×1, or the progressive one."""
        is_naive = self.shape("decode_head.layers.0.conv.weight", 4, state, file)[-1] == 1
        head = "NaiveHead" if is_naive else "PUPHead"
        scales = self.naive_scales if is_naive else self.pup_scales
        layers = self.count("decode_head.layers.{}.conv.weight", state)
        if layers != len(scales):
            raise ValueError(
                f"{str(file.path)!r}: the {head} has {layers} layers where {len(scales)} are "
                "expected"
            )
        return head, {
            "channels": self.shape(LAST_WEIGHT, 4, state, file)[1],
            "scales": scales,
        }


def _without_class_token(state: State, pos_embed: str, cls_token: str) -> dict[str, str]:
    """Removes a class token that the model drops before its first block, and its position."""
    if cls_token not in state:
        return {}
    state[pos_embed] = state[pos_embed][:, 1:]
    del state[cls_token]
    return {cls_token: "removed: this model drops it before its first block"}


def _fold_mmsegmentation(state: State) -> dict[str, str]:
    """Adds the patch embedding's bias, if it is missing, and removes an unused class token."""
    bias, folded = "backbone.patch_embed.projection.bias", {}
    if bias not in state:
        state[bias] = torch.zeros_like(state["backbone.patch_embed.projection.weight"][:, 0, 0, 0])
        folded[bias] = "zeros: the file's patch embedding has no bias"
    if "neck.norm.0.weight" in state:
        folded |= _without_class_token(state, "backbone.pos_embed", "backbone.cls_token")
    return folded


def _fold_fudan(state: State) -> dict[str, str]:
    """Makes the last convolution the classifier, and folds biases into the BatchNorms."""
    folded = {}
    convs = sorted(key for key in state if re.fullmatch(r"decode_head\.conv_\d+\.weight", key))
    for key in (convs[-1], convs[-1].replace("weight", "bias")):
        if key in state:
            state[f"decode_head.classifier.{key.rpartition('.')[2]}"] = state.pop(key)
    for key in convs[:-1]:
        bias = key.replace("weight", "bias")
        mean = key.replace("conv_", "syncbn_fc_").replace("weight", "running_mean")
        if bias in state and mean in state:
            state[mean] = state[mean] - state.pop(bias)
            folded[bias] = "into the running mean of the BatchNorm after it"
    return folded


def _fold_fudan_mla(state: State) -> dict[str, str]:
    """Reverses the classifier's input: theirs has the shallowest level first, ours the deepest."""
    classifier = state["decode_head.cls.weight"]
    state["decode_head.cls.weight"] = classifier.unflatten(1, (4, -1)).flip(1).flatten(1, 2)
    return _without_class_token(state, "backbone.pos_embed", "backbone.cls_token")


_UNUSED = {
    "backbone.norm.": "a norm after the last block, which no head uses",
    "backbone.ln1.": "a norm after the last block, which no head uses",
    "backbone.head.": "the ImageNet classifier",
    "decode_head.conv_seg.": "mmsegmentation's default classifier, which this head does not use",
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
    required="decode_head.conv_0.weight",
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
    required="decode_head.cls.weight",
    unused=_UNUSED,
    holds="a Vision Transformer under SETR's MLA head",
    mla=(("kernel_size", 3), ("align_corners", True)),
    fold=_fold_fudan_mla,
)
