"""Writing: our own self-describing file, and the layouts of others."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from segformer.checkpoint.files import METADATA_KEY, State
from segformer.checkpoint.layout import Layout
from segformer.checkpoint.reading import PARTS, TRANSPARENT, build, checked, logger, unwrapped
from segformer.checkpoint.report import some
from segformer.checkpoint.segformer_layouts import (
    HUGGINGFACE,
    HUGGINGFACE_ACTIVATIONS,
    NATIVE,
    NVIDIA,
    SMP,
    Numerics,
    SegFormerLayout,
    huggingface_embeddings,
)
from segformer.data.classes import ignore_index
from segformer.data.normalization import IMAGENET, Normalization
from segformer.networks.mit import VARIANTS, find_variant, variant_name
from segformer.ops import upsample

LAYOUTS = {layout.name: layout for layout in (NATIVE, NVIDIA, HUGGINGFACE, SMP)}
WRITABLE = tuple(LAYOUTS)


def describe(model: Any) -> dict[str, Any]:
    """What builds the same :class:`~segformer.SegmentationModel` again, JSON-able.

    Raises:
        ValueError: when a part is of a class that could not be built again, or the model is no longer
            what its parts' ``config`` says: a layer was replaced, wrapped, pruned, quantised or changed.
    """
    parts: dict[str, Any] = {}
    for name in ("backbone", "decode_head"):
        part = getattr(model, name)
        part = getattr(part, "_orig_mod", part)  # compiled
        kind = _unsharded(type(part))
        class_name = kind.__name__
        if PARTS.get(class_name) is not kind:
            raise ValueError(
                f"a {name} of class {class_name} cannot be saved, since from_pretrained knows only "
                f"{', '.join(PARTS)}; save its state dict with torch.save instead"
            )
        parts[name] = {"class": class_name, "config": dict(part.config)}
    description = {
        **parts,
        "classes": asdict(model.classes),
        "align_corners": model.align_corners,
        "normalization": asdict(model.normalization),
    }
    _refuse_untrue(model, description)
    return description


def _unsharded(kind: type) -> type:
    """A module's class before torch.distributed.fsdp.fully_shard put one of its own in its place."""
    is_sharded = any(base.__name__ == "FSDPModule" for base in kind.__mro__)
    return kind.__mro__[2] if is_sharded else kind


def _refuse_untrue(model: nn.Module, description: dict[str, Any]) -> None:
    """Refuse a description that builds another model than this one.

    Raises:
        ValueError: naming the first differences.
    """
    with torch.device("meta"):
        twin = build(checked(description))
    tensors = unwrapped(model.state_dict()), unwrapped(twin.state_dict())
    differences = [*_other_tensors(*tensors), *_other_layers(model, twin)]
    if differences:
        raise ValueError(
            "the model is not what its parts were built as, so that it could not be read back: "
            f"{some(differences)}. Build a model as it is now (such as with num_classes=…), give it "
            "this one's state_dict(), and save that. Adapters are to be merged first, parametrizations "
            "and pruning removed; a quantised model is saved before it is quantised"
        )


def _other_tensors(ours: dict[str, Any], theirs: State) -> Iterator[str]:
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in theirs:
            yield f"{key} is new"
        elif key not in ours:
            yield f"{key} is gone"
        elif not isinstance(ours[key], Tensor):
            yield f"{key} is a {type(ours[key]).__name__}"
        elif ours[key].shape != theirs[key].shape:
            yield f"{key} is {tuple(ours[key].shape)} instead of {tuple(theirs[key].shape)}"


# What a layer computes by, beside its tensors; how it trains (rates, momentum) is not looked at.
SETTINGS = (
    *(
        "eps",
        "approximate",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ),
    *("heads", "num_heads", "scale", "scales", "align_corners", "negative_slope"),
)


def _other_layers(model: nn.Module, twin: nn.Module) -> Iterator[str]:
    ours, theirs = _layers(model), _layers(twin)
    for name in sorted(theirs.keys() & ours.keys()):
        own, built = ours[name], theirs[name]
        if not list(built.children()) and _kind(own) is not _kind(built):
            yield f"{name} is a {type(own).__name__} instead of a {type(built).__name__}"
            continue
        for setting in SETTINGS:
            before, now = (getattr(module, setting, None) for module in (built, own))
            if isinstance(before, bool | int | float | str | tuple) and before != now:
                yield f"{name}.{setting} is {now} instead of {before}"
    added = sorted(ours.keys() - theirs.keys())
    yield from (f"{name} is new" for name in added if _kind(ours[name]) is not nn.Identity)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of backbone and head by name, without those that only stand around others."""
    modules = unwrapped({f"{name}.": module for name, module in model.named_modules()})
    parts = ("backbone.", "decode_head.")
    return {name[:-1]: module for name, module in modules.items() if name.startswith(parts)}


def _kind(layer: nn.Module) -> type:
    """A layer's class; one for those that differ in training alone."""
    if isinstance(layer, _DropoutNd | DropPath):
        return nn.Identity
    return nn.BatchNorm2d if isinstance(layer, nn.SyncBatchNorm) else _unsharded(type(layer))


