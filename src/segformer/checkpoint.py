"""Weights on disk: one self-describing file of our own, and the public layouts as tables.

A layout's table maps each module of ours to the module, or modules, that hold its tensors there. It is read both ways, and every key of a
file must be spoken for.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from segformer.data.classes import Classes
from segformer.heads import AllMLPHead
from segformer.initialization import init_weights
from segformer.mit import VARIANTS, MiT, Variant

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
METADATA_KEY = "segformer"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
PARTS: dict[str, Callable[..., nn.Module]] = {"MiT": MiT, "AllMLPHead": AllMLPHead}
HUGGINGFACE_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Layout:
    """One public arrangement of the same parameters.

    Args:
        name: what it is called in messages.
        table: module of ours → module of theirs, or several whose tensors follow one another along the first dimension. ``{s}`` is the
            stage from 0, ``{n}`` from 1, ``{j}`` the block from 0. What no row names has our own name there.
        marker: a key that only this layout has.
        drops: their keys that no SegFormer uses.
        backbone: arguments of :class:`MiT` that restore the numerics the weights were trained with.
    """

    name: str
    table: dict[str, str | tuple[str, ...]]
    marker: str
    drops: tuple[str, ...] = ()
    backbone: dict[str, Any] = field(default_factory=dict)

    def theirs(self, key: str) -> tuple[str, ...]:
        """Their keys for a key of ours."""
        module, _, tensor = key.rpartition(".")
        for ours, theirs in self.table.items():
            pattern = re.escape(ours).replace(r"\{s\}", r"(?P<s>\d+)").replace(r"\{j\}", r"(?P<j>\d+)")
            if match := re.fullmatch(pattern, module):
                places = {name: int(place) for name, place in match.groupdict().items()}
                places["n"] = places.get("s", 0) + 1
                modules = (theirs,) if isinstance(theirs, str) else theirs
                return tuple(f"{name.format(**places)}.{tensor}" for name in modules)
        return (key,)


NATIVE = Layout("native", {}, marker="backbone.stages.0.embed.proj.weight")

NVIDIA = Layout(
    "nvidia",
    {
        "backbone.stages.{s}.embed.proj": "backbone.patch_embed{n}.proj",
        "backbone.stages.{s}.embed.norm": "backbone.patch_embed{n}.norm",
        "backbone.stages.{s}.blocks.{j}.norm1": "backbone.block{n}.{j}.norm1",
        "backbone.stages.{s}.blocks.{j}.attn.q": "backbone.block{n}.{j}.attn.q",
        "backbone.stages.{s}.blocks.{j}.attn.kv": "backbone.block{n}.{j}.attn.kv",
        "backbone.stages.{s}.blocks.{j}.attn.reduce.conv": "backbone.block{n}.{j}.attn.sr",
        "backbone.stages.{s}.blocks.{j}.attn.reduce.norm": "backbone.block{n}.{j}.attn.norm",
        "backbone.stages.{s}.blocks.{j}.attn.proj": "backbone.block{n}.{j}.attn.proj",
        "backbone.stages.{s}.blocks.{j}.norm2": "backbone.block{n}.{j}.norm2",
        "backbone.stages.{s}.blocks.{j}.ffn.fc1": "backbone.block{n}.{j}.mlp.fc1",
        "backbone.stages.{s}.blocks.{j}.ffn.dwconv": "backbone.block{n}.{j}.mlp.dwconv.dwconv",
        "backbone.stages.{s}.blocks.{j}.ffn.fc2": "backbone.block{n}.{j}.mlp.fc2",
        "backbone.stages.{s}.norm": "backbone.norm{n}",
        "decode_head.projections.{s}": "decode_head.linear_c{n}.proj",
        "decode_head.fuse": "decode_head.linear_fuse.conv",
        "decode_head.norm": "decode_head.linear_fuse.bn",
        "decode_head.classifier": "decode_head.linear_pred",
    },
    marker="backbone.patch_embed1.proj.weight",
    drops=("decode_head.conv_seg.weight", "decode_head.conv_seg.bias"),
)

HUGGINGFACE = Layout(
    "huggingface",
    {
        "backbone.stages.{s}.embed.proj": "segformer.encoder.patch_embeddings.{s}.proj",
        "backbone.stages.{s}.embed.norm": "segformer.encoder.patch_embeddings.{s}.layer_norm",
        "backbone.stages.{s}.blocks.{j}.norm1": "segformer.encoder.block.{s}.{j}.layer_norm_1",
        "backbone.stages.{s}.blocks.{j}.attn.q": "segformer.encoder.block.{s}.{j}.attention.self.query",
        "backbone.stages.{s}.blocks.{j}.attn.kv": (
            "segformer.encoder.block.{s}.{j}.attention.self.key",
            "segformer.encoder.block.{s}.{j}.attention.self.value",
        ),
        "backbone.stages.{s}.blocks.{j}.attn.reduce.conv": "segformer.encoder.block.{s}.{j}.attention.self.sr",
        "backbone.stages.{s}.blocks.{j}.attn.reduce.norm": "segformer.encoder.block.{s}.{j}.attention.self.layer_norm",
        "backbone.stages.{s}.blocks.{j}.attn.proj": "segformer.encoder.block.{s}.{j}.attention.output.dense",
        "backbone.stages.{s}.blocks.{j}.norm2": "segformer.encoder.block.{s}.{j}.layer_norm_2",
        "backbone.stages.{s}.blocks.{j}.ffn.fc1": "segformer.encoder.block.{s}.{j}.mlp.dense1",
        "backbone.stages.{s}.blocks.{j}.ffn.dwconv": "segformer.encoder.block.{s}.{j}.mlp.dwconv.dwconv",
        "backbone.stages.{s}.blocks.{j}.ffn.fc2": "segformer.encoder.block.{s}.{j}.mlp.dense2",
        "backbone.stages.{s}.norm": "segformer.encoder.layer_norm.{s}",
        "decode_head.projections.{s}": "decode_head.linear_c.{s}.proj",
        "decode_head.fuse": "decode_head.linear_fuse",
        "decode_head.norm": "decode_head.batch_norm",
        "decode_head.classifier": "decode_head.classifier",
    },
    marker="segformer.encoder.patch_embeddings.0.proj.weight",
    backbone={"norm_eps": 1e-5, "embed_norm_eps": 1e-5},  # its LayerNorms all have PyTorch's default, whatever config.json says
)

LAYOUTS = (NATIVE, NVIDIA, HUGGINGFACE)


def describe(backbone: nn.Module, decode_head: nn.Module, classes: Classes) -> dict[str, Any]:
    """What builds the same parts again, JSON-able.

    Raises:
        ValueError: when a part is of a class that :func:`load` does not know.
    """
    parts: dict[str, Any] = {}
    for name, part in (("backbone", backbone), ("decode_head", decode_head)):
        if PARTS.get(type(part).__name__) is not type(part):
            raise ValueError(
                f"a {name} of class {type(part).__name__} cannot be saved, since from_pretrained knows only {', '.join(PARTS)}; "
                "save its state dict with torch.save instead"
            )
        parts[name] = {"class": type(part).__name__, "config": part.config}
    return {**parts, "classes": {"names": classes.names, "colors": classes.colors}}


def save(backbone: nn.Module, decode_head: nn.Module, classes: Classes, path: str | os.PathLike[str]) -> None:
    """Write a model as one safetensors file that describes itself.

    Raises:
        OSError: when the folder is missing or cannot be written; a file that was there before is kept.
        ValueError: see :func:`describe`.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(path.parent)!r} to write {path.name!r} into; make it first")
    metadata = {METADATA_KEY: json.dumps(describe(backbone, decode_head, classes))}
    state = {key: tensor.detach().contiguous() for key, tensor in _join(backbone, decode_head).state_dict().items()}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        save_file(state, Path(folder) / path.name, metadata)
        os.replace(Path(folder) / path.name, path)


