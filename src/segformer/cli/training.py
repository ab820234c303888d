"""Shared by the verbs of ``train/``: the options that people use first, and the call.

Lightning's parser has an option for each setting of a config. The parsers here have the common
ones, for the help and for completion; they do not read the arguments.
"""

from __future__ import annotations

import logging
from argparse import ArgumentParser
from importlib import import_module
from typing import Any

from _segformer_verbs import refuse

CONFIG = ("--config FILE", "YAML file of settings; the options on the command line override it")
ROOT = ("--data.root DIR", "folder of the images and label maps")
DEVICES = ("--trainer.devices N", "number of devices")
PRECISION = ("--trainer.precision P", "32, bf16-mixed or 16-mixed; 32 by default")
SEED = ("--seed_everything N", "seed of all random numbers")
RESUME = ("--ckpt_path FILE", "resume a run from this checkpoint; last: from its newest one")
MORE = """\
Each setting of the YAML is an option: a key below another one follows it after a dot.
--data.help CLASS lists the options of a class of data; likewise --model.network.help."""
OF_FOLDERS = (  # options of FOLDER, in place of --config
    ("--val_share P", "share of the images for validation; 0.2 by default"),
    ("--val_seed N", "seed of their choice; 0 by default"),
    ("--train_names FILE", "text file that lists the training images"),
    ("--val_names FILE", "text file that lists the validation images"),
    ("--group PATTERN", "regular expression: images whose paths match alike stay together"),
)
ALWAYS = (
    ("--print_config", "print the whole config, with all defaults, and exit"),
    ("--help-all", "list all options and exit"),
)


def add_options(parser: ArgumentParser, *options: tuple[str, str]) -> None:
    """Adds options, each as its name with a placeholder, and a sentence."""
    for option, sentence in (*options, *ALWAYS):
        _add_option(parser, option, sentence)
    parser.usage = f"{parser.prog} --config FILE [options]"
    parser.epilog = f"{MORE}\n\n{parser.epilog}"


def add_folder(parser: ArgumentParser, *options: tuple[str, str]) -> None:
    """Adds the options of a folder, which takes the place of a config."""
    group = parser.add_argument_group("options of FOLDER, a folder of images and label maps")
    for option, sentence in (*OF_FOLDERS, *options):
        _add_option(group, option, sentence)
    parser.usage = f"{parser.prog} --config FILE [options]\n       {parser.prog} FOLDER [options]"


def _add_option(parser: Any, option: str, sentence: str) -> None:
    name, _, placeholder = option.partition(" ")
    if placeholder:
        parser.add_argument(name, metavar=placeholder, help=sentence)
    else:
        parser.add_argument(name, action="store_true", help=sentence)


def run_on(module: str, parser: ArgumentParser, verb: str, arguments: list[str]) -> None:
    """Runs a verb of ``train/`` on a folder, if it is the first argument, or by a module."""
    if arguments and not arguments[0].startswith("-"):
        run("from_folder.command", parser, [verb, *arguments])
    else:
        run(module, parser, arguments if module == verb else [verb, *arguments])


def run(module: str, parser: ArgumentParser, arguments: list[str]) -> None:
    """Prints the short help, or runs a module of ``train/`` with the arguments.

    Raises:
        SystemExit: With code 2 if the extra ``[train]`` is not installed.
    """
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        return
    try:
        main = import_module(f"segformer.train.{module}").main
    except ModuleNotFoundError as error:
        refuse(f"{parser.prog} needs {error.name}; install segformer[train]", error)
    logging.getLogger("lightning").handlers.clear()  # the root logger prints its messages already
    main(["--help" if argument == "--help-all" else argument for argument in arguments])
