"""A summary of a checkpoint or of a named model, in lines of text."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from segformer.checkpoint import BackboneOnlyError, Numerics, Reading, describe, read
from segformer.data.classes import Classes
from segformer.evaluation.multiply_adds import multiply_adds
from segformer.evaluation.names import build_named, is_name
from segformer.models import SegFormer, SegmentationModel
from segformer.networks.initialization import without_values
from segformer.ops import plain

SHOWN = 6  # names of classes


def summarize(
    source: str | os.PathLike[str], size: tuple[int, int] = (512, 512), **options: Any
) -> str:
    """Returns the layout, variant, classes, costs, numerics and dropped tensors of a checkpoint.

    Args:
        source: File, folder or Hugging Face id, or a name of :func:`build_named`.
        size: Height and width of the image for which multiply-adds are counted.
        options: Further arguments of :func:`segformer.checkpoint.read`.

    Raises:
        OSError: If the source cannot be read.
        ValueError: If its layout is not known, or its tensors do not fit the layout.
    """
    if is_name(source):
        return _text(os.fspath(source), _rows(without_weights(source, **options), size))
    try:
        reading = read(source, **options)
    except BackboneOnlyError:
        reading = read(source, **{**options, "num_classes": 1})
        return _text(reading.report.source, _rows_of_backbone(reading))
    rows = {"layout": reading.report.layout, **_rows(SegFormer.compose(**reading.parts), size)}
    report = [f"{event:15}{subject}: {reason}" for event, subject, reason in reading.report.rows]
    return "\n".join([_text(reading.report.source, rows), *report])


def without_weights(source: str | os.PathLike[str], **options: Any) -> SegmentationModel:
    """Returns a model on the meta device, where its shapes are known and its weights are not.

    The arguments and errors are those of :func:`summarize`.
    """
    if not is_name(source):
        return SegFormer.compose(**read(source, **options).parts).to("meta")
    name, sizes = os.fspath(source), ("num_classes", "in_channels")
    for option, value in options.items():
        if option not in sizes and value is not None:
            raise ValueError(
                f"{option}={value!r} is for checkpoints, and {name!r} is the name of a model; "
                f"remove {option}"
            )
    with without_values():
        return build_named(name, *map(options.get, sizes))


def _rows_of_backbone(reading: Reading) -> dict[str, str]:
    return {
        "layout": reading.report.layout,
        "variant": reading.backbone.config["variant"],
        "decode head": "none",
        "parameters": f"{_parameters(reading.backbone):,}",
        "licence": reading.licence or "not stated",
    }


def _rows(model: SegmentationModel, size: tuple[int, int]) -> dict[str, str]:
    description = describe(model)
    backbone, head = description["backbone"]["config"], description["decode_head"]
    return {
        "variant": _variant(backbone),
        "decode head": f"{head['class']}, {head['config']['channels']} channels",
        "image channels": str(backbone["in_channels"]),
        "classes": _names(model.classes),
        "parameters": f"{_parameters(model):,} ({next(model.parameters()).dtype})",
        "multiply-adds": _multiply_adds(model, size),
        "numerics": _numerics(description),
        "normalization": str(model.normalization),
        "licence": model.licence or "not stated",
    }


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _multiply_adds(model: SegmentationModel, size: tuple[int, int]) -> str:
    try:
        fewest = multiply_adds(model, *size)
        with plain():
            by_definition = multiply_adds(model, *size)
    except ValueError as error:  # a model for images of another size
        return f"not counted, {error}"
    fewer = f", {fewest / 1e9:.1f} G by the faster implementations"
    found = f"{by_definition / 1e9:.1f} G at {size[0]}×{size[1]}"
    return found + fewer if fewest < by_definition else found


def _names(classes: Classes) -> str:
    names = ", ".join(classes.names[:SHOWN]) + (", …" if len(classes) > SHOWN else "")
    return f"{len(classes)}: {names}"


def _variant(config: dict[str, Any]) -> str:
    """Returns the name of a backbone, or its sizes if it has no name."""
    name = config.get("variant", config.get("name", config.get("dims")))
    return name if isinstance(name, str) else f"custom, {name}"


def _numerics(description: dict[str, Any]) -> str:
    """Returns the settings with which the same weights give other outputs."""
    if description["backbone"]["class"] == "MiT":
        return str(Numerics.of(description))
    config = {**description["backbone"]["config"], **description["decode_head"]["config"]}
    names = ("positions", "fit", "norm_eps", "scales", "kernel_size")
    settings = {name: config[name] for name in names if name in config}
    settings["align_corners"] = config.get("align_corners", description["align_corners"])
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _text(source: str, rows: dict[str, str]) -> str:
    lines = [source, *(f"{name:15}{value}" for name, value in rows.items())]
    return "\n".join(lines)
