"""Reading: recognise a layout, infer the model, translate every key, and say what became of each."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from segformer.checkpoint.files import State, WeightFile, open_weights
from segformer.checkpoint.foreign import kind_of_model, kind_of_weights
from segformer.checkpoint.layout import Layout
from segformer.checkpoint.layouts import LAYOUTS
from segformer.checkpoint.report import Report, some
from segformer.checkpoint.segformer_layouts import NATIVE, NVIDIA
from segformer.data.classes import Classes
from segformer.data.normalization import IMAGENET, Normalization
from segformer.networks.all_mlp import AllMLPHead, MMSegHead
from segformer.networks.convolutional import ConvolutionalMiT, LinearHead
from segformer.networks.mit import MiT, find_variant
from segformer.networks.setr import MLAHead, NaiveHead, PUPHead
from segformer.networks.timm_backbone import TimmBackbone

logger = logging.getLogger(__name__)

# The backbones and heads that files hold, by the name of their class.
PARTS: dict[str, Callable[..., nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(MiT, AllMLPHead, MMSegHead),
        *(TimmBackbone, NaiveHead, PUPHead, MLAHead),
        *(ConvolutionalMiT, LinearHead),
    )
}
# Modules that put themselves between others, and compute nothing of their own.
TRANSPARENT = re.compile(
    r"(?:(?<=^)|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
CLASSIFIER = "decode_head.classifier.weight"  # what every head of ours calls its last layer
# Keys, by their beginnings, that belong to no model of ours, in files of any layout.
UNUSED = {
    "auxiliary_head": "for a loss that only training reads",
    "classification_head.": "smp's classifier of whole images",
    "n_averaged": "how many models torch.optim.swa_utils.AveragedModel is the average of",
}
P = TypeVar("P", bound=type[nn.Module])
T = TypeVar("T")


def unwrapped(state: dict[str, T]) -> dict[str, T]:
    """The same under names without the modules that only put themselves between others."""
    return {TRANSPARENT.sub("", key): value for key, value in state.items()}


def part(kind: P) -> P:
    """Class decorator: a backbone or head that files may hold, built again from its ``config``.

    Where its arguments could make it read other files, its classmethod ``checked_config`` takes a
    config as a file states it, and returns one that does not, or raises ValueError.
    """
    PARTS[kind.__name__] = kind
    return kind


@dataclass
class Reading:
    """A model in parts, as a file has it."""

    backbone: Any
    decode_head: Any
    classes: Classes
    align_corners: bool
    normalization: Normalization
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
    """Read a model in parts; :meth:`segformer.SegmentationModel.from_pretrained` says of what, and what it raises."""
    file = open_weights(source, **hub)
    found, state, report = recognize(file, layout)
    description = describe_file(found, state, file, num_classes, report)
    with torch.device("meta"):
        wanted = unwrapped(build(description).state_dict())
    all_keys = wanted.keys()
    if file.description is None and not found.has_head(state):
        wanted = {key: tensor for key, tensor in wanted.items() if key.startswith("backbone.")}
    ours = _translate(found, state, wanted, file.path, report, strict)
    ours = _in_one_precision(ours, dtype, report)
    # From here on the model is known: what is asked for otherwise is adapted, what has no weights is made.
    reasons = dict.fromkeys(all_keys - ours.keys(), "missing in the file")
    config = description["decode_head"]["config"]
    if num_classes is not None and num_classes != config["num_classes"]:
        for key in [key for key in ours if key.startswith(CLASSIFIER.removesuffix("weight"))]:
            reasons[key] = (
                f"{num_classes} classes were asked for, the file has {config['num_classes']}"
            )
            del ours[key]
        config["num_classes"] = num_classes
        description["classes"] = asdict(Classes.of_logits(num_classes))
    if not any(key.startswith("decode_head.") for key in ours):
        reasons = {
            key: why for key, why in reasons.items() if not key.startswith("decode_head.")
        } | {"decode_head.": "the file has none"}
    config = description["backbone"]["config"]
    if in_channels is not None and in_channels != config["in_channels"]:
        stem = _stem(description)
        ours[stem] = _adapted_stem(ours[stem], in_channels, file.path)
        report.add(
            "adapted", stem, f"to {in_channels} channels, the file has {config['in_channels']}"
        )
        config["in_channels"] = in_channels
    normalization = _normalization(description, report)
    with torch.device("meta"):
        model = build(description)
    if reasons:
        for reason in dict.fromkeys(reasons.values()):
            modules = sorted(
                {key.rpartition(".")[0] for key, why in reasons.items() if why == reason}
            )
            report.add("new", modules, f"random weights: {reason}")
        with torch.device("cpu"):
            fresh = unwrapped(build(description).state_dict())
        precision = next(tensor.dtype for tensor in ours.values() if tensor.is_floating_point())
        ours |= {
            key: value.to(precision) if value.is_floating_point() else value
            for key, value in fresh.items()
            if key not in ours
        }
    named = {key: ours[TRANSPARENT.sub("", key)] for key in model.state_dict()}
    model.load_state_dict(named, assign=True)
    _fill_buffers(model, description)
    if report.rows:
        logger.log(logging.INFO if report.is_harmless else logging.WARNING, "%s", report)
    classes = _built(Classes, description["classes"])
    return Reading(
        model.backbone,
        model.decode_head,
        classes,
        description["align_corners"],
        normalization,
        report,
    )


def load(
    model: nn.Module, source: str | os.PathLike[str], *, layout: str | None = None, **hub: Any
) -> Report:
    """Read a file in any layout into a model that is there; :meth:`segformer.SegmentationModel.load_weights` says how."""
    file = open_weights(source, **hub)
    found, state, report = recognize(file, layout)
    told = _told(found, state, file, report)
    ours = _translate(found, state, unwrapped(model.state_dict()), file.path, report, True)
    model.load_state_dict({key: ours[TRANSPARENT.sub("", key)] for key in model.state_dict()})
    if told is not None:
        _warn_of_other_numerics(model, told, file)
    return report


def _told(layout: Layout, state: State, file: WeightFile, report: Report) -> dict[str, Any] | None:
    """The description of a file's model, where the file or its layout tells the numerics."""
    if file.description is not None:
        return describe_file(layout, state, file, None, report)
    if layout is NATIVE:
        return None
    with suppress(ValueError):  # no head, or sizes that no layout tells: the model has them
        return describe_file(layout, state, file, None, report)
    return None


