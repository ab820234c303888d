"""The differences between a model's numerics and those that a file's weights were trained with."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from segformer.checkpoint.descriptions import normalization_of
from segformer.checkpoint.formats import WeightFile
from segformer.networks.mit import find_variant

logger = logging.getLogger(__name__)

# Entries of a config that shapes determine, too, or that only training uses.
NOT_NUMERICS = {
    *("in_channels", "num_classes", "channels", "name", "img_size"),
    *("drop_path", "drop_path_rate", "dropout"),
}


def warn_of_other_numerics(model: Any, description: dict[str, Any], file: WeightFile) -> None:
    """Warns if the weights were trained with other numerics than the model's."""
    differences = [
        *_config_differences(model, description, file),
        *_model_differences(model, description),
    ]
    if differences:
        logger.warning(
            "the weights of %r were trained with other numerics than this model's, which keeps its "
            "own: %s; from_pretrained builds a model with the file's",
            str(file.path),
            ", ".join(differences),
        )


def _config_differences(model: Any, description: dict[str, Any], file: WeightFile) -> list[str]:
    states_heads = file.description or file.config
    ignored = NOT_NUMERICS if states_heads else NOT_NUMERICS | {"heads"}
    differences = []
    for name in ("backbone", "decode_head"):
        part = getattr(model, name)
        part = getattr(part, "_orig_mod", part)
        config = getattr(part, "config", None)
        if type(part).__name__ != description[name]["class"] or not isinstance(config, Mapping):
            continue
        configs = (dict(config), description[name]["config"])
        ours, theirs = (json.loads(json.dumps(_with_heads(values))) for values in configs)
        differences += [
            f"{key}={theirs[key]} (this model has {ours[key]})"
            for key in sorted(ours.keys() & theirs.keys() - ignored)
            if ours[key] != theirs[key]
        ]
    return differences


def _with_heads(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with its variant's attention heads; shapes determine the other sizes."""
    if "variant" not in config:
        return config
    rest = {key: value for key, value in config.items() if key != "variant"}
    return rest | {"heads": find_variant(config["variant"]).heads}


def _model_differences(model: Any, description: dict[str, Any]) -> list[str]:
    stated = {
        "align_corners": description["align_corners"],
        "normalization": normalization_of(description),
    }
    own = {name: getattr(model, name, None) for name in stated}
    return [
        f"{name}={value} (this model has {own[name]})"
        for name, value in stated.items()
        if own[name] is not None and own[name] != value
    ]
