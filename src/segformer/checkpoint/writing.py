"""Writing: our own self-describing file, and the layouts of others."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from segformer.checkpoint.files import METADATA_KEY, State
from segformer.checkpoint.layout import Layout
from segformer.checkpoint.reading import PARTS, TRANSPARENT, build, logger
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
from segformer.mit import VARIANTS, find_variant, variant_name
from segformer.upsample import upsample

LAYOUTS = {layout.name: layout for layout in (NATIVE, NVIDIA, HUGGINGFACE, SMP)}
WRITABLE = tuple(LAYOUTS)


def describe(model: Any) -> dict[str, Any]:
    """What builds the same :class:`~segformer.SegmentationModel` again, JSON-able.

    Raises:
        ValueError: when a part is of a class that could not be built again.
    """
    parts: dict[str, Any] = {}
    for name in ("backbone", "decode_head"):
        part = getattr(model, name)
        part = getattr(part, "_orig_mod", part)  # compiled
        if PARTS.get(type(part).__name__) is not type(part):
            raise ValueError(
                f"a {name} of class {type(part).__name__} cannot be saved, since from_pretrained knows only {', '.join(PARTS)}; "
                "save its state dict with torch.save instead"
            )
        parts[name] = {"class": type(part).__name__, "config": dict(part.config)}
    return {**parts, "classes": asdict(model.classes), "align_corners": model.align_corners}


def save(model: Any, path: str | os.PathLike[str], layout: str = "native") -> None:
    """Write a model; :meth:`segformer.SegmentationModel.save` says how, and what it raises."""
    if layout not in WRITABLE:
        raise ValueError(f"cannot write the layout {layout!r}; choose one of {', '.join(WRITABLE)}")
    path, target, description = Path(path), LAYOUTS[layout], describe(model)
    is_folder = target is HUGGINGFACE
    if not is_folder and path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise ValueError(f"{str(path)!r} has no suffix that tells how to write tensors; call it {path.stem}.safetensors or {path.stem}.pth")
    if target is NATIVE and path.suffix != ".safetensors":
        raise ValueError(f"a file that describes itself is a safetensors file; call it {path.stem}.safetensors instead of {path.name}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(path.parent)!r} to write {path.name!r} into; make it first")
    if is_folder and path.exists() and not path.is_dir():
        raise FileExistsError(f"{str(path)!r} is a file; the {layout} layout is a folder")

    state = state_dict_as(model, target)
    if target in (NVIDIA, SMP):
        _refuse_untold_sizes(description, target)
    if target is not NATIVE:
        _warn_of_numerics(model, target, description)
    if is_folder:
        path.mkdir(exist_ok=True)
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        _write(path / "model.safetensors", lambda file: save_file(state, file, {"format": "pt"}))
        config = json.dumps(_huggingface_config(description, dtype), indent=2, ensure_ascii=False)
        _write(path / "config.json", lambda file: file.write_text(config))
        _write(path / "preprocessor_config.json", lambda file: file.write_text(json.dumps(PREPROCESSOR, indent=2)))
    elif path.suffix == ".safetensors":
        metadata = {METADATA_KEY: json.dumps(description)} if target is NATIVE else {"format": "pt"}
        _write(path, lambda file: save_file(state, file, metadata))
    else:
        classes = model.classes
        meta = {"CLASSES": list(classes.names), "PALETTE": [list(color) for color in classes.colors]}
        _write(path, lambda file: torch.save({"meta": meta, "state_dict": state} if target is NVIDIA else state, file))


def _refuse_untold_sizes(description: dict[str, Any], layout: Layout) -> None:
    """A state dict tells heads and ratios to those alone who know the variant."""
    variant = find_variant(description["backbone"]["config"]["variant"])
    if variant_name(variant) is None:
        raise ValueError(f"the {layout.name} layout cannot say the sizes of {variant}, which is none of {', '.join(VARIANTS)}")


def state_dict_as(model: nn.Module, layout: Layout) -> State:
    """A model's tensors under another layout's names.

    Raises:
        ValueError: when the layout has no place for one of them.
    """
    ours = {TRANSPARENT.sub("", key): tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    state: State = {}
    for our_keys, their_keys in layout.pairs(ours):
        joined = torch.cat([ours[key] for key in our_keys]) if len(our_keys) > 1 else ours[our_keys[0]]
        state |= zip(their_keys, joined.chunk(len(their_keys)) if len(their_keys) > 1 else [joined], strict=True)
    return state


def _warn_of_numerics(model: Any, layout: SegFormerLayout, description: dict[str, Any]) -> None:
    """Say what a layout's readers will do otherwise, and how much it changes, measured on noise."""
    numerics = Numerics.of(description)
    said = {name: getattr(numerics, name) for name in layout.expresses}
    theirs = replace(layout.numerics, **said)
    differing = numerics.differences(theirs)
    if not differing:
        return
    images = torch.randn(
        1, description["backbone"]["config"]["in_channels"], 128, 128, generator=torch.Generator("cpu").manual_seed(0), device="cpu"
    )
    state = {key: tensor.cpu().float() for key, tensor in state_dict_as(model, NATIVE).items()}
    outputs = []
    for wanted in (numerics, theirs):
        with torch.device("meta"):
            twin = build(wanted.applied_to(description)).eval()
        twin.load_state_dict(state, assign=True)
        with torch.no_grad():
            outputs.append(upsample(twin.decode_head(twin.backbone(images)), (128, 128), wanted.align_corners))
    difference = (outputs[0] - outputs[1]).abs().max().item()
    moved = (outputs[0].argmax(1) != outputs[1].argmax(1)).float().mean().item()
    changes = ", ".join(f"{name}={getattr(numerics, name)} (there {getattr(theirs, name)})" for name in differing)
    logger.warning(
        "the %s layout cannot say %s: on noise, logits there differ by up to %.1e (of %.1e), and %.2f %% of the labels",
        layout.name,
        changes,
        difference,
        outputs[0].abs().max().item(),
        100 * moved,
    )


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside ``path`` that takes its place once it is whole."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        write(Path(folder) / path.name)
        os.replace(Path(folder) / path.name, path)


PREPROCESSOR = {
    "image_processor_type": "SegformerImageProcessor",
    "do_resize": True,
    "size": {"height": 512, "width": 512},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": IMAGENET_DEFAULT_MEAN,
    "image_std": IMAGENET_DEFAULT_STD,
    "do_reduce_labels": False,
}


def _huggingface_config(description: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json of transformers' SegformerForSemanticSegmentation."""
    backbone, head = description["backbone"]["config"], description["decode_head"]["config"]
    variant = find_variant(backbone["variant"])
    names = description["classes"]["names"]
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
        "hidden_act": next(theirs for theirs, ours in HUGGINGFACE_ACTIVATIONS.items() if ours == backbone["act"]),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": head["dropout"],
        "drop_path_rate": backbone["drop_path"],
        "semantic_loss_ignore_index": 255,
        "id2label": {str(k): name for k, name in enumerate(names)},
        "label2id": {name: k for k, name in enumerate(names)},
        "dtype": dtype,
    }
