"""The options of ``segformer fit FOLDER`` and ``check FOLDER``: its own, and those of the run."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from segformer.train.parser import Parser

WITHOUT_DOT = ("seed_everything", "one_logit")  # settings of the run
REFUSED = {
    "config": "a folder and --config are given; leave one out",
    "ckpt_path": "--ckpt_path resumes a run; resume it by its own file: segformer fit --config "
    "RUN/config.yaml --ckpt_path last",
    "print_config": "--print_config is for --config; --dry_run writes the YAML of a folder",
    "write-statistics": "--write-statistics is for --config; segformer fit FOLDER --dry_run writes "
    "the YAML of a folder with its statistics",
}


@dataclass(frozen=True)
class Options:
    """The options of a folder, beside the settings of the run.

    Args:
        folder: The folder.
        settings: Settings of the run by their key, such as ``trainer.max_steps``.
        out: YAML file to write; by default ``run.yaml`` in the run's folder.
        dry_run: Whether only the YAML file is written.
        val_share: Share of the images that validate, if the folder has no splits.
        val_seed: Random seed of their choice.
        train_names: Text file that lists the training images.
        val_names: Text file that lists the validation images.
        group: Regular expression for the part of a path that images of one group have in common.
        variant: Size of the network from random weights.
        weights: Weights to start from.
        num_workers: Number of loader processes of ``check``.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
    dry_run: bool = False
    val_share: float | None = None
    val_seed: int = 0
    train_names: Path | None = None
    val_names: Path | None = None
    group: str | None = None
    variant: str | None = None
    weights: str | None = None
    num_workers: int = 2


def parse(verb: str, arguments: Sequence[str]) -> Options:
    """Returns the options of a folder, which is the first argument.

    Raises:
        argparse.ArgumentError: If an option is unknown or its value has the wrong type.
        ValueError: If options exclude each other.
    """
    folder, *rest = arguments
    if Path(folder).is_file():
        raise ValueError(f"{folder!r} is a file; pass a config by --config {folder}")
    own, settings = _separated(rest)
    given = vars(own_parser(verb).parse_args(own))
    is_listed = given["train_names"] is not None or given["val_names"] is not None
    if is_listed and (given["val_share"] is not None or given["group"] is not None):
        raise ValueError("--val_share and --group divide images that no list names; remove them")
    if given["weights"] and given["variant"]:
        raise ValueError("--weights have their own variant; remove --variant")
    return Options(Path(folder), settings, **given)


def own_parser(verb: str) -> Parser:
    """Returns the parser of a folder's own options; the command's short help lists them, too."""
    parser = Parser(f"segformer {verb}", allow_abbrev=False)
    parser.add_argument("--out", type=Path | None, default=None)
    if verb == "fit":
        parser.add_argument("--dry_run", action="store_true")
    else:
        parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--val_share", type=float | None, default=None)
    parser.add_argument("--val_seed", type=int, default=0)
    parser.add_argument("--train_names", type=Path | None, default=None)
    parser.add_argument("--val_names", type=Path | None, default=None)
    parser.add_argument("--group", type=str | None, default=None)
    parser.add_argument("--variant", type=str | None, default=None)
    parser.add_argument("--weights", type=str | None, default=None)
    return parser


def _separated(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Returns a folder's own options, and the settings of the run, whose keys have dots."""
    own: list[str] = []
    settings: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if name in REFUSED and word.startswith("--"):
            raise ValueError(REFUSED[name])
        if not word.startswith("--") or ("." not in name and name not in WITHOUT_DOT):
            own.append(word)
            continue
        if not equals:
            if not words:
                raise ArgumentError(None, f"--{name} needs a value")
            text = words.pop(0)
        settings[name] = _value(text)
    return own, settings


def _value(text: str) -> Any:
    """Returns the value that a text has in YAML, and numbers such as 1e-3, which lack a point."""
    if re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", text):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def with_option(
    settings: Mapping[str, Any], key: str, value: Any, above: str = ""
) -> dict[str, Any]:
    """Returns settings with the value of a key such as ``model.network.backbone``.

    As on the command line of a config, the options of a class follow its key: they are below
    ``init_args``, and a text that is a class is its ``class_path``.

    Args:
        settings: Settings, which stay unchanged.
        key: Names that lead to the value, separated by dots.
        value: The value.
        above: The key of the settings themselves, for the message.

    Raises:
        ValueError: If the key is below a list or a number.
    """
    name, _, below = key.partition(".")
    changed = dict(settings)
    if "class_path" in changed and name not in ("class_path", "init_args"):
        changed["init_args"] = with_option(changed.get("init_args") or {}, key, value, above)
        return changed
    old = changed.get(name)
    if not below:
        is_class = isinstance(old, dict) and "class_path" in old and isinstance(value, str)
        changed[name] = {"class_path": value} if is_class else value
        return changed
    if isinstance(old, str):
        old = {"class_path": old}
    if not isinstance(old, dict | None) or name.endswith("+"):
        raise ValueError(
            f"--{above}{key} changes {name}, which has no options of its own; write the YAML by "
            "--dry_run, and edit it"
        )
    changed[name] = with_option(old or {}, below, value, f"{above}{name}.")
    return changed