def load(source: str | os.PathLike[str], num_classes: int | None = None) -> tuple[nn.Module, nn.Module, Classes]:
    """Read backbone, decode head and classes; :meth:`segformer.SegmentationModel.from_pretrained` says of what, and what it raises."""
    folder = _find(source)
    path = _weights_of(folder) if folder.is_dir() else folder
    state, description = _read_file(path)
    if description is not None:
        layout = NATIVE
    else:
        layout = _detect(state, path)
        config = _read_config(folder / "config.json") if layout is HUGGINGFACE and folder.is_dir() else None
        description = _infer(layout, state, config, path)

    with torch.device("meta"):
        backbone, head = (_build(**description[name]) for name in ("backbone", "decode_head"))
    _join(backbone, head).load_state_dict(_translate(layout, state, _join(backbone, head), path), assign=True)
    classes = Classes(**description["classes"])
    if num_classes is not None and num_classes != head.num_classes:
        logger.warning("%s has %d classes: made a new, random classifier for %d", path.name, head.num_classes, num_classes)
        return backbone, _with_new_classifier(head, num_classes), Classes.unnamed(num_classes)
    return backbone, head, classes


def _join(backbone: nn.Module, decode_head: nn.Module) -> nn.Module:
    """The two parts under the names they have in a model."""
    return nn.ModuleDict({"backbone": backbone, "decode_head": decode_head})


