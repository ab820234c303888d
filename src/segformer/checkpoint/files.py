"""From a name to tensors: files, folders and hub ids, safely read and unwrapped."""

from __future__ import annotations

import json
import os
import pickle
import re
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
METADATA_KEY = "segformer"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# What transformers and this package write, in transformers' own order of preference.
STANDARD_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Where training loops keep a state dict; the averaged one comes first, as it is what they measure.
CONTAINERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "network", "net", "module", "weights")
DOWNLOAD_AGAIN = "copy or download it again"
PART = 64 << 20  # bytes that are mapped and copied at a time


@dataclass
class WeightFile:
    """What a file holds.

    Args:
        path: the file; of shards, their index.
        tensors: by the names they have there.
        description: what the model is, in a file of our own.
        classes: where the file, or the folder it lies in, names them.
        config: the config.json of a Hugging Face folder.
        unwrapped: the containers that the tensors lay in.
        others: what lay beside the tensors under a name, and is none.
    """

    path: Path
    tensors: State
    description: dict[str, Any] | None = None
    classes: Classes | None = None
    config: dict[str, Any] | None = None
    unwrapped: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def open_weights(source: str | os.PathLike[str], revision: str | None = None) -> WeightFile:
    """The weights of a file, a folder or a hub id.

    Raises:
        FileNotFoundError: when there is none, or a shard is missing.
        ValueError: when a folder has two candidates, or a file is empty, truncated, no checkpoint, or holds more than tensors.
    """
    path = _find(source, revision)
    if path.is_dir():
        path = _weights_of(path)
    file = _read(path)
    if path.name in STANDARD_NAMES and (path.parent / "config.json").is_file():
        file.config = read_json(path.parent / "config.json")
    return file


def _find(source: str | os.PathLike[str], revision: str | None) -> Path:
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ValueError(f"revision={revision!r} given for {str(source)!r}, which is here on disk; a revision is a hub repository's")
        return path
    if not isinstance(source, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or path.suffix in SUFFIXES:
        raise FileNotFoundError(f"no file or folder {str(source)!r}; a Hugging Face id would read 'organisation/name'")
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = _download(source, revision, ["*.json", "*.safetensors"])
        if not any(path.suffix == ".safetensors" for path in folder.iterdir()):  # older repositories have a pickle only
            folder = _download(source, revision, ["*.json", *(f"*{suffix}" for suffix in SUFFIXES)])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"no file or folder {source!r}, and as a Hugging Face id: {error}") from error
    return folder


def _download(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))


def _weights_of(folder: Path) -> Path:
    for name in STANDARD_NAMES:
        if (folder / name).is_file():
            return folder / name
    candidates = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not candidates:
        raise FileNotFoundError(f"no weights ({', '.join(STANDARD_NAMES)}) in {str(folder)!r}; found {some(os.listdir(folder))}")
    if len(candidates) > 1:
        raise ValueError(f"{str(folder)!r} holds {len(candidates)} candidates: {some(candidates)}; name one of these files")
    return folder / candidates[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}, not an object of names and values")
    return content


def _read_shards(index: Path) -> WeightFile:
    weight_map = read_json(index).get("weight_map")
    if not weight_map:
        raise ValueError(f"{str(index)!r} has no weight_map, which tells the file of each tensor; {DOWNLOAD_AGAIN}")
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{str(index)!r} names {len(names)} files, and these are not beside it: {some(absent)}")
    tensors: State = {}
    for name in names:
        tensors |= _read(index.parent / name).tensors
    absent = [key for key in weight_map if key not in tensors]
    if absent:
        raise ValueError(f"{str(index)!r} places {some(absent)} in files that do not hold it; {DOWNLOAD_AGAIN}")
    return WeightFile(index, tensors)


