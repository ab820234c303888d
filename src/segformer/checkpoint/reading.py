"""Reading: recognise a layout, infer the model, translate every key, and say what became of each."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from segformer.checkpoint.files import State, WeightFile, open_weights
from segformer.checkpoint.layout import Layout
from segformer.checkpoint.layouts import LAYOUTS
from segformer.checkpoint.report import Report, some
from segformer.checkpoint.segformer_layouts import NATIVE, NVIDIA
from segformer.data.classes import Classes
from segformer.heads import AllMLPHead, MMSegHead
from segformer.mit import MiT

logger = logging.getLogger(__name__)

PARTS: dict[str, Callable[..., nn.Module]] = {"MiT": MiT, "AllMLPHead": AllMLPHead, "MMSegHead": MMSegHead}
# Modules that put themselves between others, and compute nothing of their own.
TRANSPARENT = re.compile(r"(?:(?<=^)|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
CLASSIFIER = "decode_head.classifier.weight"  # what every head of ours calls its last layer
P = TypeVar("P", bound=type[nn.Module])


def part(kind: P) -> P:
    """Class decorator: a backbone or head that files may hold, built again from its ``config``."""
    PARTS[kind.__name__] = kind
    return kind


@dataclass
class Reading:
    """A model in parts, as a file has it."""

    backbone: Any
    decode_head: Any
    classes: Classes
    align_corners: bool
    report: Report

    @property
    def parts(self) -> dict[str, Any]:
        """The arguments of :class:`segformer.SegmentationModel`."""
        return {
            "backbone": self.backbone,
            "decode_head": self.decode_head,
            "classes": self.classes,
            "align_corners": self.align_corners,
        }


def read(
    source: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    in_channels: int | None = None,
    layout: str | None = None,
    strict: bool = True,
    revision: str | None = None,
) -> Reading:
    """Read a model in parts; :meth:`segformer.SegmentationModel.from_pretrained` says of what, and what it raises."""
    file = open_weights(source, revision)
    found, state, report = recognize(file, layout)
    description = (
        found.infer(state, file, num_classes, report) if file.description is None else {"align_corners": False, **file.description}
    )
    with torch.device("meta"):
        wanted = build(description).state_dict()
    all_keys = wanted.keys()
    if file.description is None and not found.has_head(state):
        wanted = {key: tensor for key, tensor in wanted.items() if key.startswith("backbone.")}
    ours = _translate(found, state, wanted, file.path, report, strict)
    # From here on the model is known: what is asked for otherwise is adapted, what has no weights is made.
    reasons = dict.fromkeys(all_keys - ours.keys(), "missing in the file")
    config = description["decode_head"]["config"]
    if num_classes is not None and num_classes != config["num_classes"]:
        for key in [key for key in ours if key.startswith(CLASSIFIER.removesuffix("weight"))]:
            reasons[key] = f"{num_classes} classes were asked for, the file has {config['num_classes']}"
            del ours[key]
        config["num_classes"] = num_classes
        description["classes"] = asdict(Classes.unnamed(num_classes))
    if not any(key.startswith("decode_head.") for key in ours):
        reasons = {key: why for key, why in reasons.items() if not key.startswith("decode_head.")} | {"decode_head.": "the file has none"}
    config = description["backbone"]["config"]
    if in_channels is not None and in_channels != config["in_channels"]:
        stem = _stem(description)
        ours[stem] = _adapted_stem(ours[stem], in_channels, file.path)
        report.add("adapted", stem, f"to {in_channels} channels, the file has {config['in_channels']}")
        config["in_channels"] = in_channels
    with torch.device("meta"):
        model = build(description)
    if reasons:
        for reason in dict.fromkeys(reasons.values()):
            modules = sorted({key.rpartition(".")[0] for key, why in reasons.items() if why == reason})
            report.add("new", modules, f"random weights: {reason}")
        with torch.device("cpu"):
            fresh = build(description).state_dict()
        dtype = next(tensor.dtype for tensor in ours.values() if tensor.is_floating_point())
        ours |= {key: value.to(dtype) if value.is_floating_point() else value for key, value in fresh.items() if key not in ours}
    model.load_state_dict(ours, assign=True)
    _fill_buffers(model, description)
    if report.rows:
        logger.log(logging.INFO if report.is_harmless else logging.WARNING, "%s", report)
    return Reading(model.backbone, model.decode_head, Classes(**description["classes"]), description["align_corners"], report)


def load(model: nn.Module, source: str | os.PathLike[str], *, layout: str | None = None, revision: str | None = None) -> Report:
    """Read a file in any layout into a model that is there; :meth:`segformer.SegmentationModel.load_weights` says how."""
    file = open_weights(source, revision)
    found, state, report = recognize(file, layout)
    ours = _translate(
        found, state, {TRANSPARENT.sub("", key): tensor for key, tensor in model.state_dict().items()}, file.path, report, True
    )
    model.load_state_dict({key: ours[TRANSPARENT.sub("", key)] for key in model.state_dict()})
    return report


def translate_encoder(tensors: State) -> State:
    """The tensors of an encoder in any layout under :class:`MiT`'s names, and its ImageNet classifier, where there is one, as ``head``.

    Raises:
        ValueError: as :func:`read`.
    """
    file = WeightFile(Path("the weights"), tensors)
    layout, state, report = recognize(file)
    classifier = {f"head.{name}": state.get(f"{layout.classifier}.{name}") for name in ("weight", "bias")}
    state = {key: tensor for key, tensor in state.items() if key.startswith(layout.prefix)}
    with torch.device("meta"):
        wanted = build(layout.infer(state, file, 1, report))["backbone"].state_dict(prefix="backbone.")
    ours = _translate(layout, state, wanted, file.path, report, strict=True)
    encoder = {key.removeprefix("backbone."): tensor for key, tensor in ours.items()}
    return encoder | {key: tensor for key, tensor in classifier.items() if tensor is not None}


def build(description: dict[str, Any]) -> Any:
    """The parts of a description under the names they have in a model.

    Raises:
        ValueError: when a part is of a class that this version does not know.
    """
    parts = {}
    for name in ("backbone", "decode_head"):
        part = description[name]
        if part["class"] not in PARTS:
            raise ValueError(f"the file holds a {part['class']}, and this version knows only {', '.join(PARTS)}; install a newer one")
        parts[name] = PARTS[part["class"]](**part["config"])
    return nn.ModuleDict(parts)


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
    tensors = {TRANSPARENT.sub("", key): tensor for key, tensor in file.tensors.items()}
    if len(tensors) < len(file.tensors):
        raise ValueError(f"{str(file.path)!r} holds the same tensor twice, with and without 'module.' in its name; save one of them alone")
    layers = sorted({layer.rstrip(".") for key in file.tensors for layer in TRANSPARENT.findall(key)})
    file = replace(file, tensors=tensors, unwrapped=[*file.unwrapped, *layers])
    for layout in LAYOUTS.values() if name is None else [LAYOUTS[name]]:
        if file.description is not None:
            wrapper, is_whole = next((key for key in file.tensors if "backbone." in key), "").partition("backbone.")[0], True
        elif (model := _model_in(file, layout)) is not None:
            wrapper, is_whole = model
        else:
            continue
        report = Report(str(file.path), layout.name)
        state = {key.removeprefix(wrapper): tensor for key, tensor in file.tensors.items() if key.startswith(wrapper)}
        if not is_whole:  # a backbone alone, where its prefix is left out
            state = {key if key.startswith(f"{layout.classifier}.") else layout.prefix + key: tensor for key, tensor in state.items()}
        if containers := [*file.unwrapped, *([wrapper] if wrapper else [])]:
            report.add("unwrapped", containers, "where the model lay in the file")
        if outside := [key for key in file.tensors if not key.startswith(wrapper)]:
            report.add("dropped", outside, f"outside the model, which is {wrapper!r}")
        if file.others:
            report.add("dropped", file.others, "no tensors")
        unsure = name is None and layout is NVIDIA and not any(key.startswith("decode_head.conv_seg") for key in state)
        if unsure and layout.theirs(CLASSIFIER) in state and file.classes is None:
            report.add("note", "sithu, bubbliiiing", "have these names too, with other numerics: if it is theirs, say so with layout=…")
        if layout is NATIVE and file.description is None and name is None:
            report.add("note", "numerics", "are told by model.save's files alone; these are taken to be NVIDIA's")
        for key, place in layout.fold(state).items():
            report.add("folded", key, place)
        return layout, state, report
    expected = " or ".join(dict.fromkeys(layout.marker for layout in LAYOUTS.values() if name in (None, layout.name)))
    raise ValueError(
        f"{str(file.path)!r} is in {'none of the known layouts' if name is None else f'no {name} layout'}: its first keys are "
        f"{some(file.tensors)}; the names of a SegFormer's tensors would end in {expected}"
    )


def _model_in(file: WeightFile, layout: Layout) -> tuple[str, bool] | None:
    """The prefix under which a model of this layout lies in a file, and whether it is more than its backbone."""
    starts = [key.removesuffix(layout.marker) for key in file.tensors if re.search(rf"(^|\.){re.escape(layout.marker)}$", key)]
    models = {start.removesuffix(layout.prefix): start.endswith(layout.prefix) for start in starts}
    models = {wrapper: whole for wrapper, whole in models.items() if layout.sign is None or wrapper + layout.sign in file.tensors}
    if len(models) > 1:
        averaged = {wrapper: whole for wrapper, whole in models.items() if re.search(r"(^|[._])ema([._]|$)", wrapper)}
        if len(averaged) != 1:
            raise ValueError(f"{str(file.path)!r} holds {len(models)} models, under {some(map(repr, models))}; save one of them alone")
        models = averaged
    return next(iter(models.items()), None)


def _translate(layout: Layout, state: State, wanted: State, path: Path, report: Report, strict: bool) -> State:
    """A state dict in our names, every key accounted for."""
    ours: State = {}
    left = dict(state)
    missing, misshapen = [], []
    for our_keys, their_keys in layout.pairs(wanted):
        found = [left.pop(key) for key in their_keys if key in left]
        if len(found) < len(their_keys):
            if our_keys[0].endswith("num_batches_tracked"):  # only an average without momentum would need it
                ours[our_keys[0]] = torch.zeros((), dtype=torch.int64)
            else:
                missing += [key for key in their_keys if key not in state]
            continue
        try:
            ours |= zip(our_keys, _fitted(found, [wanted[key].shape for key in our_keys]), strict=True)
        except ValueError as error:
            misshapen.append(f"{' + '.join(their_keys)} is {error}")
    reasons = {key: _reason(layout, key) for key in left}
    for reason in dict.fromkeys(filter(None, reasons.values())):
        report.add("dropped", [key for key in left if reasons[key] == reason], reason)
    left_over = [key for key in left if reasons[key] is None]
    problems = [(missing, "missing"), (left_over, "left over")] if strict else []
    told = [f"{len(keys)} {what}: {some(keys)}" for keys, what in (*problems, (misshapen, "of another shape")) if keys]
    if told:
        raise ValueError(f"{str(path)!r} does not fit its layout ({layout.name}): {'; '.join(told)}")
    if left_over:
        report.add("ignored", left_over, "left over, as strict=False allows")
    return ours


def _reason(layout: Layout, key: str) -> str | None:
    """Why a key may be dropped."""
    if key.startswith(f"{layout.classifier}."):
        return "the ImageNet classifier"
    return next((reason for prefix, reason in layout.unused.items() if key.startswith(prefix)), None)


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
    return next(name for name, module in modules if isinstance(module, nn.Conv2d)) + ".weight"


def _adapted_stem(weight: Tensor, in_channels: int, path: Path) -> Tensor:
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels}")
    if weight.shape[1] != 3 and in_channels != 1:
        raise ValueError(f"{str(path)!r} takes {weight.shape[1]} channels; only weights of 3 can be adapted to {in_channels}")
    return weight.sum(1, keepdim=True) if in_channels == 1 else adapt_input_conv(in_channels, weight)
