"""Shared by the verbs that take the data of a config: ``benchmark``, ``export``, ``explain``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib import import_module
from typing import Any

from _segformer_verbs import refuse


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the config of the data, their folder, and the loss of mIoU on them."""
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="YAML file for segformer fit: its validation images are measured, its training images "
        "calibrate int8; needs the extra [train]",
    )
    add_root(parser)
    parser.add_argument(
        "--max-drop",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="greatest loss of mIoU, in points, by default 0.5",
    )


def add_root(parser: ArgumentParser) -> None:
    """Adds the folder of a config's data."""
    parser.add_argument(
        "--data.root",
        metavar="DIR",
        dest="data_root",
        help="folder of the images and label maps, in place of the config's",
    )


def data_of(parser: ArgumentParser, options: Namespace) -> Any:
    """Returns the data of the options, a :class:`segformer.train.data.SegmentationData`, or None.

    Raises:
        SystemExit: With code 2 if the extra ``[train]`` is not installed.
        ValueError: If there is a folder and no config, or the data are wrong.
    """
    if options.data is None:
        if options.data_root is not None:
            raise ValueError("--data.root is the folder of a config's data; give it with --data")
        return None
    return data_of_config(f"{parser.prog} --data", options.data, options.data_root)


def data_of_config(what: str, config: str, root: str | None) -> Any:
    """Returns the data of a config, a :class:`segformer.train.data.SegmentationData`.

    Args:
        what: What needs them, for the message.
        config: The config.
        root: Folder of the images and label maps, in place of the config's.

    Raises:
        SystemExit: With code 2 if the extra ``[train]`` is not installed.
    """
    try:
        read = import_module("segformer.train.parser").data_of
    except ModuleNotFoundError as error:
        refuse(f"{what} needs {error.name}; install segformer[train]", error)
    return read(config, root)