def _read(path: Path) -> WeightFile:
    """A file by its content, whatever it is called."""
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise ValueError(f"{str(path)!r} is empty; {DOWNLOAD_AGAIN}")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if head.startswith((b"version h", b"<!doctype", b"<!DOCTYPE", b"<html")):
        raise ValueError(f"{str(path)!r} is a page or a pointer in the place of the weights; {DOWNLOAD_AGAIN} (with git: git lfs pull)")
    return _read_safetensors(path) if head[8:] == b"{" or path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> WeightFile:
    tensors: State = {}
    try:
        with safe_open(path, "pt") as file:
            description = (file.metadata() or {}).get(METADATA_KEY)
            left = list(file.keys())
        # The file is mapped while it is open, and a model must not change with its file: copies, of one part after another, so that
        # never both lie in memory whole.
        while left:
            with safe_open(path, "pt") as file:
                part = 0
                while left and part < PART:
                    tensor = file.get_tensor(left[0])
                    tensors[left.pop(0)] = tensor.clone()
                    part += tensor.nbytes
    except SafetensorError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}; it is truncated or no safetensors file: {DOWNLOAD_AGAIN}") from error
    return WeightFile(path, tensors, json.loads(description) if description else None)


class Ignored:
    """Stands for any object of a pickle that is no tensor, so that no code of its own is imported or run."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickled(path: Path) -> Any:
    """The content of a pickle, in which whatever is no tensor, number, text or collection of them is :class:`Ignored`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not (is_zipfile(path) and "Unsupported global" in str(error)):
            raise
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with torch.serialization.safe_globals([(Ignored, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_pickle(path: Path) -> WeightFile:
    save_alone = "where it came from, save its state dict alone: torch.save(model.state_dict(), path)"
    try:
        content = _unpickled(path)
    except Exception as error:  # garbage raises whatever the unpickler trips over: KeyError, EOFError, RuntimeError, …
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise ValueError(f"{str(path)!r} holds more than tensors, and unpickling it could run foreign code; {save_alone}") from error
        reason = (str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot read {str(path)!r}: {reason}; it is truncated or no checkpoint: {DOWNLOAD_AGAIN}") from error
    tensors, unwrapped = content, []
    while isinstance(tensors, dict) and (name := next((name for name in CONTAINERS if _holds_tensors(tensors.get(name))), None)):
        tensors = tensors[name]
        unwrapped.append(name)
    if not _holds_tensors(tensors):
        what = "an object of foreign code" if isinstance(tensors, Ignored) else f"a {type(tensors).__name__}"
        if isinstance(tensors, dict) and tensors:
            what = some(f"{key!r} ({type(value).__name__})" for key, value in tensors.items())
        raise ValueError(f"{str(path)!r} is not a state dict: names of tensors are expected, it holds {what}; {save_alone}")
    others = [str(key) for key, value in tensors.items() if not isinstance(value, Tensor)]
    state = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    description = content.get(METADATA_KEY)
    classes = _classes_of(content.get("meta"))
    return WeightFile(path, state, json.loads(description) if description else None, classes, unwrapped=unwrapped, others=others)


def _holds_tensors(content: Any) -> bool:
    """Whether this is a state dict, or a dict around one."""
    if not isinstance(content, dict):
        return False
    return any((isinstance(key, str) and isinstance(value, Tensor)) or _holds_tensors(value) for key, value in content.items())


def _classes_of(meta: Any) -> Classes | None:
    """The class names in the ``meta`` that mmsegmentation, and NVIDIA's code after it, keeps in a checkpoint."""
    if not isinstance(meta, dict):
        return None
    meta = {key.lower(): value for key, value in {**meta, **(meta.get("dataset_meta") or {})}.items()}
    names, palette = meta.get("classes"), meta.get("palette")
    if not isinstance(names, list | tuple):
        return None
    return named(list(names), [tuple(color) for color in palette] if isinstance(palette, list | tuple) else [])


def named(names: list[str], colors: list[Any]) -> Classes | None:
    """The classes of these names, or none where names or colours are no good: that costs nobody the weights."""
    for palette in (colors, []):
        try:
            return Classes(names, palette)
        except (ValueError, TypeError):
            continue
    return None
