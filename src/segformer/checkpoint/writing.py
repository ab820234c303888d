"""From a model to a file: this package's own layout, which describes the model, or another one."""

from __future__ import annotations

import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from segformer.checkpoint.descriptions import describe, stated_licence
from segformer.checkpoint.files import read_json
from segformer.checkpoint.formats import METADATA_KEY, State, own_memory
from segformer.checkpoint.huggingface_config import config_of, preprocessor_of
from segformer.checkpoint.layout import Layout
from segformer.checkpoint.parts import build, unwrapped, unwrapped_name
from segformer.checkpoint.segformer_layouts import (
    HUGGINGFACE,
    NATIVE,
    NVIDIA,
    SMP,
    Numerics,
    SegFormerLayout,
)
from segformer.data.classes import Classes
from segformer.data.normalization import IMAGENET
from segformer.networks.initialization import without_values
from segformer.networks.mit import VARIANTS, find_variant, variant_name
from segformer.ops import upsample, with_background

logger = logging.getLogger(__name__)

WRITABLE = {layout.name: layout for layout in (NATIVE, NVIDIA, HUGGINGFACE, SMP)}
OF_STATE_DICTS = (".safetensors", ".pth", ".pt", ".bin")


def save(model: Any, path: str | os.PathLike[str], layout: str = "native") -> None:
    """Writes a model to a file or folder.

    The arguments and errors are those of :meth:`segformer.SegmentationModel.save`.
    """
    if layout not in WRITABLE:
        raise ValueError(f"cannot write the layout {layout!r}; choose one of {', '.join(WRITABLE)}")
    path, target, description = Path(path).expanduser(), WRITABLE[layout], describe(model)
    _check_path(path, target)
    state = state_dict_as(model, target)
    if target in (NVIDIA, SMP):
        _check_variant(description, target)
    if target is not NATIVE:
        _warn_of_numerics(model, target, description)
        _warn_of_lost_properties(model, target, path)
    if not _is_first_process(model):
        return
    if target is HUGGINGFACE:
        _write_folder(path, state, model, description)
    elif path.suffix == ".safetensors":
        is_native = target is NATIVE
        metadata = {METADATA_KEY: json.dumps(description)} if is_native else metadata_of(model)
        _write(path, lambda file: save_file(state, file, metadata))
    else:
        content = {"meta": _meta_of(model), "state_dict": state} if target is NVIDIA else state
        _write(path, lambda file: torch.save(content, file))


def _check_path(path: Path, layout: Layout) -> None:
    """Raises an error if a layout cannot be written to a path."""
    if layout is not HUGGINGFACE and path.suffix not in OF_STATE_DICTS:
        raise ValueError(
            f"the suffix of {str(path)!r} is none of {', '.join(OF_STATE_DICTS)}, which choose the "
            f"file's format; call it {path.stem}.safetensors or {path.stem}.pth"
        )
    if layout is HUGGINGFACE and path.suffix in OF_STATE_DICTS:
        raise ValueError(
            f"{str(path)!r} has the suffix of a file, and the {layout.name} layout is a folder; "
            f"call it {path.stem}"
        )
    if layout is NATIVE and path.suffix != ".safetensors":
        raise ValueError(
            "the native layout is written to safetensors files, which can describe their model; "
            f"call it {path.stem}.safetensors instead of {path.name}"
        )
    check_parent(path)
    if layout is HUGGINGFACE and path.exists() and not path.is_dir():
        raise FileExistsError(
            f"{str(path)!r} is a file; the {layout.name} layout is a folder: choose another name"
        )


def check_parent(path: Path) -> None:
    """Raises FileNotFoundError if the folder that a file is to be written into is missing."""
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"no folder {str(path.parent)!r} to write {path.name!r} into; make it first"
        )


def _check_variant(description: dict[str, Any], layout: Layout) -> None:
    """Raises ValueError for a custom size, which a state dict without a config cannot show."""
    variant = find_variant(description["backbone"]["config"]["variant"])
    if variant_name(variant) is None:
        raise ValueError(
            f"the {layout.name} layout has no place for the sizes of {variant}, which is none of "
            f"{', '.join(VARIANTS)}; save it in the native or huggingface layout"
        )