def save(model: Any, path: str | os.PathLike[str], layout: str = "native") -> None:
    """Write a model; :meth:`segformer.SegmentationModel.save` says how, and what it raises."""
    if layout not in WRITABLE:
        raise ValueError(f"cannot write the layout {layout!r}; choose one of {', '.join(WRITABLE)}")
    path, target, description = Path(path).expanduser(), LAYOUTS[layout], describe(model)
    is_folder = target is HUGGINGFACE
    if not is_folder and path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise ValueError(
            f"{str(path)!r} has no suffix that tells how to write tensors; call it {path.stem}.safetensors or {path.stem}.pth"
        )
    if target is NATIVE and path.suffix != ".safetensors":
        raise ValueError(
            f"a file that describes itself is a safetensors file; call it {path.stem}.safetensors instead of {path.name}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"no folder {str(path.parent)!r} to write {path.name!r} into; make it first"
        )
    if is_folder and path.exists() and not path.is_dir():
        raise FileExistsError(f"{str(path)!r} is a file; the {layout} layout is a folder")

    state = state_dict_as(model, target)
    if target in (NVIDIA, SMP):
        _refuse_untold_sizes(description, target)
    if target is not NATIVE:
        _warn_of_numerics(model, target, description)
        _warn_of_what_is_lost(model, target)
    if not _is_first_process(model):
        return
    if is_folder:
        path.mkdir(exist_ok=True)
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        _write(path / "model.safetensors", lambda file: save_file(state, file, {"format": "pt"}))
        _write_json(path / "config.json", _huggingface_config(description, dtype))
        _write_json(path / "preprocessor_config.json", _preprocessor(model.normalization))
    elif path.suffix == ".safetensors":
        metadata = {METADATA_KEY: json.dumps(description)} if target is NATIVE else {"format": "pt"}
        _write(path, lambda file: save_file(state, file, metadata))
    else:
        classes = model.classes
        meta = {
            "CLASSES": list(classes.names),
            "PALETTE": [list(color) for color in classes.colors],
        }
        _write(
            path,
            lambda file: torch.save(
                {"meta": meta, "state_dict": state} if target is NVIDIA else state, file
            ),
        )


def _is_first_process(model: nn.Module) -> bool:
    """Whether this process writes: of those that hold the shards of one model, the first."""
    is_sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    return not is_sharded or torch.distributed.get_rank() == 0


def _warn_of_what_is_lost(model: Any, layout: Layout) -> None:
    """Say which of a model's properties a layout has no place for."""
    normalization, names = model.normalization, model.classes.names
    if layout is not HUGGINGFACE and normalization != IMAGENET.for_channels(
        len(normalization.mean)
    ):
        logger.warning(
            "the %s layout cannot say how images are normalised; its readers take ImageNet's mean and std, this model %s",
            layout.name,
            normalization,
        )
    is_named = names[0] not in ("background", "class 0")
    if layout is HUGGINGFACE and model.num_classes == 1 and is_named:
        logger.warning(
            "the %s layout has one name for one logit: %r is written, and %r, which is labelled 0, is not",
            layout.name,
            names[1],
            names[0],
        )


def _refuse_untold_sizes(description: dict[str, Any], layout: Layout) -> None:
    """A state dict tells heads and ratios to those alone who know the variant."""
    variant = find_variant(description["backbone"]["config"]["variant"])
    if variant_name(variant) is None:
        raise ValueError(
            f"the {layout.name} layout cannot say the sizes of {variant}, which is none of {', '.join(VARIANTS)}"
        )


def state_dict_as(model: nn.Module, layout: Layout) -> State:
    """A model's tensors under another layout's names.

    Those of a model in shards are gathered from all processes.

    Raises:
        ValueError: when the layout has no place for one of them, or one is no plain tensor.
    """
    ours = _untied(
        {key: _plain(key, tensor) for key, tensor in unwrapped(model.state_dict()).items()}
    )
    state: State = {}
    for our_keys, their_keys in layout.pairs(ours):
        joined = (
            torch.cat([ours[key] for key in our_keys]) if len(our_keys) > 1 else ours[our_keys[0]]
        )
        state |= zip(
            their_keys,
            joined.chunk(len(their_keys)) if len(their_keys) > 1 else [joined],
            strict=True,
        )
    return state


