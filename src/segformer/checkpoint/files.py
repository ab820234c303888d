"""From the name of a file, a folder or a Hugging Face repository to the content of its weights."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from segformer.checkpoint.foreign import kind_of_file, kind_of_folder
from segformer.checkpoint.formats import (
    DOWNLOAD_AGAIN,
    WeightFile,
    read_pickle,
    read_safetensors,
)
from segformer.checkpoint.report import some

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# The licence of the repositories nvidia/mit-… and nvidia/segformer-…; their files do not state it.
NVIDIA_LICENCE = "NVIDIA Source Code License for SegFormer: non-commercial, research and evaluation"
NVIDIA_WEIGHTS = ("nvidia/mit-", "nvidia/segformer-")
# What transformers and this package write, in transformers' own order of preference.
STANDARD_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def open_weights(
    source: str | os.PathLike[str],
    revision: str | None = None,
    subfolder: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> WeightFile:
    """Returns the weights of a file, a folder or a Hugging Face repository.

    Args:
        source: Path of the file or folder, or the repository's id; ``~`` is the home folder.
        revision: Branch, tag or commit of the repository.
        subfolder: Folder below ``source`` that holds the weights.
        token: Token for the hub; by default the one that ``hf auth login`` has stored.
        cache_dir: Folder for downloaded files; by default the hub's own cache.

    Raises:
        FileNotFoundError: If there are no weights, or a shard is missing.
        ValueError: If a folder has two candidates, or a file is empty, truncated, no checkpoint, or
            holds more than tensors.
    """
    path = Path(source).expanduser()
    is_local = path.exists()
    if is_local:
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} given for {str(source)!r}, which is a local path; remove "
                "revision, which only Hugging Face repositories have"
            )
    else:
        path = _download(source, revision, subfolder, {"token": token, "cache_dir": cache_dir})
    if subfolder is not None:
        path = path / subfolder
        if not path.exists():
            raise FileNotFoundError(f"no folder {subfolder!r} in {str(source)!r}")
    if path.is_dir():
        path = _weights_in(path)
    file = _read(path)
    if not is_local and str(source).startswith(NVIDIA_WEIGHTS):
        file.licence = NVIDIA_LICENCE
    file.config = _config_beside(path)
    if file.config is not None:
        found = _find_preprocessor(path.parent)
        file.preprocessor = None if found is None else found[0]
    return file


def _config_beside(path: Path) -> dict[str, Any] | None:
    """Returns the configuration beside weights; beside a name of one's own, only a SegFormer's."""
    config, is_standard = path.parent / "config.json", path.name in STANDARD_NAMES
    if not config.is_file():
        return None
    try:
        content = read_json(config)
    except ValueError:
        if is_standard:
            raise
        return None  # it may be of another program
    return content if is_standard or content.get("model_type") == "segformer" else None


def open_preprocessor(source: str | os.PathLike[str]) -> tuple[dict[str, Any], Path]:
    """Returns the configuration of a checkpoint's image processor, and the path of its file.

    Args:
        source: Folder or Hugging Face id of the checkpoint, or a file in its folder.

    Raises:
        FileNotFoundError: If there is no such source, or it has no configuration.
    """
    path = Path(source).expanduser()
    if not path.exists():
        path = _download(source, None, None, {})
    folder = path if path.is_dir() else path.parent
    found = _find_preprocessor(folder)
    if found is None:
        raise FileNotFoundError(
            f"no preprocessor_config.json in {str(folder)!r}; copy the checkpoint's own there, or "
            "label without --processor"
        )
    return found


def _find_preprocessor(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """Returns a Hugging Face folder's configuration of the image processor, in either file."""
    processor, own = folder / "processor_config.json", folder / "preprocessor_config.json"
    nested = read_json(processor).get("image_processor") if processor.is_file() else None
    if isinstance(nested, dict):
        return nested, processor
    return (read_json(own), own) if own.is_file() else None