# What a config says that shapes tell too, or that only training reads.
_NO_NUMERICS = {
    *("in_channels", "num_classes", "channels", "name", "img_size"),
    *("drop_path", "drop_path_rate", "dropout"),
}


def _warn_of_other_numerics(model: Any, told: dict[str, Any], file: WeightFile) -> None:
    """Say by what a model would compute otherwise than the one whose weights it was given."""
    unseen = _NO_NUMERICS if file.description or file.config else _NO_NUMERICS | {"heads"}
    changes = []
    for name in ("backbone", "decode_head"):
        part, config = getattr(model, name), told[name]["config"]
        part = getattr(part, "_orig_mod", part)
        own = getattr(part, "config", None)
        if type(part).__name__ != told[name]["class"] or not isinstance(own, dict):
            continue
        ours, theirs = (json.loads(json.dumps(_with_heads(values))) for values in (own, config))
        changes += [
            f"{key}={theirs[key]} (this model has {ours[key]})"
            for key in sorted(ours.keys() & theirs.keys() - unseen)
            if ours[key] != theirs[key]
        ]
    theirs = _normalization(told, None)
    for key, value, own in (
        ("align_corners", told["align_corners"], getattr(model, "align_corners", None)),
        ("normalization", theirs, getattr(model, "normalization", None)),
    ):
        if own is not None and own != value:
            changes.append(f"{key}={value} (this model has {own})")
    if changes:
        logger.warning(
            "the weights of %r were trained with other numerics than this model's, which keeps its "
            "own: %s; from_pretrained builds a model with the file's",
            str(file.path),
            ", ".join(changes),
        )


def _with_heads(config: dict[str, Any]) -> dict[str, Any]:
    """A config with its variant's heads in the variant's place; shapes tell the other sizes."""
    if "variant" not in config:
        return config
    variant = find_variant(config["variant"])
    return {key: value for key, value in config.items() if key != "variant"} | {
        "heads": variant.heads
    }


def describe_file(
    layout: Layout,
    state: State,
    file: WeightFile,
    num_classes: int | None,
    report: Report,
) -> dict[str, Any]:
    """The description of a file's model: its own, checked, or as its layout infers it.

    Raises:
        ValueError: when the file's own is broken or asks for more than a model, and as
            :meth:`Layout.infer`.
    """
    if file.description is None:
        return layout.infer(state, file, num_classes, report)
    description = {"align_corners": False, **file.description}
    try:
        return checked(description)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{str(file.path)!r} describes its model wrongly ({type(error).__name__}: {error}); copy or download it again"
        ) from error
    except ValueError as error:
        raise ValueError(f"{str(file.path)!r}: {error}") from error


