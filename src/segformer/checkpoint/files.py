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

from segformer.checkpoint.foreign import kind_of_file, kind_of_folder
from segformer.checkpoint.report import some
from segformer.data.classes import Classes

State = dict[str, Tensor]
METADATA_KEY = "segformer"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# What transformers and this package write, in transformers' own order of preference.
STANDARD_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Where training loops keep a state dict; the averaged one comes first, as it is what they measure.
CONTAINERS = (
    "state_dict_ema",
    "model_ema",
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
        preprocessor: what its preprocessor_config.json says of images.
        unwrapped: the containers that the tensors lay in.
        others: what lay beside the tensors under a name, and is none.
    """

    path: Path
    tensors: State
    description: dict[str, Any] | None = None
    classes: Classes | None = None
    config: dict[str, Any] | None = None
    preprocessor: dict[str, Any] | None = None
    unwrapped: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def open_weights(
    source: str | os.PathLike[str],
    revision: str | None = None,
    subfolder: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> WeightFile:
    """The weights of a file, a folder or a hub id.

    Args:
        source: the file, the folder or the id; ``~`` is the home folder.
        revision: branch, tag or commit on the hub.
        subfolder: the folder below ``source`` where the weights lie.
        token: for the hub; by default the one that its own command line has stored.
        cache_dir: where what the hub gives is kept; by default the hub's own cache.

    Raises:
        FileNotFoundError: when there is none, or a shard is missing.
        ValueError: when a folder has two candidates, or a file is empty, truncated, no checkpoint, or holds more than tensors.
    """
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} given for {str(source)!r}, which is here on disk; a revision is a hub repository's"
            )
    else:
        path = _download(source, revision, subfolder, {"token": token, "cache_dir": cache_dir})
    if subfolder is not None:
        path = path / subfolder
        if not path.exists():
            raise FileNotFoundError(f"no folder {subfolder!r} in {str(source)!r}")
    if path.is_dir():
        path = _weights_of(path)
    file = _read(path)
    if path.name in STANDARD_NAMES and (path.parent / "config.json").is_file():
        file.config = read_json(path.parent / "config.json")
        file.preprocessor = _read_preprocessor(path.parent)
    return file


def _read_preprocessor(folder: Path) -> dict[str, Any] | None:
    """What a Hugging Face folder says of images, in its processor's file or in one of its own."""
    processor, own = folder / "processor_config.json", folder / "preprocessor_config.json"
    nested = read_json(processor).get("image_processor") if processor.is_file() else None
    if isinstance(nested, dict):
        return nested
    return read_json(own) if own.is_file() else None


def _download(
    source: str | os.PathLike[str],
    revision: str | None,
    subfolder: str | None,
    options: dict[str, Any],
) -> Path:
    """The folder of a hub repository's files, downloaded."""
    is_id = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    if not is_id or Path(source).suffix in SUFFIXES:
        raise FileNotFoundError(
            f"no file or folder {str(source)!r}; a Hugging Face id would read 'organisation/name'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    inside = "" if subfolder is None else f"{subfolder.strip('/')}/"

    def folder_of(*patterns: str) -> Path:
        wanted = [inside + pattern for pattern in patterns]
        below = [f"{inside}*/*"]
        patterns_of: dict[str, Any] = {"allow_patterns": wanted, "ignore_patterns": below}
        given = {name: value for name, value in options.items() if value is not None}
        return Path(snapshot_download(str(source), revision=revision, **patterns_of, **given))

    try:
        folder = folder_of("*.json", "*.safetensors")
        if not any(
            (folder / inside).glob("*.safetensors")
        ):  # older repositories have a pickle only
            folder = folder_of("*.json", *(f"*{suffix}" for suffix in SUFFIXES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"no file or folder {source!r}, and as a Hugging Face id: {error}"
        ) from error
    return folder


def _weights_of(folder: Path) -> Path:
    for name in STANDARD_NAMES:
        if (folder / name).is_file():
            return folder / name
    if kind := kind_of_folder(folder):
        raise ValueError(f"{str(folder)!r} is {kind}")
    candidates = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not candidates:
        raise FileNotFoundError(
            f"no weights ({', '.join(STANDARD_NAMES)}) in {str(folder)!r}; found {some(os.listdir(folder))}"
        )
    if len(candidates) > 1:
        raise ValueError(
            f"{str(folder)!r} holds {len(candidates)} candidates: {some(candidates)}; name one of these files"
        )
    return folder / candidates[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{str(path)!r} holds a {type(content).__name__}, not an object of names and values"
        )
    return content


def _read_shards(index: Path) -> WeightFile:
    weight_map = read_json(index).get("weight_map")
    if not weight_map:
        raise ValueError(
            f"{str(index)!r} has no weight_map, which tells the file of each tensor; {DOWNLOAD_AGAIN}"
        )
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{str(index)!r} names {len(names)} files, and these are not beside it: {some(absent)}"
        )
    tensors: State = {}
    for name in names:
        tensors |= _read(index.parent / name).tensors
    absent = [key for key in weight_map if key not in tensors]
    if absent:
        raise ValueError(
            f"{str(index)!r} places {some(absent)} in files that do not hold it; {DOWNLOAD_AGAIN}"
        )
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
        raise ValueError(
            f"{str(path)!r} is a page or a pointer in the place of the weights; {DOWNLOAD_AGAIN} (with git: git lfs pull)"
        )
    if kind := kind_of_file(path, head):
        raise ValueError(f"{str(path)!r} is {kind}")
    return (
        _read_safetensors(path)
        if head[8:] == b"{" or path.suffix == ".safetensors"
        else _read_pickle(path)
    )


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
        raise ValueError(
            f"cannot read {str(path)!r}: {error}; it is truncated or no safetensors file: {DOWNLOAD_AGAIN}"
        ) from error
    return WeightFile(path, tensors, _description(description, path))


def _description(text: Any, path: Path) -> dict[str, Any] | None:
    """What our own files say of their model; None for what others keep under the same name.

    Raises:
        ValueError: when it is broken.
    """
    if not isinstance(text, str) or not text.startswith("{"):
        return None
    try:
        description = json.loads(text)
    except ValueError as error:
        said = f"describes its model by broken JSON ({error}); {DOWNLOAD_AGAIN}"
        raise ValueError(f"{str(path)!r} {said}") from error
    return description if "backbone" in description else None


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
    save_alone = (
        "where it came from, save its state dict alone: torch.save(model.state_dict(), path)"
    )
    try:
        content = _unpickled(path)
    except Exception as error:  # garbage raises whatever the unpickler trips over: KeyError, EOFError, RuntimeError, …
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise ValueError(
                f"{str(path)!r} holds more than tensors, and unpickling it could run foreign code; {save_alone}"
            ) from error
        reason = (
            str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
            or [type(error).__name__]
        )[0]
        raise ValueError(
            f"cannot read {str(path)!r}: {reason}; it is truncated or no checkpoint: {DOWNLOAD_AGAIN}"
        ) from error
    tensors, unwrapped = _unwrapped(content, path)
    if not _holds_tensors(tensors):
        what = (
            "an object of foreign code"
            if isinstance(tensors, Ignored)
            else f"a {type(tensors).__name__}"
        )
        if isinstance(tensors, dict) and tensors:
            what = some(f"{key!r} ({type(value).__name__})" for key, value in tensors.items())
        raise ValueError(
            f"{str(path)!r} is not a state dict: names of tensors are expected, it holds {what}; {save_alone}"
        )
    others = [str(key) for key, value in tensors.items() if not isinstance(value, Tensor)]
    state = _owned(
        {key: value for key, value in tensors.items() if isinstance(value, Tensor)}, path
    )
    description = _description(content.get(METADATA_KEY), path)
    classes = _classes_of(content.get("meta"))
    return WeightFile(path, state, description, classes, unwrapped=unwrapped, others=others)


def _unwrapped(content: Any, path: Path) -> tuple[Any, list[str]]:
    """The state dict in a file's content, and the names of the containers around it.

    Raises:
        ValueError: when there are several, under names that do not tell which is meant.
    """
    unwrapped: list[str] = []
    while isinstance(content, dict):
        names = [name for name in CONTAINERS if _holds_tensors(content.get(name))][:1]
        if not names and not any(isinstance(value, Tensor) for value in content.values()):
            names = [name for name, value in content.items() if _holds_parameters(value)]
        if len(names) > 1:
            several = some(map(repr, names))
            raise ValueError(f"{str(path)!r} holds several state dicts, {several}; save one alone")
        if not names:
            break
        content = content[names[0]]
        unwrapped.append(str(names[0]))
    return content, unwrapped


def _holds_parameters(content: Any) -> bool:
    """Whether this is a state dict with modules' names, as no optimiser has, or a dict around one."""
    if not isinstance(content, dict):
        return False
    if any(isinstance(content[key], Tensor) and "." in str(key) for key in content):
        return True
    return any(map(_holds_parameters, content.values()))


def _owned(tensors: State, path: Path) -> State:
    """Each tensor with memory of its own, and nothing of the graph it came from.

    Two tensors of a pickle may share their storage, be parts of one, or repeat a value (``expand``);
    a model of them would have parameters that change together or cannot be changed.

    Raises:
        ValueError: naming a tensor without values.
    """
    seen: set[int] = set()
    for key, tensor in tensors.items():
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else "quantised" if tensor.is_quantized else "sparse"
            cure = "save one with plain values (dense, dequantised, on a device)"
            raise ValueError(f"{str(path)!r}: {key} is a {kind} tensor; {cure}")
        storage = tensor.untyped_storage()
        is_alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        tensor = tensor.detach()
        tensors[key] = tensor if is_alone else tensor.clone(memory_format=torch.contiguous_format)
    return tensors


def _holds_tensors(content: Any) -> bool:
    """Whether this is a state dict, or a dict around one."""
    if not isinstance(content, dict):
        return False
    return any(
        (isinstance(key, str) and isinstance(value, Tensor)) or _holds_tensors(value)
        for key, value in content.items()
    )


def _classes_of(meta: Any) -> Classes | None:
    """The class names in the ``meta`` that mmsegmentation, and NVIDIA's code after it, keeps in a checkpoint."""
    if not isinstance(meta, dict):
        return None
    meta = {
        key.lower(): value for key, value in {**meta, **(meta.get("dataset_meta") or {})}.items()
    }
    names, palette = meta.get("classes"), meta.get("palette")
    if not isinstance(names, list | tuple):
        return None
    return named(
        list(names),
        [tuple(color) for color in palette] if isinstance(palette, list | tuple) else [],
    )


def named(names: list[str], colors: list[Any]) -> Classes | None:
    """The classes of these names, or none where names or colours are no good: that costs nobody the weights."""
    for palette in (colors, []):
        try:
            return Classes(names, palette)
        except (ValueError, TypeError):
            continue
    return None
