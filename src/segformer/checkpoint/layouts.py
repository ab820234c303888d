"""The public layouts of SegFormer weights as tables, and the numerics that each was trained with.

A table's row maps a module of ours to the module of theirs that holds the same numbers. Where one holds what several hold elsewhere, the
row names all of them, and their tensors follow one another along the first dimension. In a row ``{s}`` is the stage from 0, ``{n}`` the
stage from 1, ``{k}`` the stage counted from the last, ``{j}`` the block from 0; a name of theirs that ends in ``_`` is joined to the
tensor's name as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from torch import Tensor

State = dict[str, Tensor]
Modules = str | tuple[str, ...]
Table = dict[Modules, Modules]
Keys = tuple[str, ...]


@dataclass(frozen=True)
class Numerics:
    """What makes the same weights give other outputs.

    Args:
        norm_eps: LayerNorm epsilon in the blocks and at the end of a stage.
        embed_norm_eps: LayerNorm epsilon after a patch embedding and after the sequence reduction.
        act: the activation in Mix-FFN.
        batch_norm_eps: BatchNorm epsilon of the decode head.
        align_corners: how stride-4 logits are interpolated to pixels.
    """

    norm_eps: float = 1e-6
    embed_norm_eps: float = 1e-5
    act: str = "gelu"
    batch_norm_eps: float = 1e-5
    align_corners: bool = False

    @classmethod
    def of(cls, description: dict[str, Any]) -> Numerics:
        """The numerics of a model's description."""
        backbone, head = description["backbone"]["config"], description["decode_head"]["config"]
        return cls(backbone["norm_eps"], backbone["embed_norm_eps"], backbone["act"], head["norm_eps"], description["align_corners"])

    def applied_to(self, description: dict[str, Any]) -> dict[str, Any]:
        """The description of the same model with these numerics."""
        backbone, head = description["backbone"], description["decode_head"]
        encoder = {"norm_eps": self.norm_eps, "embed_norm_eps": self.embed_norm_eps, "act": self.act}
        return {
            **description,
            "backbone": {**backbone, "config": {**backbone["config"], **encoder}},
            "decode_head": {**head, "config": {**head["config"], "norm_eps": self.batch_norm_eps}},
            "align_corners": self.align_corners,
        }

    def differences(self, other: Numerics) -> list[str]:
        """The names of what differs."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class Layout:
    """One public arrangement of the same parameters.

    Args:
        name: what it is called in messages and on the command line.
        marker: the key, without ``prefix``, by which its backbone is known.
        backbone: the table inside the backbone; their names without ``prefix``.
        decode_head: the table inside the head.
        prefix: what stands before the backbone's keys in a whole model's file, and not in a backbone's.
        sign: a key that tells this layout from others with the same marker.
        classifier: the module of an ImageNet classifier, in files of a pre-trained backbone.
        unused: prefixes of keys that belong to no SegFormer, with the reason.
        head: the class of the decode head that its weights fit.
        numerics: what its weights were trained with.
        expresses: those of the numerics that its files can say otherwise.
        fold: rewrites a state dict with parameters that we do not have into an equal one without; returns what it folded.
    """

    name: str
    marker: str
    backbone: Table = field(default_factory=dict)
    decode_head: Table = field(default_factory=dict)
    prefix: str = "backbone."
    sign: str | None = None
    classifier: str = "head"
    unused: dict[str, str] = field(default_factory=dict)
    head: str = "AllMLPHead"
    numerics: Numerics = Numerics()
    expresses: tuple[str, ...] = ()
    fold: Callable[[State], dict[str, str]] = lambda state: {}

    @cached_property
    def _rows(self) -> dict[str, tuple[Keys, Keys]]:
        """Each module of ours, and its row: all of ours and all of theirs, with the parts' prefixes."""
        rows: dict[str, tuple[Keys, Keys]] = {}
        for ours_prefix, theirs_prefix, table in (("backbone.", self.prefix, self.backbone), ("decode_head.", "", self.decode_head)):
            for ours, theirs in table.items():
                row = tuple(ours_prefix + name for name in _several(ours)), tuple(theirs_prefix + name for name in _several(theirs))
                rows |= dict.fromkeys(row[0], row)
        return rows

    def pairs(self, keys: Iterable[str]) -> Iterator[tuple[Keys, Keys]]:
        """For the keys of a model of ours: our keys and theirs that hold the same numbers, each pair once.

        Raises:
            ValueError: when the layout has no place for a module.
        """
        for key in keys:
            module, _, tensor = key.rpartition(".")
            template, places = _generalized(module)
            if self._rows and template not in self._rows:
                raise ValueError(f"the {self.name} layout has no place for {key!r}; it holds a MiT under {self.head}")
            ours, theirs = self._rows.get(template, ((template,), (template,)))
            if template == ours[0]:
                yield (
                    tuple(f"{name.format(**places)}.{tensor}" for name in ours),
                    tuple(name.format(**places) + tensor if name.endswith("_") else f"{name.format(**places)}.{tensor}" for name in theirs),
                )

    def theirs(self, key: str) -> str:
        """Their key for one of ours, or the first of them."""
        return next(self.pairs([key]))[1][0]