def _build(**part: Any) -> Any:
    if part["class"] not in PARTS:
        raise ValueError(f"the file holds a {part['class']}, and this version knows only {', '.join(PARTS)}; install a newer one")
    return PARTS[part["class"]](**part["config"])


def state_dict_as(model: nn.Module, layout: Layout) -> State:
    """A model's tensors under another layout's names."""
    state: State = {}
    for key, tensor in model.state_dict().items():
        names = layout.theirs(key)
        state.update(zip(names, tensor.chunk(len(names)) if tensor.ndim else [tensor] * len(names), strict=True))
    return state


def _find(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if path.exists():
        return path
    is_file_name = path.suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
    if not isinstance(source, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or is_file_name:
        raise FileNotFoundError(f"no file or folder {str(source)!r}; a Hugging Face id would read 'organisation/name'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", *WEIGHT_FILES]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"no file or folder {source!r}, and as a Hugging Face id: {error}") from error


def _weights_of(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no {' or '.join(WEIGHT_FILES)} in {str(folder)!r}; found {sorted(p.name for p in folder.iterdir())}")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"no {str(path)!r}, which tells the sizes of the Hugging Face weights beside it") from None
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from error


def _read_file(path: Path) -> tuple[State, dict[str, Any] | None]:
    """The tensors of a file, and the description of one of our own."""
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is empty; copy or download it again")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                description = (file.metadata() or {}).get(METADATA_KEY)
                return {key: file.get_tensor(key) for key in file.keys()}, json.loads(description) if description else None  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"cannot read {str(path)!r}: {error}; it is truncated or no safetensors file: copy or download it again"
            ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # garbage raises whatever the unpickler trips over: KeyError, EOFError, RuntimeError, …
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise ValueError(
                f"{str(path)!r} holds more than tensors, and unpickling it could run foreign code; save its state dict alone: "
                "torch.save(model.state_dict(), path)"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read {str(path)!r}: {reason}; it is truncated or no checkpoint: copy or download it again") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{str(path)!r} is not a state dict: names of tensors are expected, it holds a {type(state).__name__}")
    return state, None


def _detect(state: State, path: Path) -> Layout:
    for layout in LAYOUTS:
        if layout.marker in state:
            return layout
    raise ValueError(
        f"{str(path)!r} is in none of the known layouts ({', '.join(layout.name for layout in LAYOUTS)}): "
        f"its first keys are {_some(state)}; a SegFormer has one of {', '.join(layout.marker for layout in LAYOUTS)}"
    )


def _infer(layout: Layout, state: State, config: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """The description of a state dict: sizes from its shapes, the rest from a Hugging Face config where there is one."""

    def shape(key: str) -> tuple[int, ...]:
        names = layout.theirs(key)
        if names[0] not in state:
            raise ValueError(f"{str(path)!r} looks like the {layout.name} layout but has no {', '.join(names)}")
        return tuple(state[names[0]].shape)

    def count(template: str) -> int:
        n = 0
        while layout.theirs(template.format(n))[0] in state:
            n += 1
        return n

    num_classes, decoder_channels = shape("decode_head.classifier.weight")[:2]
    if config is not None:
        variant, act = _variant_of(config, path)
    else:
        stages = range(count("backbone.stages.{}.embed.proj.weight"))
        dims = tuple(shape(f"backbone.stages.{s}.embed.proj.weight")[0] for s in stages)
        depths = tuple(count(f"backbone.stages.{s}.blocks.{{}}.norm1.weight") for s in stages)
        standard = [v for v in VARIANTS.values() if (v.dims, v.depths) == (dims, depths)]
        if not standard:
            raise ValueError(
                f"{str(path)!r} has dims {dims} and depths {depths}, which no variant has; its number of heads cannot be read off"
            )
        variant, act = standard[0], "gelu"
    name = next((name for name, v in VARIANTS.items() if replace(variant, decoder_channels=v.decoder_channels) == v), None)
    backbone = {
        "variant": name or asdict(variant),
        "in_channels": shape("backbone.stages.0.embed.proj.weight")[1],
        "act": act,
        **layout.backbone,
    }
    head = {"in_channels": variant.dims, "num_classes": num_classes, "channels": decoder_channels}
    classes = _class_names(config, num_classes, path)
    return {
        "backbone": {"class": "MiT", "config": backbone},
        "decode_head": {"class": "AllMLPHead", "config": head},
        "classes": {"names": classes.names, "colors": classes.colors},
    }


def _variant_of(config: dict[str, Any], path: Path) -> tuple[Variant, str]:
    """The sizes in a Hugging Face config, and the activation."""
    needed = ("hidden_sizes", "depths", "decoder_hidden_size", "num_attention_heads", "sr_ratios", "mlp_ratios", "hidden_act")
    absent = [name for name in needed if name not in config]
    if absent:
        raise ValueError(f"the config.json of {str(path)!r} lacks {', '.join(absent)}; is it a SegFormer's?")
    if len(set(config["mlp_ratios"])) > 1:
        raise ValueError(f"{str(path)!r}: mlp_ratios {config['mlp_ratios']} differ from stage to stage; MiT has one for all")
    for name, fixed in (("strides", [4, 2, 2, 2]), ("patch_sizes", [7, 3, 3, 3])):
        if list(config.get(name, fixed)) != fixed:
            raise ValueError(f"{str(path)!r}: {name} {config[name]}; MiT's are {fixed}")
    if config["hidden_act"] not in HUGGINGFACE_ACTIVATIONS:
        known = ", ".join(HUGGINGFACE_ACTIVATIONS)
        raise ValueError(f"{str(path)!r}: hidden_act {config['hidden_act']!r} is none of {known}")
    dims, depths, decoder_channels, heads, sr_ratios = (config[name] for name in needed[:5])
    return Variant(dims, depths, decoder_channels, heads, sr_ratios, config["mlp_ratios"][0]), HUGGINGFACE_ACTIVATIONS[config["hidden_act"]]


def _class_names(config: dict[str, Any] | None, num_classes: int, path: Path) -> Classes:
    names = (config or {}).get("id2label")
    if not names:
        return Classes.unnamed(num_classes)
    if len(names) != num_classes:
        raise ValueError(f"{str(path)!r} has {num_classes} classes but its config.json names {len(names)} in id2label; correct id2label")
    return Classes([names[key] for key in sorted(names, key=int)])


def _translate(layout: Layout, state: State, model: nn.Module, path: Path) -> State:
    """A state dict in our names, every key accounted for."""
    ours: State = {}
    left = dict(state)
    missing, misshapen = [], []
    for key, wanted in model.state_dict().items():
        names = layout.theirs(key)
        found = [left.pop(name) for name in names if name in left]
        if len(found) < len(names):
            missing += [name for name in names if name not in state]
            continue
        tensor = torch.cat(found) if len(found) > 1 else found[0]
        if tensor.shape != wanted.shape:
            misshapen.append(f"{' + '.join(names)} is {tuple(tensor.shape)}, not {tuple(wanted.shape)}")
        ours[key] = tensor
    dropped = [name for name in left if name in layout.drops]
    left_over = [name for name in left if name not in layout.drops]
    problems = [
        f"{len(keys)} {what}: {_some(keys)}"
        for keys, what in ((missing, "missing"), (left_over, "left over"), (misshapen, "of another shape"))
        if keys
    ]
    if problems:
        raise ValueError(f"{str(path)!r} does not fit its layout ({layout.name}): {'; '.join(problems)}")
    if dropped:
        logger.info("%s: dropped %s, which no SegFormer uses", path.name, ", ".join(dropped))
    return ours


def _with_new_classifier(old: Any, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        head: Any = type(old)(**{**old.config, "num_classes": num_classes})
    classifier = head.classifier.to_empty(device="cpu").to(old.classifier.weight.dtype)
    init_weights(classifier)
    state = old.state_dict() | {f"classifier.{key}": tensor for key, tensor in classifier.state_dict().items()}
    head.load_state_dict(state, assign=True)
    return head


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
