"""From a model to an exported file, compared with the model before it gets its name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segformer.checkpoint.writing import check_parent
from segformer.deploy.comparison import GATES, Comparison, compare, with_miou
from segformer.deploy.description import Description
from segformer.deploy.exported import Exported
from segformer.deploy.formats import FORMATS, Format, find_format, format_of
from segformer.deploy.graph import INPUTS, OUTPUTS, Graph
from segformer.deploy.quantization import Quantizer


def export(
    model: Any,
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    output: str = "labels",
    input: str = "normalized",
    precision: str = "fp32",
    size: Sequence[int] | None = None,
    batch: int | None = None,
    takes_size: bool = False,
    calibration: Iterable[Tensor] | None = None,
    dataset: Any = None,
    max_drop: float = 0.5,
    overwrite: bool = False,
) -> Comparison:
    """Writes a model as a file for another runtime, and compares both.

    Args:
        model: A :class:`~segformer.SegmentationModel`; it is not changed. Of another type than
            float32, or on another device than the CPU, a copy is exported.
        path: The file, such as ``model.onnx``.
        format: ``"onnx"``, ``"openvino"``, ``"pt2"``, ``"aoti"``, ``"executorch"`` or ``"triton"``;
            by default that of the path's suffix, or ``"onnx"``.
        output: ``"labels"``, uint8 (B, H, W), uint16 for more than 255 classes; ``"logits"`` or
            ``"probabilities"``, float32 (B, K, H, W).
        input: ``"normalized"``, float32 (B, C, H, W), or ``"uint8"``, pixels (B, H, W, C), which
            the graph normalises.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``.
        size: The only height and width that the file takes; by default any.
        batch: The only batch size that the file takes; by default any.
        takes_size: Whether the file has a second input, the height and width of its output.
        calibration: Images that int8 is calibrated on, pixels uint8 (C, H, W) of any size, such as
            a hundred training images; at most 300 are used.
        dataset: Samples (image uint8 (C, H, W), label (H, W)), with ``classes``, on which the mIoU
            of the model and of the file are measured. int8 leaves as many layers in float as
            ``max_drop`` asks for.
        max_drop: The greatest loss of mIoU, in points.
        overwrite: Whether existing files are replaced.

    Returns:
        How the file differs from the model.

    Raises:
        FileExistsError: If the file exists already.
        FileNotFoundError: If its folder does not exist.
        ValueError: If the format, or what is asked of it, is unknown; a package is missing; or the
            file differs more from the model than its precision explains. Nothing is written then.
    """
    _check_copyable(model)
    model = in_float32(model)
    path = Path(path)
    name = format or format_of(path) or "onnx"
    made = find_format(name)
    description = Description.of(
        model,
        input=input,
        output=output,
        precision=precision,
        size=None if size is None else _height_and_width(size),
        batch=batch if made.is_dynamic else batch or 1,
        takes_size=takes_size,
    )
    check_options(description, name)
    check_path(path, made, overwrite)
    if max_drop < 0:
        raise ValueError(f"a loss of mIoU of {max_drop} points; give at least 0")
    write = made.write
    if precision == "int8":
        quantizer = Quantizer(name, calibration, description.channels, dataset, max_drop)
        write = quantizer.write
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        file = Path(folder, path.name)
        write(Graph(model, input, output), file, description)
        exported = Exported(file)
        comparison = checked(compare(exported, model), precision, max_drop)
        if dataset is not None:
            comparison = with_miou(comparison, exported, model, dataset)
            checked(comparison, precision, max_drop)
        for part in sorted(Path(folder).iterdir()):  # the files beside it, too
            _move(part, path.with_name(part.name))
    return comparison


def _check_copyable(model: Any) -> None:
    """Raises ValueError if a layer computes its weight from other tensors, as pruning does."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                raise ValueError(
                    f"{name}.{key} is computed from other tensors, as pruning and weight norm do; "
                    f"make it a parameter first, by torch.nn.utils.prune.remove(module, {key!r}) "
                    "or remove_weight_norm"
                )


