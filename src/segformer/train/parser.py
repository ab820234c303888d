"""The parser of a training config: one option for each setting."""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable
from typing import NoReturn

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser

from segformer.evaluation import PROTOCOLS
from segformer.train.report import Report
from segformer.train.resume import Resumable


class Parser(LightningArgumentParser):
    """Raises ArgumentError where jsonargparse exits.

    The error has the names of the parser's options, ``options``, to suggest the closest.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        error: ArgumentError = ArgumentError(None, message)
        error.options = option_names(self)  # type: ignore[attr-defined]
        raise error from ex


def option_names(parser: ArgumentParser) -> list[str]:
    """Returns the names of a parser's options and of its subcommands' options, without dashes."""
    names = [name.lstrip("-") for name in parser._option_string_actions if name[-5:] != ".help"]
    for action in parser._actions:
        if isinstance(action.choices, dict):
            names += [name for child in action.choices.values() for name in option_names(child)]
    return names


def add_options(parser: LightningArgumentParser, logits: Callable[[int], int]) -> None:
    """Adds this package's options to those of the trainer, the task and the data.

    Args:
        parser: The parser of a verb.
        logits: Number of logits for a number of classes.
    """
    _add_classes(parser, logits)
    _add_callbacks(parser)
    _add_measurement(parser)


def _add_classes(parser: LightningArgumentParser, logits: Callable[[int], int]) -> None:
    parser.add_argument(
        "--one_logit",
        type=bool,
        default=False,
        help="separate two classes by one logit instead of two",
    )
    parser.link_arguments(
        "data.num_classes",
        "model.network.init_args.num_classes",
        compute_fn=logits,
        apply_on="instantiate",
    )


def _add_callbacks(parser: LightningArgumentParser) -> None:
    parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
    parser.set_defaults(
        {"checkpoint.monitor": "val/miou", "checkpoint.mode": "max", "checkpoint.save_last": True}
    )
    parser.add_lightning_class_args(Resumable, "resume")
    parser.add_lightning_class_args(Report, "report")


def _add_measurement(parser: LightningArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        type=str | None,
        default=None,
        help="weights to measure, in any layout that from_pretrained reads, or an exported file",
    )
    parser.add_argument(
        "--protocol",
        type=str | None,
        default=None,
        help=f"protocol to measure by: {', '.join(PROTOCOLS)}",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over several sizes and mirrored images, as in the papers' column ms",
    )
