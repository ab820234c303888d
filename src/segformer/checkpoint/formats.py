"""The two formats of weight files, safetensors and PyTorch's pickles: from a file to named tensors.

No code from a file is imported or run.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from segformer.checkpoint.report import some
from segformer.data.classes import Classes

State = dict[str, Tensor]
LICENCE_KEY = "licence"  # in descriptions, the metadata of safetensors files, a checkpoint's meta
METADATA_KEY = "segformer"
# Where training loops keep a state dict. Averaged weights come first: they are the ones evaluated.
CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "network",
    "net",
    "module",
    "weights",
)
DOWNLOAD_AGAIN = "copy or download it again"
SAVE_STATE_DICT = (
    "load it where it was made, and save only its state dict: torch.save(model.state_dict(), path)"
)
CHUNK_BYTES = 64 << 20  # mapped and copied at a time


@dataclass
class WeightFile:
    """The content of a file.

    Args:
        path: Path of the file; of weights in shards, that of their index.
        tensors: Tensors by their names in the file.
        description: Description of the model, in a file of this package.
        classes: Class names in the file or beside it.
        config: Content of the ``config.json`` of a Hugging Face folder.
        preprocessor: Content of its ``preprocessor_config.json``.
        unwrapped: Names of the containers around the tensors.
        beside: Names of other state dicts beside these containers.
        others: Keys of the values beside these tensors: no tensors, or without a name.
        licence: Licence of the weights, if their source is known to have one.
    """

    path: Path
    tensors: State
    description: dict[str, Any] | None = None
    classes: Classes | None = None
    config: dict[str, Any] | None = None
    preprocessor: dict[str, Any] | None = None
    unwrapped: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    licence: str | None = None


def read_safetensors(path: Path) -> WeightFile:
    """Returns the content of a safetensors file, copied: a model must not change with its file.

    Raises:
        ValueError: If it is truncated or no safetensors file.
    """
    tensors: State = {}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            keys = list(file.keys())
        # An open file is mapped into memory. It is opened again for each chunk, so that the mapped
        # file and its copy are never in memory whole at the same time.
        while keys:
            keys = _copy_chunk(path, keys, tensors)
    except SafetensorError as error:
        raise ValueError(
            f"cannot read {str(path)!r}: {error}; it is truncated or no safetensors file: "
            f"{DOWNLOAD_AGAIN}"
        ) from error
    description = _description(metadata.get(METADATA_KEY), path)
    return WeightFile(path, tensors, description, licence=metadata.get(LICENCE_KEY))


def _copy_chunk(path: Path, keys: list[str], tensors: State) -> list[str]:
    """Copies the first tensors into ``tensors``; returns the keys of the others."""
    copied = 0
    with safe_open(path, "pt") as file:
        for index, key in enumerate(keys):
            if copied >= CHUNK_BYTES:
                return keys[index:]
            tensor = file.get_tensor(key)
            tensors[key] = tensor.clone()
            copied += tensor.nbytes
    return []


def _description(text: Any, path: Path) -> dict[str, Any] | None:
    """Returns the description of the model that this package wrote; None if another wrote the text.

    Raises:
        ValueError: If it is not valid JSON, or lacks a part.
    """
    if not isinstance(text, str) or not text.startswith("{"):
        return None
    try:
        description = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} describes its model by broken JSON ({error}); {DOWNLOAD_AGAIN}"
        ) from error
    if "backbone" not in description:
        return None
    if missing := {"decode_head", "classes", "align_corners"} - description.keys():
        raise ValueError(
            f"{str(path)!r} describes its model wrongly: it lacks {some(sorted(missing))}; "
            f"{DOWNLOAD_AGAIN}"
        )
    return description


class Ignored:
    """Replaces every object of a pickle that is not a tensor, so that no foreign code is run."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read_pickle(path: Path) -> WeightFile:
    """Returns the content of a file that torch.save wrote.

    Raises:
        ValueError: If it is truncated, no checkpoint, holds no state dict or several, or cannot be
            read without running foreign code.
    """
    content = _load_pickle(path)
    values, unwrapped, beside = _unwrap_containers(content, path)
    if not _holds_tensors(values):
        raise ValueError(
            f"{str(path)!r} holds {_kind_of_content(values)}, not a state dict of named tensors; "
            f"{SAVE_STATE_DICT}"
        )
    tensors = {
        key: value
        for key, value in values.items()
        if isinstance(value, Tensor) and isinstance(key, str)
    }
    _check_values(tensors, path)
    meta = content.get("meta")
    return WeightFile(
        path,
        own_memory(tensors),
        _description(content.get(METADATA_KEY), path),
        _classes_in_meta(meta),
        unwrapped=unwrapped,
        beside=beside,
        others=[str(key) for key in values if key not in tensors],
        licence=_licence_in_meta(meta),
    )