def _download(
    source: str | os.PathLike[str],
    revision: str | None,
    subfolder: str | None,
    options: dict[str, Any],
) -> Path:
    """Downloads a Hugging Face repository's weights and JSON files; returns their folder."""
    is_id = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    if not is_id or Path(source).suffix in SUFFIXES:
        raise FileNotFoundError(
            f"no file or folder {str(source)!r}; a Hugging Face id has the form 'organisation/name'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    prefix = "" if subfolder is None else f"{subfolder.strip('/')}/"

    def download(*patterns: str) -> Path:
        selection: dict[str, Any] = {
            "allow_patterns": [prefix + pattern for pattern in patterns],
            "ignore_patterns": [f"{prefix}*/*"],
        }
        given = {name: value for name, value in options.items() if value is not None}
        return Path(snapshot_download(str(source), revision=revision, **selection, **given))

    try:
        folder = download("*.json", "*.safetensors")
        if not any((folder / prefix).glob("*.safetensors")):  # older repositories have a pickle
            folder = download("*.json", *(f"*{suffix}" for suffix in SUFFIXES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"no file or folder {source!r}, and the Hugging Face hub gave an error: {error}"
        ) from error
    return folder


def _weights_in(folder: Path) -> Path:
    """Returns the path of the weights in a folder."""
    for name in STANDARD_NAMES:
        if (folder / name).is_file():
            return folder / name
    if kind := kind_of_folder(folder):
        raise ValueError(f"{str(folder)!r} is {kind}")
    candidates = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not candidates:
        raise FileNotFoundError(
            f"no weights ({', '.join(STANDARD_NAMES)}) in {str(folder)!r}; "
            f"found {some(os.listdir(folder))}"
        )
    if len(candidates) > 1:
        raise ValueError(
            f"{str(folder)!r} holds {len(candidates)} candidates: {some(candidates)}; "
            "name one of these files"
        )
    return folder / candidates[0]


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        ValueError: If the file is not valid JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}; {DOWNLOAD_AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{str(path)!r} holds a {type(content).__name__}, not an object of names and values; "
            f"{DOWNLOAD_AGAIN}"
        )
    return content


def _read_shards(index: Path) -> WeightFile:
    """Returns the weights of all the files that an index lists."""
    weight_map = read_json(index).get("weight_map")
    is_map = isinstance(weight_map, dict) and all(
        isinstance(name, str) and not name.endswith(".index.json") for name in weight_map.values()
    )
    if not (weight_map and is_map):
        raise ValueError(
            f"{str(index)!r} has no weight_map, which lists the file of each tensor; "
            f"{DOWNLOAD_AGAIN}"
        )
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{str(index)!r} lists {len(names)} files, and these are not beside it: "
            f"{some(missing)}; {DOWNLOAD_AGAIN}"
        )
    shards = {name: _read(index.parent / name) for name in names}
    missing = [key for key, name in weight_map.items() if key not in shards[name].tensors]
    if missing:
        raise ValueError(
            f"{str(index)!r} lists files for {some(missing)} that do not hold them; "
            f"{DOWNLOAD_AGAIN}"
        )
    tensors = {key: tensor for shard in shards.values() for key, tensor in shard.tensors.items()}
    # A file that was left there from before may hold other values of a listed tensor.
    tensors |= {key: shards[name].tensors[key] for key, name in weight_map.items()}
    classes = next((shard.classes for shard in shards.values() if shard.classes), None)
    licence = next((shard.licence for shard in shards.values() if shard.licence), None)
    return WeightFile(index, tensors, classes=classes, licence=licence)


def _read(path: Path) -> WeightFile:
    """Returns the content of a file. Its first bytes decide how it is read, not its name."""
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise ValueError(f"{str(path)!r} is empty; {DOWNLOAD_AGAIN}")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if head.startswith((b"version h", b"<!doctype", b"<!DOCTYPE", b"<html")):
        raise ValueError(
            f"{str(path)!r} is a web page or a Git LFS pointer instead of weights; "
            f"{DOWNLOAD_AGAIN} (with git: git lfs pull)"
        )
    if kind := kind_of_file(path, head):
        raise ValueError(f"{str(path)!r} is {kind}")
    is_safetensors = head[8:] == b"{" or path.suffix == ".safetensors"
    return read_safetensors(path) if is_safetensors else read_pickle(path)
