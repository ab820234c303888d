"""From a file in any layout to a model, or to the weights of one that is built already."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from segformer.checkpoint.comparison import warn_of_other_numerics
from segformer.checkpoint.descriptions import normalization_of
from segformer.checkpoint.files import open_weights
from segformer.checkpoint.formats import DOWNLOAD_AGAIN, State, WeightFile
from segformer.checkpoint.layout import CLASSIFIER, LAST_WEIGHT, Layout
from segformer.checkpoint.parts import build, checked, construct, unwrapped, unwrapped_name
from segformer.checkpoint.recognition import recognize
from segformer.checkpoint.report import Report
from segformer.checkpoint.segformer_layouts import NATIVE
from segformer.checkpoint.translation import dtype_name, translate
from segformer.data.classes import Classes
from segformer.data.normalization import Normalization
from segformer.networks.initialization import without_values

logger = logging.getLogger(__name__)


@dataclass
class Reading:
    """A model in parts, as a file has it, and what happened to the file's keys."""

    backbone: Any
    decode_head: Any
    classes: Classes
    align_corners: bool
    normalization: Normalization
    licence: str | None
    report: Report

    @property
    def parts(self) -> dict[str, Any]:
        """The arguments of :class:`segformer.SegmentationModel`."""
        return {
            "backbone": self.backbone,
            "decode_head": self.decode_head,
            "classes": self.classes,
            "align_corners": self.align_corners,
            "normalization": self.normalization,
            "licence": self.licence,
        }


def read(
    source: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    in_channels: int | None = None,
    layout: str | None = None,
    strict: bool = True,
    dtype: torch.dtype | None = None,
    **hub: Any,
) -> Reading:
    """Returns the model of a file in parts.

    The arguments and errors are those of :meth:`segformer.SegmentationModel.from_pretrained`.
    """
    file = open_weights(source, **hub)
    found, state, report = recognize(file, layout)
    description = describe_file(found, state, file, num_classes, report)
    expected = _tensors_of(description)
    reasons = dict.fromkeys(expected, "missing in the file")  # why tensors get random weights
    if file.description is None and not found.has_head(state):
        expected = {key: value for key, value in expected.items() if key.startswith("backbone.")}
    has_classifier = LAST_WEIGHT not in expected or found.their_key(LAST_WEIGHT) in state
    if num_classes is not None and not has_classifier:  # a new one is made
        expected = {key: value for key, value in expected.items() if not key.startswith(CLASSIFIER)}
    tensors = translate(found, state, expected, file.path, report, strict)
    tensors = _in_one_precision(tensors, dtype, report)
    if num_classes is not None:
        reasons |= _replace_classifier(description, tensors, num_classes)
    if not any(key.startswith("decode_head.") for key in tensors):
        reasons = {key: reason for key, reason in reasons.items() if key.startswith("backbone.")}
        reasons["decode_head."] = "the file has none"
    if in_channels is not None:
        _adapt_stem(description, tensors, in_channels, file.path, report)
    normalization = normalization_of(description, report)
    new = {key: reason for key, reason in reasons.items() if key not in tensors}
    model = _assembled(description, tensors, new, report)
    if report.rows:
        logger.log(logging.INFO if report.is_harmless else logging.WARNING, "%s", report)
    return Reading(
        model.backbone,
        model.decode_head,
        construct(Classes, description["classes"]),
        description["align_corners"],
        normalization,
        description.get("licence", file.licence),
        report,
    )


def load(
    model: nn.Module, source: str | os.PathLike[str], *, layout: str | None = None, **hub: Any
) -> Report:
    """Loads the weights of a file into a model; returns what happened to the file's keys.

    The licence that is stated with the weights becomes the model's ``licence``; None if none is.

    The arguments and errors are those of :meth:`segformer.SegmentationModel.load_weights`.
    """
    file = open_weights(source, **hub)
    found, state, report = recognize(file, layout)
    description = _stated_description(found, state, file, report)
    tensors = translate(found, state, unwrapped(model.state_dict()), file.path, report, strict=True)
    model.load_state_dict({key: tensors[unwrapped_name(key)] for key in model.state_dict()})
    if description is not None:
        warn_of_other_numerics(model, description, file)
    licence: Any = (description or {}).get("licence", file.licence)
    model.licence = licence
    return report


def translate_encoder(tensors: State) -> tuple[State, dict[str, Any]]:
    """Returns an encoder's tensors under :class:`MiT`'s names, and MiT's arguments for it.

    The arguments include the layout's numerics. An ImageNet classifier, if there is one, is
    ``head``.

    Args:
        tensors: Tensors of the encoder in any layout.

    Raises:
        ValueError: If the layout is unknown or a tensor does not fit it.
    """
    file = WeightFile(Path("the weights"), tensors)
    layout, state, report = recognize(file)
    classifier = {
        f"head.{name}": state[key]
        for name in ("weight", "bias")
        if (key := f"{layout.classifier}.{name}") in state
    }
    state = {key: tensor for key, tensor in state.items() if key.startswith(layout.prefix)}
    description = layout.infer(state, file, 1, report)
    expected = {
        key: tensor
        for key, tensor in _tensors_of(description).items()
        if key.startswith("backbone.")
    }
    ours = translate(layout, state, expected, file.path, report, strict=True)
    encoder = {key.removeprefix("backbone."): tensor for key, tensor in ours.items()}
    if not report.is_harmless:
        logger.warning("%s", report)
    return encoder | classifier, description["backbone"]["config"]