def _load_pickle(path: Path) -> Any:
    try:
        return _unpickle(path)
    # A broken file makes the unpickler raise anything: KeyError, EOFError, RuntimeError, …
    except Exception as error:
        foreign = "Unsupported global", Ignored.__name__, "blocklist"  # in the unpickler's messages
        if isinstance(error, pickle.UnpicklingError) and any(map(str(error).__contains__, foreign)):
            raise ValueError(
                f"{str(path)!r} holds more than tensors, and unpickling it could run foreign code; "
                f"{SAVE_STATE_DICT}"
            ) from error
        lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ValueError(
            f"cannot read {str(path)!r}: {reason}; it is truncated or no checkpoint: "
            f"{DOWNLOAD_AGAIN}"
        ) from error


def _unpickle(path: Path) -> Any:
    """Returns the content of a pickle, with :class:`Ignored` for objects of unknown classes."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not (is_zipfile(path) and "Unsupported global" in str(error)):
            raise
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with torch.serialization.safe_globals([(Ignored, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap_containers(content: Any, path: Path) -> tuple[Any, list[str], list[str]]:
    """Returns a file's state dict, and the names of the containers around it and beside these.

    Raises:
        ValueError: If there are several, and their names do not show which is the model's.
    """
    unwrapped: list[str] = []
    beside: list[str] = []
    while isinstance(content, dict):
        names = [name for name in CONTAINERS if _holds_parameters(content.get(name))]
        names = names or [name for name in CONTAINERS if _holds_tensors(content.get(name))]
        names = names[:1]
        if not names and not any(isinstance(value, Tensor) for value in content.values()):
            names = [name for name, value in content.items() if _holds_parameters(value)]
        if len(names) > 1:
            several = some(map(repr, names))
            raise ValueError(
                f"{str(path)!r} holds several state dicts, {several}; save only one of them"
            )
        if not names:
            break
        beside += [
            str(name)
            for name, value in content.items()
            if name != names[0] and _is_state_dict(name, value)
        ]
        content = content[names[0]]
        unwrapped.append(str(names[0]))
    return content, unwrapped, beside


def _is_state_dict(name: Any, content: Any) -> bool:
    return _holds_parameters(content) or (name in CONTAINERS and _holds_tensors(content))


def _holds_tensors(content: Any) -> bool:
    """Returns whether this is a state dict, or a dict around one."""
    if not isinstance(content, dict):
        return False
    return any(
        (isinstance(key, str) and isinstance(value, Tensor)) or _holds_tensors(value)
        for key, value in content.items()
    )


def _holds_parameters(content: Any) -> bool:
    """Returns whether this is a module's state dict, not an optimiser's, or a dict around one."""
    if not isinstance(content, dict):
        return False
    if any(isinstance(content[key], Tensor) and "." in str(key) for key in content):
        return True
    return any(map(_holds_parameters, content.values()))


def _kind_of_content(content: Any) -> str:
    if isinstance(content, Ignored):
        return "an object of foreign code"
    if isinstance(content, dict) and content:
        return some(f"{key!r} ({type(value).__name__})" for key, value in content.items())
    return f"a {type(content).__name__}"


def _check_values(tensors: State, path: Path) -> None:
    """Raises ValueError if a tensor is on the meta device, sparse or quantised."""
    for key, tensor in tensors.items():
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else "quantised" if tensor.is_quantized else "sparse"
            raise ValueError(
                f"{str(path)!r}: {key} is a {kind} tensor; save one with plain values (dense, "
                "dequantised, on a device)"
            )


def own_memory(tensors: State) -> State:
    """Returns the tensors, each with memory of its own, detached from the autograd graph.

    Two tensors of a model or a pickle may share their storage, be views of one, or repeat a value
    (``expand``). As parameters they would change together, or could not be changed; safetensors
    does not write them.
    """
    seen: set[int] = set()
    own: State = {}
    for key, tensor in tensors.items():
        storage = tensor.untyped_storage()
        is_unshared = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        own[key] = tensor.detach()
        if not is_unshared:
            own[key] = own[key].clone(memory_format=torch.contiguous_format)
    return own


def _licence_in_meta(meta: Any) -> str | None:
    licence = meta.get(LICENCE_KEY) if isinstance(meta, dict) else None
    return licence if isinstance(licence, str) else None


def _classes_in_meta(meta: Any) -> Classes | None:
    """Returns the classes in the ``meta`` of a checkpoint of mmsegmentation or NVIDIA's code."""
    if not isinstance(meta, dict):
        return None
    more = meta.get("dataset_meta")
    entries = {**meta, **(more if isinstance(more, dict) else {})}
    entries = {str(key).lower(): value for key, value in entries.items()}
    names, palette = entries.get("classes"), entries.get("palette")
    if not isinstance(names, list | tuple):
        return None
    return classes_or_none(list(names), palette if isinstance(palette, list | tuple) else [])


def classes_or_none(names: list[str], colors: Sequence[Any]) -> Classes | None:
    """Returns the classes, without colours if those are invalid, and None if the names are.

    Weights are worth reading even if their class names are not.
    """
    for palette in (colors, []):
        try:
            return Classes(names, [tuple(color) for color in palette])
        except (ValueError, TypeError):
            continue
    return None