def checked(description: dict[str, Any]) -> dict[str, Any]:
    """A description whose parts' configs have been checked by the parts' classes.

    Raises:
        ValueError: as ``checked_config`` of the parts.
    """
    parts = {}
    for name in ("backbone", "decode_head"):
        kind, config = _kind(description[name]["class"]), dict(description[name]["config"])
        check = getattr(kind, "checked_config", dict)
        parts[name] = {"class": description[name]["class"], "config": check(config)}
    return {**description, **parts}


def _normalization(description: dict[str, Any], report: Report | None) -> Normalization:
    """A description's normalization, or ImageNet's, for the channels that its model takes."""
    told = description.get("normalization")
    normalization = IMAGENET if told is None else _built(Normalization, told)
    channels = description["backbone"]["config"].get("in_channels", len(normalization.mean))
    if told is not None and channels != len(normalization.mean) and report is not None:
        reason = f"to {channels} channels: the mean of {len(normalization.mean)}"
        report.add("adapted", "normalization", reason)
    return normalization.for_channels(channels)


def _built(kind: Callable[..., T], arguments: Any) -> T:
    """A part of a description.

    Raises:
        ValueError: when the arguments are none of its class.
    """
    try:
        return kind(**arguments)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"the description builds no {getattr(kind, '__name__', kind)}: {error}"
        ) from error


def _in_one_precision(state: State, dtype: torch.dtype | None, report: Report) -> State:
    """All floating-point tensors in one precision: the one asked for, or the widest of the file.

    Eight-bit numbers, in which nothing is computed, are read as the widest of the others, or as
    float32.
    """
    found = {key: tensor.dtype for key, tensor in state.items() if tensor.is_floating_point()}
    kinds = dict.fromkeys(found.values())
    wide = [kind for kind in kinds if kind.itemsize > 1]
    wanted = dtype or reduce(torch.promote_types, wide, wide[0] if wide else torch.float32)
    changed = [key for key, kind in found.items() if kind != wanted]
    if changed and dtype is None:
        counts = ", ".join(f"{list(found.values()).count(kind)} of {_name(kind)}" for kind in kinds)
        reason = (
            f"the file's tensors ({counts}) are read as {_name(wanted)}; dtype=… chooses another"
        )
        report.add("note", "precision", reason)
    return state | {key: state[key].to(wanted) for key in changed}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def translate_encoder(tensors: State) -> tuple[State, dict[str, Any]]:
    """The tensors of an encoder in any layout under :class:`MiT`'s names, and MiT's arguments for it.

    An ImageNet classifier, where there is one, is ``head``. The layout's numerics are among the
    arguments.

    Raises:
        ValueError: as :func:`read`.
    """
    file = WeightFile(Path("the weights"), tensors)
    layout, state, report = recognize(file)
    classifier = {
        f"head.{name}": state.get(f"{layout.classifier}.{name}") for name in ("weight", "bias")
    }
    state = {key: tensor for key, tensor in state.items() if key.startswith(layout.prefix)}
    description = layout.infer(state, file, 1, report)
    with torch.device("meta"):
        wanted = build(description)["backbone"].state_dict(prefix="backbone.")
    ours = _translate(layout, state, wanted, file.path, report, strict=True)
    encoder = {key.removeprefix("backbone."): tensor for key, tensor in ours.items()}
    if not report.is_harmless:
        logger.warning("%s", report)
    head = {key: tensor for key, tensor in classifier.items() if tensor is not None}
    return encoder | head, description["backbone"]["config"]


def build(description: dict[str, Any]) -> Any:
    """The parts of a description under the names they have in a model.

    Raises:
        ValueError: when a part is of a class that this version does not know.
    """
    parts = ("backbone", "decode_head")
    told = {name: description[name] for name in parts}
    return nn.ModuleDict({name: _built(_kind(d["class"]), d["config"]) for name, d in told.items()})


def _kind(name: str) -> Callable[..., nn.Module]:
    if name not in PARTS:
        known = ", ".join(PARTS)
        raise ValueError(
            f"the file holds a {name}, and this version knows only {known}; install a newer one"
        )
    return PARTS[name]


