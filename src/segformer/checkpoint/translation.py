"""From the tensors of a layout to those of a model of this package. Every key is accounted for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from segformer.checkpoint.formats import State
from segformer.checkpoint.layout import Layout
from segformer.checkpoint.report import Report, some

# Reasons why keys are dropped, by the keys' prefixes, in files of any layout.
UNUSED = {
    "auxiliary_head": "for a loss that only training computes",
    "classification_head.": "smp's classifier of whole images",
    "n_averaged": "how many models torch.optim.swa_utils.AveragedModel is the average of",
}


def translate(
    layout: Layout, state: State, expected: State, path: Path, report: Report, strict: bool
) -> State:
    """Returns the tensors of a state dict under the names of this package.

    Args:
        layout: Layout of the state dict.
        state: Tensors by the layout's names.
        expected: Tensors of the model, whose names, shapes and types are needed.
        path: Path of the file, for messages.
        report: Dropped and ignored keys are added to it.
        strict: Whether missing tensors and keys without a reason to drop them are errors.

    Raises:
        ValueError: If a shape or type differs, or with ``strict`` a key is missing or left over.
    """
    tensors: State = {}
    rest = dict(state)
    missing: list[str] = []
    misfits: list[str] = []
    for our_keys, their_keys in layout.pairs(expected):
        found = [rest.pop(key) for key in their_keys if key in rest]
        if len(found) == len(their_keys):
            try:
                tensors |= _converted(found, {key: expected[key] for key in our_keys})
            except ValueError as error:
                misfits.append(f"{' + '.join(their_keys)} is {error}")
        elif our_keys[0].endswith("num_batches_tracked"):
            # Only a running average without momentum would need it.
            tensors[our_keys[0]] = torch.zeros((), dtype=torch.int64)
        else:
            missing += [key for key in their_keys if key not in state]
    left_over = _drop_unused(layout, rest, report)
    problems = [(missing, "missing"), (left_over, "left over")] if strict else []
    _check_none([*problems, (misfits, "of another shape or type")], layout, path)
    if left_over:
        report.add("ignored", left_over, "left over, as strict=False allows")
    return tensors


def _drop_unused(layout: Layout, rest: State, report: Report) -> list[str]:
    """Reports the keys that are dropped for a reason; returns the others."""
    reasons = {key: _reason_to_drop(layout, key) for key in rest}
    for reason in dict.fromkeys(filter(None, reasons.values())):
        report.add("dropped", [key for key in rest if reasons[key] == reason], reason)
    return [key for key in rest if reasons[key] is None]


def _reason_to_drop(layout: Layout, key: str) -> str | None:
    if key in (f"{layout.classifier}.weight", f"{layout.classifier}.bias"):
        return "the ImageNet classifier"
    unused = {**UNUSED, **layout.unused}
    return next((reason for prefix, reason in unused.items() if key.startswith(prefix)), None)


def _check_none(problems: list[tuple[list[str], str]], layout: Layout, path: Path) -> None:
    found = [f"{len(keys)} {problem}: {some(keys)}" for keys, problem in problems if keys]
    if found:
        raise ValueError(
            f"{str(path)!r} does not fit its layout ({layout.name}): {'; '.join(found)}"
        )


def _converted(found: list[Tensor], expected: State) -> State:
    """Returns the tensors of one row of a layout's table as this package has them.

    Raises:
        ValueError: With the shape or type found and expected, if they differ.
    """
    wanted = list(expected.values())
    tensors = _resized(_checked_type(found, wanted[0]), [tensor.shape for tensor in wanted])
    return dict(zip(expected, tensors, strict=True))


def _checked_type(found: list[Tensor], expected: Tensor) -> list[Tensor]:
    """Returns floating-point tensors as they are, and counters in the type expected.

    Raises:
        ValueError: If weights are integers.
    """
    if not expected.is_floating_point():
        return [tensor.to(expected.dtype) for tensor in found]
    for tensor in found:
        if not tensor.is_floating_point():
            raise ValueError(f"of {dtype_name(tensor.dtype)}, not of {dtype_name(expected.dtype)}")
    return found


def _resized(found: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
    """Concatenates tensors and splits them into these shapes.

    Only trailing dimensions of 1 may differ, as between a linear layer and a 1×1 convolution.
    """
    joined = torch.cat(found) if len(found) > 1 else found[0]
    if len(shapes) == 1:
        if _squeezed(joined.shape) != _squeezed(shapes[0]):
            raise ValueError(f"{tuple(joined.shape)}, not {tuple(shapes[0])}")
        return [joined.reshape(shapes[0])]
    lengths = [shape[0] for shape in shapes]
    expected = (sum(lengths), *shapes[0][1:])
    if tuple(joined.shape) != expected:
        raise ValueError(f"{tuple(joined.shape)}, not {expected}")
    return [piece.clone() for piece in joined.split(lengths)]


def _squeezed(shape: torch.Size) -> tuple[int, ...]:
    return tuple(shape[:2]) if all(length == 1 for length in shape[2:]) else tuple(shape)


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