def _plain(key: str, tensor: Tensor) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # a DTensor
        tensor = tensor.full_tensor()
    if type(tensor) not in (Tensor, nn.Parameter):
        raise ValueError(
            f"{key} is a {type(tensor).__name__}, which no layout has a place for; save the model "
            "before it is quantised, or this one's state_dict() with torch.save"
        )
    return tensor.detach().contiguous()


def _untied(tensors: State) -> State:
    """Each tensor with memory of its own, as safetensors asks."""
    seen: set[int] = set()
    for key, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[key] = tensor.clone()
        seen.add(tensor.data_ptr())
    return tensors


def _warn_of_numerics(model: Any, layout: SegFormerLayout, description: dict[str, Any]) -> None:
    """Say what a layout's readers will do otherwise, and how much it changes, measured on noise."""
    numerics = Numerics.of(description)
    said = {name: getattr(numerics, name) for name in layout.expresses}
    theirs = replace(layout.numerics, **said)
    differing = numerics.differences(theirs)
    if not differing:
        return
    images = torch.randn(
        1,
        description["backbone"]["config"]["in_channels"],
        128,
        128,
        generator=torch.Generator("cpu").manual_seed(0),
        device="cpu",
    )
    state = {key: tensor.cpu().float() for key, tensor in state_dict_as(model, NATIVE).items()}
    outputs = []
    for wanted in (numerics, theirs):
        with torch.device("meta"):
            twin = build(wanted.applied_to(description)).eval()
        named = {key: state[TRANSPARENT.sub("", key)] for key in twin.state_dict()}
        twin.load_state_dict(named, assign=True)
        with torch.no_grad():
            outputs.append(
                upsample(twin.decode_head(twin.backbone(images)), (128, 128), wanted.align_corners)
            )
    difference = (outputs[0] - outputs[1]).abs().max().item()
    moved = (outputs[0].argmax(1) != outputs[1].argmax(1)).float().mean().item()
    changes = ", ".join(
        f"{name}={getattr(numerics, name)} (there {getattr(theirs, name)})" for name in differing
    )
    logger.warning(
        "the %s layout cannot say %s: on noise, logits there differ by up to %.1e (of %.1e), and %.2f %% of the labels",
        layout.name,
        changes,
        difference,
        outputs[0].abs().max().item(),
        100 * moved,
    )


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside ``path`` that takes its place once it is whole.

    A link stays one, and what it points to is replaced; a file that is there keeps its mode, a new one
    has what the process gives to any (its umask).

    Raises:
        OSError: naming the file, when it cannot be written.
    """
    path = Path(os.path.realpath(path))
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            like = path
            if not path.exists():
                like = Path(folder) / "like any"
                like.touch()
            write(Path(folder) / path.name)
            os.chmod(Path(folder) / path.name, stat.S_IMODE(like.stat().st_mode))
            os.replace(Path(folder) / path.name, path)
    except (
        OSError,
        SafetensorError,
        RuntimeError,
    ) as error:  # the last is PyTorch's, of a full disk
        before = " (what was there before is kept)" if path.exists() else ""
        raise OSError(f"cannot write {str(path)!r}: {error}{before}") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    _write(path, lambda file: file.write_text(text, encoding="utf-8"))


def _preprocessor(normalization: Normalization) -> dict[str, Any]:
    """The preprocessor_config.json of transformers' SegformerImageProcessor."""
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


def _huggingface_config(description: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json of transformers' SegformerForSemanticSegmentation."""
    backbone, head = description["backbone"]["config"], description["decode_head"]["config"]
    variant = find_variant(backbone["variant"])
    names = description["classes"]["names"][-head["num_classes"] :]  # of one logit that of label 1
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
        **huggingface_embeddings(len(variant.dims)),
        "decoder_hidden_size": head["channels"],
        "hidden_act": next(
            theirs for theirs, ours in HUGGINGFACE_ACTIVATIONS.items() if ours == backbone["act"]
        ),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": head["dropout"],
        "drop_path_rate": backbone["drop_path"],
        "semantic_loss_ignore_index": ignore_index(len(names)),
        "id2label": {str(k): name for k, name in enumerate(names)},
        "label2id": {name: k for k, name in enumerate(names)},
        "dtype": dtype,
    }
