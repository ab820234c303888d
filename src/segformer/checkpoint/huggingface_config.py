"""The two JSON files of a Hugging Face SegFormer: ``config.json`` and ``preprocessor_config.json``.

They are those of transformers' SegformerForSemanticSegmentation and SegformerImageProcessor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segformer.data.classes import ignore_index
from segformer.data.normalization import IMAGENET, Normalization
from segformer.networks.mit import Variant, find_variant

ACTIVATIONS = {  # this package's name of each of transformers' activations
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
REQUIRED = (
    "hidden_sizes",
    "depths",
    "decoder_hidden_size",
    "num_attention_heads",
    "sr_ratios",
    "mlp_ratios",
    "hidden_act",
)


def read_config(config: dict[str, Any], path: Path) -> tuple[Variant, str]:
    """Returns the sizes and the activation in a ``config.json``.

    Args:
        config: Content of the file.
        path: Path of the weights, for messages.

    Raises:
        ValueError: If a value is missing, or MiT cannot have it.
    """
    missing = [name for name in REQUIRED if name not in config]
    if missing:
        raise ValueError(
            f"the config.json of {str(path)!r} lacks {', '.join(missing)}; is it a SegFormer's?"
        )
    try:
        return _read_sizes(config, path)
    except (TypeError, IndexError) as error:
        raise ValueError(
            f"the config.json of {str(path)!r} has a value of another kind than SegFormer's "
            f"({error}); copy or download it again"
        ) from error


def _read_sizes(config: dict[str, Any], path: Path) -> tuple[Variant, str]:
    if len(set(config["mlp_ratios"])) > 1:
        raise ValueError(
            f"{str(path)!r}: mlp_ratios {config['mlp_ratios']} differ from stage to stage; MiT has "
            "one for all stages"
        )
    for name, fixed in _patch_embeddings(len(config["depths"])).items():
        if list(config.get(name, fixed)) != fixed:
            raise ValueError(f"{str(path)!r}: {name} {config[name]}; MiT's are {fixed}")
    if config["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"{str(path)!r}: hidden_act {config['hidden_act']!r} is none of "
            f"{', '.join(ACTIVATIONS)}"
        )
    dims, depths, decoder_channels, heads, sr_ratios = (config[name] for name in REQUIRED[:5])
    variant = Variant(dims, depths, decoder_channels, heads, sr_ratios, config["mlp_ratios"][0])
    return variant, ACTIVATIONS[config["hidden_act"]]


def read_rates(config: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns each part's rate of drop path or dropout, if a ``config.json`` has it."""
    names = (
        ("backbone", "drop_path", "drop_path_rate"),
        ("decode_head", "dropout", "classifier_dropout_prob"),
    )
    return {
        part: {name: config[key]} if config.get(key) is not None else {}
        for part, name, key in names
    }


def read_normalization(preprocessor: dict[str, Any], path: Path) -> Normalization:
    """Returns the normalization in a ``preprocessor_config.json``, by default SegFormer's own.

    Args:
        preprocessor: Content of the file.
        path: Path of the weights, for messages.

    Raises:
        ValueError: If the values are no valid normalization.
    """

    def value(name: str, default: Any) -> Any:
        return default if preprocessor.get(name) is None else preprocessor[name]

    scale = value("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    mean, std = value("image_mean", IMAGENET.mean), value("image_std", IMAGENET.std)
    if not preprocessor.get("do_normalize", True):  # null is false
        mean, std = 0.0, 1.0
    mean, std = (
        [values] * 3 if isinstance(values, int | float) else values for values in (mean, std)
    )
    try:
        return Normalization(mean, std, scale)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the preprocessor's configuration beside {str(path)!r} is wrong: {error}"
        ) from error


def config_of(description: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Returns the ``config.json`` for a model's description and the precision of its weights."""
    backbone, head = description["backbone"]["config"], description["decode_head"]["config"]
    variant = find_variant(backbone["variant"])
    # With one logit, the only name is that of label 1.
    names = description["classes"]["names"][-head["num_classes"] :]
    return {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        "num_channels": backbone["in_channels"],
        "num_encoder_blocks": len(variant.dims),
        "hidden_sizes": variant.dims,
        "depths": variant.depths,
        "num_attention_heads": variant.heads,
        "sr_ratios": variant.sr_ratios,
        "mlp_ratios": [variant.mlp_ratio] * len(variant.dims),
        **_patch_embeddings(len(variant.dims)),
        "decoder_hidden_size": head["channels"],
        "hidden_act": next(
            theirs for theirs, ours in ACTIVATIONS.items() if ours == backbone["act"]
        ),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": _rate(head["dropout"]),
        "drop_path_rate": backbone["drop_path"],
        "semantic_loss_ignore_index": ignore_index(len(names)),
        "id2label": {str(k): name for k, name in enumerate(names)},
        "label2id": {name: k for k, name in enumerate(names)},
        "dtype": dtype,
    }


def _rate(dropout: Any) -> float:
    """Returns the rate of a head's dropout, of which files may have the layer's class too."""
    return float(dropout[1] if isinstance(dropout, list | tuple) else dropout)


def preprocessor_of(normalization: Normalization) -> dict[str, Any]:
    """Returns the ``preprocessor_config.json`` for a model's normalization."""
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": 512, "width": 512},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": normalization.scale,
        "do_normalize": True,
        "image_mean": normalization.mean,
        "image_std": normalization.std,
        "do_reduce_labels": False,
    }


def _patch_embeddings(stages: int) -> dict[str, list[int]]:
    """Returns the entries of a ``config.json`` for MiT's patch embeddings, which are fixed."""
    return {"patch_sizes": [7] + [3] * (stages - 1), "strides": [4] + [2] * (stages - 1)}