def _is_first_process(model: nn.Module) -> bool:
    """Returns whether this process writes the file: the first of those that share a model."""
    is_sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    return not is_sharded or torch.distributed.get_rank() == 0


def state_dict_as(model: nn.Module, layout: Layout) -> State:
    """Returns a model's tensors under another layout's names.

    The tensors of a sharded model are gathered from all processes.

    Raises:
        ValueError: If the layout has no place for a tensor, or one is no plain tensor with values.
    """
    ours = own_memory(
        {key: _plain(key, tensor) for key, tensor in unwrapped(model.state_dict()).items()}
    )
    state: State = {}
    for our_keys, their_keys in layout.pairs(ours):
        joined = ours[our_keys[0]]
        if len(our_keys) > 1:
            joined = torch.cat([ours[key] for key in our_keys])
        pieces = joined.chunk(len(their_keys)) if len(their_keys) > 1 else [joined]
        state |= zip(their_keys, pieces, strict=True)
    return state


def _plain(key: str, tensor: Tensor) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # a DTensor
        tensor = tensor.full_tensor()
    if type(tensor) not in (Tensor, nn.Parameter):
        raise ValueError(
            f"{key} is a {type(tensor).__name__}, which no layout has a place for; save the model "
            "before it is quantised, or this one's state_dict() with torch.save"
        )
    if tensor.is_meta:
        raise ValueError(f"{key} is a meta tensor, which has no values; load weights before saving")
    return tensor.detach().contiguous()


def _warn_of_lost_properties(model: Any, layout: Layout, path: Path) -> None:
    """Warns of each property of a model that a layout, in a file of this path, has no place for."""
    normalization, names = model.normalization, model.classes.names
    is_imagenets = normalization == IMAGENET.for_channels(len(normalization.mean))
    if layout is not HUGGINGFACE and not is_imagenets:
        logger.warning(
            "the %s layout has no place for the normalization: its readers use ImageNet's mean and "
            "std, this model %s",
            layout.name,
            normalization,
        )
    if layout is HUGGINGFACE and normalization.to_dict().keys() - {"mean", "std", "scale"}:
        logger.warning(
            "the %s layout has no place for the type, range and bands of images: its readers "
            "normalise without them, this model %s",
            layout.name,
            normalization,
        )
    lost = _lost_of_classes(model.classes, layout, path)
    if lost:
        logger.warning(
            "the %s layout has no place for the classes' %s in such a file; a native file has",
            layout.name,
            lost,
        )
    if layout is SMP and path.suffix != ".safetensors" and stated_licence(model):
        logger.warning(
            "the %s layout has no place for the licence %r in a %s file; a .safetensors file "
            "would state it",
            layout.name,
            model.licence,
            path.suffix,
        )
    is_named = names[0] not in ("background", "class 0")
    if layout is HUGGINGFACE and model.num_classes == 1 and is_named:
        logger.warning(
            "the %s layout has one name for one logit: %r is written, and %r, the name of label 0, "
            "is not",
            layout.name,
            names[1],
            names[0],
        )


def _lost_of_classes(classes: Classes, layout: Layout, path: Path) -> str:
    """Returns what a layout has no place for: names and colours that are not the defaults."""
    has_names = list(classes.names) != list(Classes.of_logits(len(classes)).names)
    has_colors = list(classes.colors) != list(Classes(classes.names).colors)
    holds_both = layout is NVIDIA and path.suffix != ".safetensors"
    lost = {
        "names": has_names and not holds_both and layout is not HUGGINGFACE,
        "colours": has_colors and not holds_both,
    }
    return " and ".join(name for name, is_lost in lost.items() if is_lost)