def recognize(file: WeightFile, name: str | None = None) -> tuple[Layout, State, Report]:
    """The layout of a file, and its tensors as a whole model of that layout has them.

    Args:
        file: what :func:`open_weights` found.
        name: the layout, where the names alone cannot tell it.

    Raises:
        ValueError: when the layout is unknown, or the file is in another, in none, or holds two models.
    """
    if name is not None and name not in LAYOUTS:
        raise ValueError(f"unknown layout {name!r}; choose one of {', '.join(LAYOUTS)}")
    if file.description is None and (changed := kind_of_weights(file.tensors)):
        raise ValueError(f"{str(file.path)!r} is {changed}")
    tensors = unwrapped(file.tensors)
    if len(tensors) < len(file.tensors):
        raise ValueError(
            f"{str(file.path)!r} holds the same tensor twice, with and without 'module.' in its name; save one of them alone"
        )
    layers = sorted(
        {layer.rstrip(".") for key in file.tensors for layer in TRANSPARENT.findall(key)}
    )
    file = replace(file, tensors=tensors, unwrapped=[*file.unwrapped, *layers])
    for layout in LAYOUTS.values() if name is None else [LAYOUTS[name]]:
        if file.description is not None:
            wrapper, is_whole = (
                next((key for key in file.tensors if "backbone." in key), "").partition(
                    "backbone."
                )[0],
                True,
            )
        elif (model := _model_in(file, layout)) is not None:
            wrapper, is_whole = model
        else:
            continue
        report = Report(str(file.path), layout.name)
        state = {
            key.removeprefix(wrapper): tensor
            for key, tensor in file.tensors.items()
            if key.startswith(wrapper)
        }
        if not is_whole:  # a backbone alone, where its prefix is left out
            state = {
                key if key.startswith(f"{layout.classifier}.") else layout.prefix + key: tensor
                for key, tensor in state.items()
            }
        if containers := [*file.unwrapped, *([wrapper] if wrapper else [])]:
            report.add("unwrapped", containers, "where the model lay in the file")
        if outside := [key for key in file.tensors if not key.startswith(wrapper)]:
            report.add("dropped", outside, f"outside the model, which is {wrapper!r}")
        if file.others:
            report.add("dropped", file.others, "no tensors")
        unsure = (
            name is None
            and layout is NVIDIA
            and not any(key.startswith("decode_head.conv_seg") for key in state)
        )
        if unsure and layout.theirs(CLASSIFIER) in state and file.classes is None:
            report.add(
                "note",
                "sithu, bubbliiiing",
                "have these names too, with other numerics: if it is theirs, say so with layout=…",
            )
        if layout is NATIVE and file.description is None and name is None:
            report.add(
                "note",
                "numerics",
                "are told by model.save's files alone; these are taken to be NVIDIA's",
            )
        for key, place in layout.fold(state).items():
            report.add("folded", key, place)
        return layout, state, report
    other = kind_of_model(file.tensors)
    expected = " or ".join(
        dict.fromkeys(layout.marker for layout in LAYOUTS.values() if name in (None, layout.name))
    )
    raise ValueError(
        f"{str(file.path)!r} is in {'none of the known layouts' if name is None else f'no {name} layout'}: its first keys are "
        f"{some(file.tensors)}; {f'it looks like {other}; ' if other else ''}"
        f"the names of a SegFormer's tensors would end in {expected}"
    )


def _model_in(file: WeightFile, layout: Layout) -> tuple[str, bool] | None:
    """The prefix under which a model of this layout lies in a file, and whether it is more than its backbone."""
    starts = [
        key.removesuffix(layout.marker)
        for key in file.tensors
        if re.search(rf"(^|\.){re.escape(layout.marker)}$", key)
    ]
    models = {start.removesuffix(layout.prefix): start.endswith(layout.prefix) for start in starts}
    models = {
        wrapper: whole
        for wrapper, whole in models.items()
        if layout.sign is None or wrapper + layout.sign in file.tensors
    }
    if len(models) > 1:
        averaged = {
            wrapper: whole
            for wrapper, whole in models.items()
            if re.search(r"(^|[._])ema([._]|$)", wrapper)
        }
        if len(averaged) != 1:
            raise ValueError(
                f"{str(file.path)!r} holds {len(models)} models, under {some(map(repr, models))}; save one of them alone"
            )
        models = averaged
    return next(iter(models.items()), None)