def describe_file(
    layout: Layout,
    state: State,
    file: WeightFile,
    num_classes: int | None,
    report: Report,
) -> dict[str, Any]:
    """Returns the description of a file's model: its own, checked, or as its layout infers it.

    Raises:
        ValueError: If the file's own is broken or would make the model read other files, and as
            :meth:`Layout.infer`.
    """
    if file.description is None:
        return layout.infer(state, file, num_classes, report)
    try:
        return checked({"align_corners": False, **file.description})
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{str(file.path)!r} describes its model wrongly ({type(error).__name__}: {error}); "
            f"{DOWNLOAD_AGAIN}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{str(file.path)!r}: {error}") from error


def _tensors_of(description: dict[str, Any]) -> State:
    """Returns the tensors of a description's model, on the meta device: names, shapes and types."""
    with without_values():
        return unwrapped(build(description).state_dict())


def _in_one_precision(state: State, dtype: torch.dtype | None, report: Report) -> State:
    """Returns all floating-point tensors in one precision: ``dtype``, or the widest of the file.

    PyTorch does not compute in eight-bit floats. They are read as the widest of the other types, or
    as float32.
    """
    found = {key: tensor.dtype for key, tensor in state.items() if tensor.is_floating_point()}
    kinds = dict.fromkeys(found.values())
    wide = [kind for kind in kinds if kind.itemsize > 1]
    wanted = dtype or reduce(torch.promote_types, wide, wide[0] if wide else torch.float32)
    changed = [key for key, kind in found.items() if kind != wanted]
    if changed and dtype is None:
        counts = ", ".join(
            f"{list(found.values()).count(kind)} of {dtype_name(kind)}" for kind in kinds
        )
        report.add(
            "note",
            "precision",
            f"the file's tensors ({counts}) are read as {dtype_name(wanted)}; "
            "dtype=… chooses another",
        )
    return state | {key: state[key].to(wanted) for key in changed}


def _replace_classifier(
    description: dict[str, Any], tensors: State, num_classes: int
) -> dict[str, str]:
    """Drops the classifier if it is for another number of classes; returns why, by key."""
    config = description["decode_head"]["config"]
    if num_classes == config["num_classes"]:
        return {}
    reason = f"num_classes={num_classes}, but the file has {config['num_classes']} classes"
    dropped = [key for key in tensors if key.startswith(CLASSIFIER)]
    for key in dropped:
        del tensors[key]
    config["num_classes"] = num_classes
    description["classes"] = asdict(Classes.of_logits(num_classes))
    return dict.fromkeys(dropped, reason)


def _adapt_stem(
    description: dict[str, Any], tensors: State, in_channels: int, path: Path, report: Report
) -> None:
    """Changes the first convolutions' weights to another number of image channels.

    Some backbones have several side by side. If the file does not have them, they are new and
    random anyway.
    """
    config = description["backbone"]["config"]
    known = config["in_channels"]
    if in_channels == known:
        return
    before = _tensors_of(description)
    config["in_channels"] = in_channels
    for key, tensor in _tensors_of(description).items():
        if key in tensors and key in before and tensor.shape != before[key].shape:
            tensors[key] = _adapted(tensors[key], in_channels, path)
            report.add("adapted", key, f"to {in_channels} channels, the file has {known}")


def _adapted(weight: Tensor, in_channels: int, path: Path) -> Tensor:
    """Sums a convolution's weights over its channels (to one), or repeats and scales them."""
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels}")
    if weight.shape[1] != 3 and in_channels != 1:
        raise ValueError(
            f"{str(path)!r} takes {weight.shape[1]} channels; only weights of 3 can be adapted to "
            f"{in_channels}; pass in_channels=1, or use such weights"
        )
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return adapt_input_conv(in_channels, weight)


def _assembled(
    description: dict[str, Any], tensors: State, new: dict[str, str], report: Report
) -> Any:
    """Returns the parts of a description with these tensors, and random weights for the others.

    Args:
        description: Description of the model.
        tensors: Tensors from the file.
        new: Why the other tensors are not from the file, by their keys.
        report: The new tensors are added to it.
    """
    with without_values():
        model = build(description)
    if new:
        _report_new(new, report)
        tensors = _random_tensors(description, tensors) | tensors
    model.load_state_dict(
        {key: tensors[unwrapped_name(key)] for key in model.state_dict()}, assign=True
    )
    _fill_buffers(model, description)
    return model


def _report_new(new: dict[str, str], report: Report) -> None:
    for reason in dict.fromkeys(new.values()):
        modules = sorted({key.rpartition(".")[0] for key, why in new.items() if why == reason})
        report.add("new", modules, f"random weights: {reason}")


def _random_tensors(description: dict[str, Any], tensors: State) -> State:
    """Returns a new model's tensors, in the precision of those from the file."""
    with torch.device("cpu"):
        fresh = unwrapped(build(description).state_dict())
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    return {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in fresh.items()
    }


def _fill_buffers(model: nn.Module, description: dict[str, Any]) -> None:
    """Fills the buffers that modules compute when they are built, and that no file holds."""
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if not empty:
        return
    with torch.device("cpu"):
        buffers = dict(build(description).named_buffers())
    for name in empty:
        module, _, buffer = name.rpartition(".")
        setattr(model.get_submodule(module), buffer, buffers[name])


def _stated_description(
    layout: Layout, state: State, file: WeightFile, report: Report
) -> dict[str, Any] | None:
    """Returns the description of a file's model if the file or its layout states its numerics."""
    if file.description is not None:
        return describe_file(layout, state, file, None, report)
    if layout is NATIVE:
        return None
    # Raised if there is no head, or no shape shows the sizes. The model that is loaded has both.
    with suppress(ValueError):
        return describe_file(layout, state, file, None, report)
    return None