def _several(names: Modules) -> Keys:
    return (names,) if isinstance(names, str) else names


def _generalized(module: str) -> tuple[str, dict[str, int]]:
    """``stages.2.blocks.5.norm1`` as ``stages.{s}.blocks.{j}.norm1`` with s=2, j=5, n=3 and k=1."""
    number = re.compile(r"(?<=\.)\d+(?=\.|$)")
    places = {name: int(place) for name, place in zip("sj", number.findall(module), strict=False)}
    letters = iter("sj")
    template = number.sub(lambda _: f"{{{next(letters)}}}", module)
    return template, {**places, "n": places.get("s", 0) + 1, "k": 3 - places.get("s", 0)}


def _fold_fuse_bias(state: State) -> dict[str, str]:
    """A bias before BatchNorm only shifts its mean; ours has none."""
    bias, mean = "decoder.linear_fuse.0.bias", "decoder.linear_fuse.1.running_mean"
    if bias not in state or mean not in state:
        return {}
    state[mean] = state[mean] - state.pop(bias)
    return {bias: "into the running mean of the BatchNorm behind it"}


_CONV_SEG = {"decode_head.conv_seg.": "made by its framework, used by no SegFormer"}
_STAGES = "stages.{s}."
_BLOCKS = "stages.{s}.blocks.{j}."

_NVIDIA_BACKBONE: Table = {
    _STAGES + "embed.proj": "patch_embed{n}.proj",
    _STAGES + "embed.norm": "patch_embed{n}.norm",
    _BLOCKS + "norm1": "block{n}.{j}.norm1",
    _BLOCKS + "attn.q": "block{n}.{j}.attn.q",
    _BLOCKS + "attn.kv": "block{n}.{j}.attn.kv",
    _BLOCKS + "attn.reduce.conv": "block{n}.{j}.attn.sr",
    _BLOCKS + "attn.reduce.norm": "block{n}.{j}.attn.norm",
    _BLOCKS + "attn.proj": "block{n}.{j}.attn.proj",
    _BLOCKS + "norm2": "block{n}.{j}.norm2",
    _BLOCKS + "ffn.fc1": "block{n}.{j}.mlp.fc1",
    _BLOCKS + "ffn.dwconv": "block{n}.{j}.mlp.dwconv.dwconv",
    _BLOCKS + "ffn.fc2": "block{n}.{j}.mlp.fc2",
    _STAGES + "norm": "norm{n}",
}

NATIVE = Layout("native", marker="stages.0.embed.proj.weight")

NVIDIA = Layout(
    "nvidia",
    marker="patch_embed1.proj.weight",
    backbone=_NVIDIA_BACKBONE,
    decode_head={
        "projections.{s}": "decode_head.linear_c{n}.proj",
        "fuse": "decode_head.linear_fuse.conv",
        "norm": "decode_head.linear_fuse.bn",
        "classifier": "decode_head.linear_pred",
    },
    unused=_CONV_SEG,
)

# The same names; the file cannot tell, so that these two must be asked for.
SITHU = replace(NVIDIA, name="sithu", numerics=Numerics(norm_eps=1e-5))
BUBBLIIIING = replace(NVIDIA, name="bubbliiiing", numerics=Numerics(act="gelu_tanh", batch_norm_eps=1e-3, align_corners=True))

TAO = Layout(
    "tao",
    marker="patch_embed1.proj.weight",
    backbone=_NVIDIA_BACKBONE,
    decode_head={
        "projections.{s}": "decoder.linear_c{n}.proj",
        "fuse": "decoder.linear_fuse.0",
        "norm": "decoder.linear_fuse.1",
        "classifier": "decoder.linear_pred",
    },
    sign="decoder.linear_fuse.0.weight",
    fold=_fold_fuse_bias,
)

SMP = Layout(
    "smp",
    marker="patch_embed1.proj.weight",
    backbone=_NVIDIA_BACKBONE,
    decode_head={
        "projections.{s}": "decoder.mlp_stage.{k}.linear",
        "fuse": "decoder.fuse_stage.0",
        "norm": "decoder.fuse_stage.1",
        "classifier": "segmentation_head.0",
    },
    prefix="encoder.",
    sign="encoder.patch_embed1.proj.weight",
    numerics=Numerics(align_corners=True),
)

