"""The layouts of SegFormer weights, and the numerics that each was trained with.

In a row ``{s}`` is the stage, ``{j}`` the block.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from segformer.checkpoint.files import State, WeightFile, named
from segformer.checkpoint.layout import BackboneOnlyError, Layout, Table
from segformer.checkpoint.report import Report
from segformer.data.classes import Classes
from segformer.data.normalization import IMAGENET, Normalization
from segformer.networks.mit import VARIANTS, Variant, variant_name

STEM = "backbone.stages.0.embed.proj.weight"
FUSE = "decode_head.fuse.weight"
CLASSIFIER = "decode_head.classifier.weight"
HUGGINGFACE_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


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
        return cls(
            backbone["norm_eps"],
            backbone["embed_norm_eps"],
            backbone["act"],
            head["norm_eps"],
            description["align_corners"],
        )

    def applied_to(self, description: dict[str, Any]) -> dict[str, Any]:
        """The description of the same model with these numerics."""
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
        """The names of what differs."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class SegFormerLayout(Layout):
    """A layout of MiT under an all-MLP head.

    Args:
        head: the class of the decode head that its weights fit.
        numerics: what its weights were trained with.
        expresses: those of the numerics that its files can say otherwise.
        has_config: whether a ``config.json`` beside the weights tells sizes and classes.
    """

    head: str = "AllMLPHead"
    numerics: Numerics = Numerics()
    expresses: tuple[str, ...] = ()
    has_config: bool = False

    def infer(
        self, state: State, file: WeightFile, num_classes: int | None, report: Report
    ) -> dict[str, Any]:
        """Sizes from the shapes, the rest from a Hugging Face config where there is one."""
        config = file.config if self.has_config else None
        rates: dict[str, dict[str, float]] = {"backbone": {}, "decode_head": {}}
        numerics = self.numerics
        if config is not None:
            variant, act, rates = _read_config(config, file.path)
            numerics = replace(numerics, act=act)
        else:
            variant = self._variant(state, file)
        if self.has_head(state):
            head_class, channels = self.head, self.shape(FUSE, 4, state, file)[0]
            is_headless = num_classes and self.theirs(CLASSIFIER) not in state
            known_classes = (
                num_classes if is_headless else self.shape(CLASSIFIER, 4, state, file)[0]
            )
            classes = _classes(config, file, known_classes, report)  # type: ignore[arg-type]
        elif num_classes is not None:
            head_class, known_classes, channels = (
                "AllMLPHead",
                num_classes,
                variant.decoder_channels,
            )
            classes = Classes.of_logits(num_classes)
        else:
            raise BackboneOnlyError(
                f"{str(file.path)!r} holds a backbone without a decode head; ask for a new one with num_classes=…"
            )
        in_channels = self.shape(STEM, 4, state, file)[1]
        description = {
            "backbone": {
                "class": "MiT",
                "config": {
                    "variant": variant_name(variant) or asdict(variant),
                    "in_channels": in_channels,
                    **rates["backbone"],
                },
            },
            "decode_head": {
                "class": head_class,
                "config": {
                    "in_channels": variant.dims,
                    "num_classes": known_classes,
                    "channels": channels,
                    **rates["decode_head"],
                },
            },
            "classes": asdict(classes),
        }
        if self.has_config and file.preprocessor is not None:
            description["normalization"] = asdict(_normalization(file.preprocessor, file.path))
        return numerics.applied_to(description)

    def _variant(self, state: State, file: WeightFile) -> Variant:
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
                f"{str(file.path)!r} has dims {dims} and depths {depths}, which no variant has; its number of heads cannot be read off"
            )
        return standard[0]


def huggingface_embeddings(stages: int) -> dict[str, list[int]]:
    """What a Hugging Face config says of MiT's patch embeddings."""
    return {"patch_sizes": [7] + [3] * (stages - 1), "strides": [4] + [2] * (stages - 1)}


