"""The layouts of SegFormer weights, and the numerics that each was trained with.

In a table, ``{s}`` is the stage and ``{j}`` the block.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from segformer.checkpoint.formats import State, WeightFile, classes_or_none
from segformer.checkpoint.huggingface_config import read_config, read_normalization, read_rates
from segformer.checkpoint.layout import LAST_WEIGHT, BackboneOnlyError, Layout, Table
from segformer.checkpoint.report import Report
from segformer.data.classes import Classes
from segformer.networks.mit import VARIANTS, Variant, variant_name

STEM = "backbone.stages.0.embed.proj.weight"
FUSE = "decode_head.fuse.weight"


@dataclass(frozen=True)
class Numerics:
    """Constants beside the weights that change a model's outputs.

    Args:
        norm_eps: Epsilon of the LayerNorms in the blocks and at the end of a stage.
        embed_norm_eps: Epsilon of the LayerNorms after a patch embedding and after the sequence
            reduction.
        act: Activation in Mix-FFN.
        batch_norm_eps: Epsilon of the decode head's BatchNorm.
        align_corners: How stride-4 logits are upsampled to pixels.
    """

    norm_eps: float = 1e-6
    embed_norm_eps: float = 1e-5
    act: str = "gelu"
    batch_norm_eps: float = 1e-5
    align_corners: bool = False

    @classmethod
    def of(cls, description: dict[str, Any]) -> Numerics:
        """Returns the numerics in a model's description."""
        backbone, head = description["backbone"]["config"], description["decode_head"]["config"]
        return cls(
            backbone["norm_eps"],
            backbone["embed_norm_eps"],
            backbone["act"],
            head["norm_eps"],
            description["align_corners"],
        )

    def applied_to(self, description: dict[str, Any]) -> dict[str, Any]:
        """Returns the description of the same model with these numerics."""
        backbone, head = description["backbone"], description["decode_head"]
        encoder = {
            "norm_eps": self.norm_eps,
            "embed_norm_eps": self.embed_norm_eps,
            "act": self.act,
        }
        return {
            **description,
            "backbone": {**backbone, "config": {**backbone["config"], **encoder}},
            "decode_head": {**head, "config": {**head["config"], "norm_eps": self.batch_norm_eps}},
            "align_corners": self.align_corners,
        }

    def differences(self, other: Numerics) -> list[str]:
        """Returns the names of the values that differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class SegFormerLayout(Layout):
    """A layout of MiT under an all-MLP head.

    Args:
        head: Class name of the decode head whose weights it holds.
        numerics: Numerics that its weights were trained with.
        expresses: Names of the numerics that its files can state.
        has_config: Whether a ``config.json`` beside the weights states sizes and classes.
    """

    head: str = "AllMLPHead"
    numerics: Numerics = Numerics()
    expresses: tuple[str, ...] = ()
    has_config: bool = False

    def infer(
        self, state: State, file: WeightFile, num_classes: int | None, report: Report
    ) -> dict[str, Any]:
        """Sizes come from the shapes, the rest from a Hugging Face config if there is one."""
        config = file.config if self.has_config else None
        if config is None:
            variant, numerics = self._variant(state, file), self.numerics
            rates: dict[str, dict[str, float]] = {"backbone": {}, "decode_head": {}}
        else:
            variant, act = read_config(config, file.path)
            numerics, rates = replace(self.numerics, act=act), read_rates(config)
        if self.has_head(state):
            head, classes = self._head(config, state, file, num_classes, report)
        elif num_classes is None:
            raise BackboneOnlyError(
                f"{str(file.path)!r} holds a backbone without a decode head; pass "
                "num_classes=… (--num-classes) to add a new one"
            )
        else:
            head = {"num_classes": num_classes, "channels": variant.decoder_channels}
            classes = Classes.of_logits(num_classes)
        description = {
            "backbone": {
                "class": "MiT",
                "config": {
                    "variant": variant_name(variant) or asdict(variant),
                    "in_channels": self.shape(STEM, 4, state, file)[1],
                    **rates["backbone"],
                },
            },
            "decode_head": {
                "class": self.head if self.has_head(state) else "AllMLPHead",
                "config": {"in_channels": variant.dims, **head, **rates["decode_head"]},
            },
            "classes": asdict(classes),
        }
        if self.has_config and file.preprocessor is not None:
            description["normalization"] = read_normalization(
                file.preprocessor, file.path
            ).to_dict()
        return numerics.applied_to(description)

    def _head(
        self,
        config: dict[str, Any] | None,
        state: State,
        file: WeightFile,
        num_classes: int | None,
        report: Report,
    ) -> tuple[dict[str, int], Classes]:
        """Returns the sizes of a state dict's decode head, and its classes."""
        channels = self.shape(FUSE, 4, state, file)[0]
        if num_classes and self.their_key(LAST_WEIGHT) not in state:  # a new classifier is made
            known_classes = num_classes
        else:
            known_classes = self.shape(LAST_WEIGHT, 4, state, file)[0]
        classes = _classes(config, file, known_classes, report)
        return {"num_classes": known_classes, "channels": channels}, classes

    def _variant(self, state: State, file: WeightFile) -> Variant:
        """Returns the variant with a state dict's widths and depths; no shape shows the heads."""
        stages = range(self.count("backbone.stages.{}.embed.norm.weight", state))
        dims = tuple(
            self.shape(f"backbone.stages.{s}.embed.proj.weight", 4, state, file)[0] for s in stages
        )
        depths = tuple(
            self.count(f"backbone.stages.{s}.blocks.{{}}.norm1.weight", state) for s in stages
        )
        standard = [v for v in VARIANTS.values() if (v.dims, v.depths) == (dims, depths)]
        if not standard:
            raise ValueError(
                f"{str(file.path)!r} has dims {dims} and depths {depths}, which no variant has, "
                "and shapes do not determine the number of heads; build the model with its "
                "original arguments, and call model.load_weights with this file"
            )
        return standard[0]