def _warn_of_numerics(model: Any, layout: SegFormerLayout, description: dict[str, Any]) -> None:
    """Warns of numerics that a layout cannot state, with their effect, measured on noise."""
    numerics = Numerics.of(description)
    stated = {name: getattr(numerics, name) for name in layout.expresses}
    theirs = replace(layout.numerics, **stated)
    lost = numerics.differences(theirs)
    if not lost:
        return
    logits = _logits_of_noise(model, description, (numerics, theirs))
    ours, changed = logits
    labels, changed_labels = (with_background(x).argmax(1) for x in logits)
    changes = (
        f"{name}={getattr(numerics, name)} (it has {getattr(theirs, name)})" for name in lost
    )
    logger.warning(
        "the %s layout has no place for %s: on noise, its readers' logits differ by up to %.1e "
        "(of %.1e), and %.2f %% of their labels",
        layout.name,
        ", ".join(changes),
        (ours - changed).abs().max().item(),
        ours.abs().max().item(),
        100 * (labels != changed_labels).float().mean().item(),
    )


def _logits_of_noise(
    model: Any, description: dict[str, Any], choices: tuple[Numerics, ...]
) -> list[Tensor]:
    """Returns the logits (1, K, H, W) of a model for noise, one tensor for each numerics.

    The noise is 128×128 pixels, or as large as the smallest image that the model takes.
    """
    generator = torch.Generator("cpu")
    state = {key: tensor.cpu().float() for key, tensor in state_dict_as(model, NATIVE).items()}
    logits = []
    for numerics in choices:
        with without_values():
            rebuilt = build(numerics.applied_to(description)).eval()
        rebuilt.load_state_dict(
            {key: state[unwrapped_name(key)] for key in rebuilt.state_dict()}, assign=True
        )
        side = max(128, rebuilt.backbone.min_size)
        shape = (1, rebuilt.backbone.in_channels, side, side)
        images = torch.randn(shape, generator=generator.manual_seed(0), device="cpu")
        with torch.no_grad():
            coarse = rebuilt.decode_head(rebuilt.backbone(images))
            logits.append(upsample(coarse, (side, side), numerics.align_corners))
    return logits


def metadata_of(model: Any) -> dict[str, str]:
    """Returns the metadata of a safetensors file in another layout, with the licence if known."""
    return {"format": "pt", **stated_licence(model)}


def _meta_of(model: Any) -> dict[str, Any]:
    """Returns the classes as mmsegmentation and NVIDIA's code keep them in a checkpoint."""
    classes = model.classes
    return {
        "CLASSES": list(classes.names),
        "PALETTE": [list(color) for color in classes.colors],
        **stated_licence(model),
    }


def _write_folder(path: Path, state: State, model: Any, description: dict[str, Any]) -> None:
    """Writes a folder that transformers reads."""
    path.mkdir(exist_ok=True)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    _write(path / "model.safetensors", lambda file: save_file(state, file, metadata_of(model)))
    _write_json(path / "config.json", config_of(description, dtype))
    preprocessor, newer = preprocessor_of(model.normalization), path / "processor_config.json"
    _write_json(path / "preprocessor_config.json", preprocessor)
    if newer.is_file():  # of an earlier model in this folder; readers prefer it
        _write_json(newer, {**read_json(newer), "image_processor": preprocessor})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    _write(path, lambda file: file.write_text(text, encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a temporary file in the same folder, and renames it to ``path`` once it is complete.

    A symbolic link is kept, and the file that it points to is replaced. An existing file keeps its
    permissions; a new one has those that the process gives to any new file (its umask).

    Raises:
        OSError: If the file cannot be written. The message names it.
    """
    path = Path(os.path.realpath(path))
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            template = path
            if not path.exists():
                template = Path(folder) / "template"
                template.touch()
            temporary = Path(folder) / path.name
            write(temporary)
            os.chmod(temporary, stat.S_IMODE(template.stat().st_mode))
            os.replace(temporary, path)
    # PyTorch raises RuntimeError if the disk is full.
    except (OSError, SafetensorError, RuntimeError) as error:
        kept = " (the previous file is kept)" if path.exists() else ""
        raise OSError(f"cannot write {str(path)!r}: {error}{kept}") from error