HUGGINGFACE = Layout(
    "huggingface",
    marker="encoder.patch_embeddings.0.proj.weight",
    backbone={
        _STAGES + "embed.proj": "encoder.patch_embeddings.{s}.proj",
        _STAGES + "embed.norm": "encoder.patch_embeddings.{s}.layer_norm",
        _BLOCKS + "norm1": "encoder.block.{s}.{j}.layer_norm_1",
        _BLOCKS + "attn.q": "encoder.block.{s}.{j}.attention.self.query",
        _BLOCKS + "attn.kv": ("encoder.block.{s}.{j}.attention.self.key", "encoder.block.{s}.{j}.attention.self.value"),
        _BLOCKS + "attn.reduce.conv": "encoder.block.{s}.{j}.attention.self.sr",
        _BLOCKS + "attn.reduce.norm": "encoder.block.{s}.{j}.attention.self.layer_norm",
        _BLOCKS + "attn.proj": "encoder.block.{s}.{j}.attention.output.dense",
        _BLOCKS + "norm2": "encoder.block.{s}.{j}.layer_norm_2",
        _BLOCKS + "ffn.fc1": "encoder.block.{s}.{j}.mlp.dense1",
        _BLOCKS + "ffn.dwconv": "encoder.block.{s}.{j}.mlp.dwconv.dwconv",
        _BLOCKS + "ffn.fc2": "encoder.block.{s}.{j}.mlp.dense2",
        _STAGES + "norm": "encoder.layer_norm.{s}",
    },
    decode_head={
        "projections.{s}": "decode_head.linear_c.{s}.proj",
        "fuse": "decode_head.linear_fuse",
        "norm": "decode_head.batch_norm",
        "classifier": "decode_head.classifier",
    },
    prefix="segformer.",
    classifier="classifier",
    numerics=Numerics(norm_eps=1e-5),  # all its LayerNorms have PyTorch's default, whatever layer_norm_eps its config states
    expresses=("act",),
)

HUGGINGFACE_IN_MEMORY = replace(  # what transformers 5 calls the modules while they are in use, hence in every saved state_dict()
    HUGGINGFACE,
    name="huggingface_in_memory",
    marker="stages.0.patch_embeddings.proj.weight",
    backbone={
        _STAGES + "embed.proj": "stages.{s}.patch_embeddings.proj",
        _STAGES + "embed.norm": "stages.{s}.patch_embeddings.layer_norm",
        _BLOCKS + "norm1": "stages.{s}.blocks.{j}.layernorm_before",
        _BLOCKS + "attn.q": "stages.{s}.blocks.{j}.attention.q_proj",
        _BLOCKS + "attn.kv": ("stages.{s}.blocks.{j}.attention.k_proj", "stages.{s}.blocks.{j}.attention.v_proj"),
        _BLOCKS + "attn.reduce.conv": "stages.{s}.blocks.{j}.attention.sequence_reduction.sequence_reduction",
        _BLOCKS + "attn.reduce.norm": "stages.{s}.blocks.{j}.attention.sequence_reduction.layer_norm",
        _BLOCKS + "attn.proj": "stages.{s}.blocks.{j}.attention.o_proj",
        _BLOCKS + "norm2": "stages.{s}.blocks.{j}.layernorm_after",
        _BLOCKS + "ffn.fc1": "stages.{s}.blocks.{j}.mlp.fc1",
        _BLOCKS + "ffn.dwconv": "stages.{s}.blocks.{j}.mlp.dwconv.dwconv",
        _BLOCKS + "ffn.fc2": "stages.{s}.blocks.{j}.mlp.fc2",
        _STAGES + "norm": "stages.{s}.layer_norm",
    },
    decode_head={**HUGGINGFACE.decode_head, "projections.{s}": "decode_head.linear_projections.{s}.proj"},
)

MMSEGMENTATION = Layout(
    "mmsegmentation",
    marker="layers.0.0.projection.weight",
    backbone={
        _STAGES + "embed.proj": "layers.{s}.0.projection",
        _STAGES + "embed.norm": "layers.{s}.0.norm",
        _BLOCKS + "norm1": "layers.{s}.1.{j}.norm1",
        (_BLOCKS + "attn.q", _BLOCKS + "attn.kv"): "layers.{s}.1.{j}.attn.attn.in_proj_",
        _BLOCKS + "attn.reduce.conv": "layers.{s}.1.{j}.attn.sr",
        _BLOCKS + "attn.reduce.norm": "layers.{s}.1.{j}.attn.norm",
        _BLOCKS + "attn.proj": "layers.{s}.1.{j}.attn.attn.out_proj",
        _BLOCKS + "norm2": "layers.{s}.1.{j}.norm2",
        _BLOCKS + "ffn.fc1": "layers.{s}.1.{j}.ffn.layers.0",
        _BLOCKS + "ffn.dwconv": "layers.{s}.1.{j}.ffn.layers.1",
        _BLOCKS + "ffn.fc2": "layers.{s}.1.{j}.ffn.layers.4",
        _STAGES + "norm": "layers.{s}.2",
    },
    decode_head={
        "projections.{s}.conv": "decode_head.convs.{s}.conv",
        "projections.{s}.norm": "decode_head.convs.{s}.bn",
        "fuse": "decode_head.fusion_conv.conv",
        "norm": "decode_head.fusion_conv.bn",
        "classifier": "decode_head.conv_seg",
    },
    head="MMSegHead",
    numerics=Numerics(embed_norm_eps=1e-6),
)

# In the order in which a file is tried: what has a sign of its own before what has the marker alone.
LAYOUTS = {
    layout.name: layout for layout in (NATIVE, HUGGINGFACE, HUGGINGFACE_IN_MEMORY, MMSEGMENTATION, TAO, SMP, NVIDIA, SITHU, BUBBLIIIING)
}