def _classes(
    config: dict[str, Any] | None, file: WeightFile, num_classes: int, report: Report
) -> Classes:
    """Returns the classes that a file or its config names, or unnamed ones."""
    names = (config or {}).get("id2label")
    classes = file.classes
    if isinstance(names, dict) and all(str(key).isdigit() for key in names):
        classes = classes_or_none([names[key] for key in sorted(names, key=int)], [])
    if classes is not None and classes.fit(num_classes):
        return classes
    if names or file.classes:
        report.add("dropped", "class names", f"they are not {num_classes} different names")
    return Classes.of_logits(num_classes)


def _fold_fuse_bias(state: State) -> dict[str, str]:
    """Folds the bias before BatchNorm, which this package's head lacks: it only shifts the mean."""
    bias, mean = "decoder.linear_fuse.0.bias", "decoder.linear_fuse.1.running_mean"
    if bias not in state or mean not in state:
        return {}
    state[mean] = state[mean] - state.pop(bias)
    return {bias: "into the running mean of the BatchNorm after it"}


_CONV_SEG = {
    "decode_head.conv_seg.": "mmsegmentation's default classifier, which this head does not use"
}
_STAGES = "stages.{s}."
_BLOCKS = "stages.{s}.blocks.{j}."
_REDUCTION = "stages.{s}.blocks.{j}.attention.sequence_reduction."

_NVIDIA_BACKBONE: Table = {
    _STAGES + "embed.proj": "patch_embed{s+1}.proj",
    _STAGES + "embed.norm": "patch_embed{s+1}.norm",
    _BLOCKS + "norm1": "block{s+1}.{j}.norm1",
    _BLOCKS + "attn.q": "block{s+1}.{j}.attn.q",
    _BLOCKS + "attn.kv": "block{s+1}.{j}.attn.kv",
    _BLOCKS + "attn.reduce.conv": "block{s+1}.{j}.attn.sr",
    _BLOCKS + "attn.reduce.norm": "block{s+1}.{j}.attn.norm",
    _BLOCKS + "attn.proj": "block{s+1}.{j}.attn.proj",
    _BLOCKS + "norm2": "block{s+1}.{j}.norm2",
    _BLOCKS + "ffn.fc1": "block{s+1}.{j}.mlp.fc1",
    _BLOCKS + "ffn.dwconv": "block{s+1}.{j}.mlp.dwconv.dwconv",
    _BLOCKS + "ffn.fc2": "block{s+1}.{j}.mlp.fc2",
    _STAGES + "norm": "norm{s+1}",
}

NATIVE = SegFormerLayout("native", marker="stages.0.embed.proj.weight")