def _read_config(
    config: dict[str, Any], path: Path
) -> tuple[Variant, str, dict[str, dict[str, float]]]:
    """The sizes in a Hugging Face config, the activation, and each part's rate of drop_path or dropout where it is told."""
    needed = (
        "hidden_sizes",
        "depths",
        "decoder_hidden_size",
        "num_attention_heads",
        "sr_ratios",
        "mlp_ratios",
        "hidden_act",
    )
    absent = [name for name in needed if name not in config]
    if absent:
        raise ValueError(
            f"the config.json of {str(path)!r} lacks {', '.join(absent)}; is it a SegFormer's?"
        )
    if len(set(config["mlp_ratios"])) > 1:
        raise ValueError(
            f"{str(path)!r}: mlp_ratios {config['mlp_ratios']} differ from stage to stage; MiT has one for all"
        )
    for name, fixed in huggingface_embeddings(len(config["depths"])).items():
        if list(config.get(name, fixed)) != fixed:
            raise ValueError(f"{str(path)!r}: {name} {config[name]}; MiT's are {fixed}")
    if config["hidden_act"] not in HUGGINGFACE_ACTIVATIONS:
        known = ", ".join(HUGGINGFACE_ACTIVATIONS)
        raise ValueError(f"{str(path)!r}: hidden_act {config['hidden_act']!r} is none of {known}")
    dims, depths, decoder_channels, heads, sr_ratios = (config[name] for name in needed[:5])
    variant = Variant(dims, depths, decoder_channels, heads, sr_ratios, config["mlp_ratios"][0])
    told = (
        ("backbone", "drop_path", "drop_path_rate"),
        ("decode_head", "dropout", "classifier_dropout_prob"),
    )
    rates = {
        part: {name: config[key]} if config.get(key) is not None else {} for part, name, key in told
    }
    return variant, HUGGINGFACE_ACTIVATIONS[config["hidden_act"]], rates


def _normalization(preprocessor: dict[str, Any], path: Path) -> Normalization:
    """What a Hugging Face preprocessor does to pixels; what it does not say is as in SegFormer's own.

    Raises:
        ValueError: naming the folder, when the values are none.
    """

    def told(name: str, default: Any) -> Any:
        return default if preprocessor.get(name) is None else preprocessor[name]

    scale = told("rescale_factor", 1 / 255) if told("do_rescale", True) else 1.0
    mean, std = told("image_mean", IMAGENET.mean), told("image_std", IMAGENET.std)
    if not told("do_normalize", True):
        mean, std = 0.0, 1.0
    mean, std = ([value] * 3 if isinstance(value, int | float) else value for value in (mean, std))
    try:
        return Normalization(mean, std, scale)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the preprocessor's configuration beside {str(path)!r} is wrong: {error}"
        ) from error


def _classes(
    config: dict[str, Any] | None, file: WeightFile, num_classes: int, report: Report
) -> Classes:
    names = (config or {}).get("id2label")
    classes = file.classes
    if isinstance(names, dict) and all(str(key).isdigit() for key in names):
        classes = named([names[key] for key in sorted(names, key=int)], [])
    if classes is not None and classes.fit(num_classes):
        return classes
    if names or file.classes:
        report.add("dropped", "class names", f"they are not {num_classes} different ones")
    return Classes.of_logits(num_classes)


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

# The same names; the file cannot tell, so that these two must be asked for.
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
    sign="decoder.linear_fuse.0.weight",
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
    sign="encoder.patch_embed1.proj.weight",
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
    numerics=Numerics(
        norm_eps=1e-5
    ),  # all its LayerNorms have PyTorch's default, whatever layer_norm_eps its config states
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
        _BLOCKS + "attn.kv": (
            "stages.{s}.blocks.{j}.attention.k_proj",
            "stages.{s}.blocks.{j}.attention.v_proj",
        ),
        _BLOCKS
        + "attn.reduce.conv": "stages.{s}.blocks.{j}.attention.sequence_reduction.sequence_reduction",
        _BLOCKS
        + "attn.reduce.norm": "stages.{s}.blocks.{j}.attention.sequence_reduction.layer_norm",
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