def _height_and_width(size: Any) -> tuple[int, int]:
    """Returns a size that is two whole numbers; raises ValueError for any other."""
    is_pair = isinstance(size, Sequence) and len(size) == 2
    if not (is_pair and all(isinstance(length, int) for length in size)):
        raise ValueError(f"size={size!r}; give two whole numbers, height and width in pixels")
    return size[0], size[1]


def in_float32(model: Any) -> Any:
    """Returns a model, or a copy of it, in float32 on the CPU."""
    floats = [x for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()]
    if all(x.dtype == torch.float32 and x.device.type == "cpu" for x in floats):
        return model
    return deepcopy(model).cpu().float()


def _move(source: Path, target: Path) -> None:
    """Moves a file or folder to the place of an earlier one; other files of a folder stay."""
    if not (source.is_dir() and target.is_dir()):
        os.replace(source, target)
        return
    for part in source.iterdir():
        _move(part, target / part.name)


def checked(comparison: Comparison, precision: str, max_drop: float) -> Comparison:
    """Returns a comparison.

    Raises:
        ValueError: If the file differs more from the model than its precision explains.
    """
    if comparison.passes(precision, max_drop):
        return comparison
    raise ValueError(
        f"the exported file differs too much from the model: {comparison}; nothing was written"
    )


def check_options(description: Description, name: str) -> None:
    """Raises ValueError if a format cannot hold what a description asks for."""
    made = FORMATS[name]
    for option, value, known in (
        ("output", description.output, tuple(OUTPUTS)),
        ("input", description.input, INPUTS),
        ("precision", description.precision, tuple(GATES)),
    ):
        if value not in known:
            raise ValueError(f"unknown {option} {value!r}; choose one of {', '.join(known)}")
    if description.precision not in made.precisions:
        raise ValueError(
            f"the format {name} has no precision {description.precision}; choose one of "
            f"{', '.join(made.precisions)}"
        )
    if description.size is None and not made.is_dynamic:
        raise ValueError(f"the format {name} needs a fixed size; pass one, such as --size 512 512")
    if description.takes_size and not made.is_dynamic:
        raise ValueError(f"the format {name} has fixed shapes; export it without --size-input")
    if description.size is not None:
        check_size(description.size, description.min_size)
    if description.input == "uint8" and description.normalization.dtype != "uint8":
        raise ValueError(
            f"the model's images are {description.normalization.dtype}, not uint8; export it with "
            "--input normalized"
        )
    if description.batch is not None and description.batch < 1:
        raise ValueError(f"a batch of {description.batch} images; give at least 1")


def check_size(size: tuple[int, int], smallest: int) -> None:
    """Raises ValueError if a height or width is below the smallest that a network takes."""
    if min(size) < smallest:
        raise ValueError(
            f"a size of {size[0]}×{size[1]} is too small for this network; give at least "
            f"{smallest}×{smallest}"
        )


def check_path(path: Path, made: Format, overwrite: bool) -> None:
    """Raises an error if a file cannot be written to a path."""
    if path.suffix != made.suffix:
        raise ValueError(
            f"{path.name!r} has another suffix than the files of this format; call it "
            f"{path.stem}{made.suffix}"
        )
    if path.is_dir() and format_of(path) is None and any(path.iterdir()):
        raise FileExistsError(
            f"the folder {str(path)!r} holds no exported model that could be replaced; name a new "
            "folder"
        )
    for name in (path, *(path.with_suffix(suffix) for suffix in made.beside)):
        check_target(name, overwrite)


def check_target(path: Path, overwrite: bool) -> None:
    """Raises an error if a file's folder is missing, or the file exists and is to be kept."""
    check_parent(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{str(path)!r} exists already; choose another name, or add --overwrite"
        )