NVIDIA = SegFormerLayout(
    "nvidia",
    marker="patch_embed1.proj.weight",
    backbone=_NVIDIA_BACKBONE,
    decode_head={
        "projections.{s}": "decode_head.linear_c{s+1}.proj",
        "fuse": "decode_head.linear_fuse.conv",
        "norm": "decode_head.linear_fuse.bn",
        "classifier": "decode_head.linear_pred",
    },
    unused=_CONV_SEG,
)

# These two have the same names as NVIDIA's, so that only layout=… distinguishes them.
SITHU = replace(NVIDIA, name="sithu", numerics=Numerics(norm_eps=1e-5))
BUBBLIIIING = replace(
    NVIDIA,
    name="bubbliiiing",
    numerics=Numerics(act="gelu_tanh", batch_norm_eps=1e-3, align_corners=True),
)

TAO = SegFormerLayout(
    "tao",
    marker="patch_embed1.proj.weight",
    backbone=_NVIDIA_BACKBONE,
    decode_head={
        "projections.{s}": "decoder.linear_c{s+1}.proj",
        "fuse": "decoder.linear_fuse.0",
        "norm": "decoder.linear_fuse.1",
        "classifier": "decoder.linear_pred",
    },
    required="decoder.linear_fuse.0.weight",
    fold=_fold_fuse_bias,
)

SMP = SegFormerLayout(
    "smp",
    marker="patch_embed1.proj.weight",
    backbone=_NVIDIA_BACKBONE,
    decode_head={
        "projections.{s}": "decoder.mlp_stage.{3-s}.linear",
        "fuse": "decoder.fuse_stage.0",
        "norm": "decoder.fuse_stage.1",
        "classifier": "segmentation_head.0",
    },
    prefix="encoder.",
    required="encoder.patch_embed1.proj.weight",
    numerics=Numerics(align_corners=True),
)

HUGGINGFACE = SegFormerLayout(
    "huggingface",
    marker="encoder.patch_embeddings.0.proj.weight",
    backbone={
        _STAGES + "embed.proj": "encoder.patch_embeddings.{s}.proj",
        _STAGES + "embed.norm": "encoder.patch_embeddings.{s}.layer_norm",
        _BLOCKS + "norm1": "encoder.block.{s}.{j}.layer_norm_1",
        _BLOCKS + "attn.q": "encoder.block.{s}.{j}.attention.self.query",
        _BLOCKS + "attn.kv": (
            "encoder.block.{s}.{j}.attention.self.key",
            "encoder.block.{s}.{j}.attention.self.value",
        ),
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
    has_config=True,
    # All its LayerNorms have PyTorch's default epsilon; layer_norm_eps in its config is not used.
    numerics=Numerics(norm_eps=1e-5),
    expresses=("act",),
)

# The modules' names in the models of transformers 5, hence in a state_dict() of one.
HUGGINGFACE_IN_MEMORY = replace(
    HUGGINGFACE,
    name="huggingface_in_memory",
    marker="stages.0.patch_embeddings.proj.weight",
    backbone={
        _STAGES + "embed.proj": "stages.{s}.patch_embeddings.proj",
        _STAGES + "embed.norm": "stages.{s}.patch_embeddings.layer_norm",
        _BLOCKS + "norm1": "stages.{s}.blocks.{j}.layernorm_before",
        _BLOCKS + "attn.q": "stages.{s}.blocks.{j}.attention.q_proj",
        _BLOCKS + "attn.kv": (
            "stages.{s}.blocks.{j}.attention.k_proj",
            "stages.{s}.blocks.{j}.attention.v_proj",
        ),
        _BLOCKS + "attn.reduce.conv": _REDUCTION + "sequence_reduction",
        _BLOCKS + "attn.reduce.norm": _REDUCTION + "layer_norm",
        _BLOCKS + "attn.proj": "stages.{s}.blocks.{j}.attention.o_proj",
        _BLOCKS + "norm2": "stages.{s}.blocks.{j}.layernorm_after",
        _BLOCKS + "ffn.fc1": "stages.{s}.blocks.{j}.mlp.fc1",
        _BLOCKS + "ffn.dwconv": "stages.{s}.blocks.{j}.mlp.dwconv.dwconv",
        _BLOCKS + "ffn.fc2": "stages.{s}.blocks.{j}.mlp.fc2",
        _STAGES + "norm": "stages.{s}.layer_norm",
    },
    decode_head={
        **HUGGINGFACE.decode_head,
        "projections.{s}": "decode_head.linear_projections.{s}.proj",
    },
)

MMSEGMENTATION = SegFormerLayout(
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