def _translate(
    layout: Layout, state: State, wanted: State, path: Path, report: Report, strict: bool
) -> State:
    """A state dict in our names, every key accounted for."""
    ours: State = {}
    left = dict(state)
    missing, misshapen = [], []
    for our_keys, their_keys in layout.pairs(wanted):
        found = [left.pop(key) for key in their_keys if key in left]
        if len(found) < len(their_keys):
            if our_keys[0].endswith(
                "num_batches_tracked"
            ):  # only an average without momentum would need it
                ours[our_keys[0]] = torch.zeros((), dtype=torch.int64)
            else:
                missing += [key for key in their_keys if key not in state]
            continue
        try:
            found = _of_type(found, wanted[our_keys[0]])
            ours |= zip(
                our_keys, _fitted(found, [wanted[key].shape for key in our_keys]), strict=True
            )
        except ValueError as error:
            misshapen.append(f"{' + '.join(their_keys)} is {error}")
    reasons = {key: _reason(layout, key) for key in left}
    for reason in dict.fromkeys(filter(None, reasons.values())):
        report.add("dropped", [key for key in left if reasons[key] == reason], reason)
    left_over = [key for key in left if reasons[key] is None]
    problems = [(missing, "missing"), (left_over, "left over")] if strict else []
    told = [
        f"{len(keys)} {what}: {some(keys)}"
        for keys, what in (*problems, (misshapen, "of another shape or type"))
        if keys
    ]
    if told:
        raise ValueError(
            f"{str(path)!r} does not fit its layout ({layout.name}): {'; '.join(told)}"
        )
    if left_over:
        report.add("ignored", left_over, "left over, as strict=False allows")
    return ours


def _reason(layout: Layout, key: str) -> str | None:
    """Why a key may be dropped."""
    if key.startswith(f"{layout.classifier}."):
        return "the ImageNet classifier"
    unused = {**UNUSED, **layout.unused}
    return next((reason for prefix, reason in unused.items() if key.startswith(prefix)), None)


def _of_type(theirs: list[Tensor], ours: Tensor) -> list[Tensor]:
    """Floating-point numbers as they are, and whole numbers, which only counters are, as ours.

    Raises:
        ValueError: when weights are whole numbers.
    """
    if not ours.is_floating_point():
        return [tensor.to(ours.dtype) for tensor in theirs]
    for tensor in theirs:
        if not tensor.is_floating_point():
            raise ValueError(f"of {_name(tensor.dtype)}, not of {_name(ours.dtype)}")
    return theirs


def _fitted(theirs: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
    """Their tensors joined and split into ours, where at most trailing dimensions of 1 may differ."""

    def squeezed(shape: torch.Size) -> tuple[int, ...]:
        return tuple(shape[:2]) if all(side == 1 for side in shape[2:]) else tuple(shape)

    joined = torch.cat(theirs) if len(theirs) > 1 else theirs[0]
    if len(shapes) == 1:
        if squeezed(joined.shape) != squeezed(shapes[0]):
            raise ValueError(f"{tuple(joined.shape)}, not {tuple(shapes[0])}")
        return [joined.reshape(shapes[0])]
    sizes = [shape[0] for shape in shapes]
    if tuple(joined.shape) != (sum(sizes), *shapes[0][1:]):
        raise ValueError(f"{tuple(joined.shape)}, not {(sum(sizes), *shapes[0][1:])}")
    return [part.clone() for part in joined.split(sizes)]


def _fill_buffers(model: nn.Module, description: dict[str, Any]) -> None:
    """Tables that a module computes when it is built, and no file holds, as a model built with memory has them."""
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if not empty:
        return
    with torch.device("cpu"):
        buffers = dict(build(description).named_buffers())
    for name in empty:
        module, _, buffer = name.rpartition(".")
        setattr(model.get_submodule(module), buffer, buffers[name])


def _stem(description: dict[str, Any]) -> str:
    """The key of the backbone's first convolution."""
    with torch.device("meta"):
        modules = build(description).backbone.named_modules(prefix="backbone")
    stem = next(name for name, module in modules if isinstance(module, nn.Conv2d))
    return TRANSPARENT.sub("", f"{stem}.weight")


def _adapted_stem(weight: Tensor, in_channels: int, path: Path) -> Tensor:
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels}")
    if weight.shape[1] != 3 and in_channels != 1:
        raise ValueError(
            f"{str(path)!r} takes {weight.shape[1]} channels; only weights of 3 can be adapted to {in_channels}"
        )
    return (
        weight.sum(1, keepdim=True) if in_channels == 1 else adapt_input_conv(in_channels, weight)
    )
