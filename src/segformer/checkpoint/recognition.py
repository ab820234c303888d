"""Which layout a file has, and where in the file the model is."""

from __future__ import annotations

import re
from dataclasses import replace

from segformer.checkpoint.foreign import kind_of_model, kind_of_weights
from segformer.checkpoint.formats import CONTAINERS, State, WeightFile
from segformer.checkpoint.layout import LAST_WEIGHT, Layout
from segformer.checkpoint.layouts import LAYOUTS
from segformer.checkpoint.parts import WRAPPERS, unwrapped
from segformer.checkpoint.report import Report, some
from segformer.checkpoint.segformer_layouts import NATIVE, NVIDIA


def recognize(file: WeightFile, name: str | None = None) -> tuple[Layout, State, Report]:
    """Returns the layout of a file, its tensors as a whole model of that layout, and a report.

    Args:
        file: Content of the file.
        name: Name of the layout, needed if the names of the tensors fit several.

    Raises:
        ValueError: If the layout is unknown, or the file has another one or holds two models.
    """
    if name is not None and name not in LAYOUTS:
        raise ValueError(f"unknown layout {name!r}; choose one of {', '.join(LAYOUTS)}")
    if file.description is None and (changed := kind_of_weights(file.tensors)):
        raise ValueError(f"{str(file.path)!r} is {changed}")
    file = _without_wrappers(file)
    for layout in LAYOUTS.values() if name is None else [LAYOUTS[name]]:
        position = _position_of_model(file, layout)
        if position is not None:
            prefix, is_whole = position
            report = Report(str(file.path), layout.name)
            state = _whole_model(file.tensors, layout, prefix, is_whole)
            _report_surroundings(file, prefix, report)
            if name is None:
                _report_guess(layout, state, file, report)
            for key, result in layout.fold(state).items():
                report.add("folded", key, result)
            return layout, state, report
    raise _unrecognized(file, name)


def _without_wrappers(file: WeightFile) -> WeightFile:
    """Returns a file whose tensors' names are without wrapper modules."""
    tensors = unwrapped(file.tensors)
    if len(tensors) < len(file.tensors):
        raise ValueError(
            f"{str(file.path)!r} holds the same tensor twice, with and without 'module.' in its "
            "name; save only one of them"
        )
    names = {name.rstrip(".") for key in file.tensors for name in WRAPPERS.findall(key)}
    return replace(file, tensors=tensors, unwrapped=[*file.unwrapped, *sorted(names)])


def _position_of_model(file: WeightFile, layout: Layout) -> tuple[str, bool] | None:
    """Returns the prefix of a model's keys in a file, and whether it is more than a backbone.

    None if the file holds no model of this layout.
    """
    if file.description is not None:
        first = next((key for key in file.tensors if "backbone." in key), "")
        return first.partition("backbone.")[0], True
    prefixes = [
        key.removesuffix(layout.marker)
        for key in file.tensors
        if re.search(rf"(^|\.){re.escape(layout.marker)}$", key)
    ]
    models = {
        prefix.removesuffix(layout.prefix): prefix.endswith(layout.prefix) for prefix in prefixes
    }
    if layout.required is not None:
        models = {
            prefix: is_whole
            for prefix, is_whole in models.items()
            if prefix + layout.required in file.tensors
        }
    return _only_model(models, file)


def _only_model(models: dict[str, bool], file: WeightFile) -> tuple[str, bool] | None:
    """Returns the only model, or of several the one of averaged weights."""
    if len(models) > 1:
        averaged = [prefix for prefix in models if re.search(r"(^|[._])ema([._]|$)", prefix)]
        if len(averaged) != 1:
            raise ValueError(
                f"{str(file.path)!r} holds {len(models)} models, under {some(map(repr, models))}; "
                "save only one of them"
            )
        return averaged[0], models[averaged[0]]
    return next(iter(models.items()), None)


def _whole_model(tensors: State, layout: Layout, prefix: str, is_whole: bool) -> State:
    """Returns a model's tensors under the names that they have in a whole model's file."""
    state = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    if is_whole:
        return state
    classifier = f"{layout.classifier}."
    return {
        key if key.startswith(classifier) else layout.prefix + key: tensor
        for key, tensor in state.items()
    }


def _report_surroundings(file: WeightFile, prefix: str, report: Report) -> None:
    read = f"{', '.join(file.unwrapped)} is read"
    if rivals := [name for name in file.beside if name in CONTAINERS]:
        report.add("note", rivals, f"other weights: {read}; save only those that are wanted")
    if others := [name for name in file.beside if name not in CONTAINERS]:
        report.add("dropped", others, f"other tensors: {read}")
    if containers := [*file.unwrapped, *([prefix] if prefix else [])]:
        report.add("unwrapped", containers, "the containers of the model in the file")
    if outside := [key for key in file.tensors if not key.startswith(prefix)]:
        report.add("dropped", outside, f"outside the model, which is {prefix!r}")
    if file.others:
        report.add("dropped", file.others, "not tensors with a name")


def _report_guess(layout: Layout, state: State, file: WeightFile, report: Report) -> None:
    """Reports that the names fit other numerics, too, if the file does not show which it has."""
    is_nvidia = file.classes is not None or any(
        key.startswith("decode_head.conv_seg") for key in state
    )
    if layout is NVIDIA and not is_nvidia and layout.their_key(LAST_WEIGHT) in state:
        report.add(
            "note",
            "sithu, bubbliiiing",
            "these layouts have the same names with other numerics; choose one with layout=…",
        )
    if layout is NATIVE and file.description is None:
        report.add(
            "note",
            "numerics",
            "only files that model.save wrote state them; NVIDIA's are assumed",
        )


def _unrecognized(file: WeightFile, name: str | None) -> ValueError:
    layouts = LAYOUTS.values() if name is None else [LAYOUTS[name]]
    markers = dict.fromkeys(layout.marker for layout in layouts)
    which = "none of the known layouts" if name is None else f"no {name} layout"
    other = kind_of_model(file.tensors)
    return ValueError(
        f"{str(file.path)!r} is in {which}: its first keys are {some(file.tensors)}; "
        f"{f'it looks like {other}; ' if other else ''}"
        f"the names of a SegFormer's tensors would end in {' or '.join(markers)}"
    )
