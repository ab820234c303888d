"""The parsers of a training config: of all its settings, or of its data alone."""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser

from segformer.evaluation import PROTOCOLS
from segformer.train.data import SegmentationData
from segformer.train.report import Report
from segformer.train.resume import Resumable

OF_RUNS = (  # options that say nothing about the data
    *("model", "trainer", "seed_everything", "one_logit", "checkpoint", "resume", "report"),
    *("ckpt_path", "weights", "weights_only", "protocol", "tta", "per_image", "compare"),
)


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
    add_callbacks(parser, "val/miou")
    parser.add_lightning_class_args(Report, "report")
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


def add_callbacks(parser: LightningArgumentParser, monitor: str) -> None:
    """Adds the checkpoints of the best score, whose name is ``monitor``, and those to resume."""
    parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
    parser.set_defaults(
        {"checkpoint.monitor": monitor, "checkpoint.mode": "max", "checkpoint.save_last": True}
    )
    parser.add_lightning_class_args(Resumable, "resume")


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
    parser.add_argument(
        "--per-image",
        "--per_image",
        action="store_true",
        help="write a table of IoU and boundary IoU of each image",
    )
    parser.add_argument(
        "--compare",
        type=str | None,
        default=None,
        help="other weights or an exported file: write the difference, with bootstrap intervals, "
        "and the images that --weights labels worse",
    )


def data_parser(name: str, **options: Any) -> Parser:
    """Returns a parser of a config of which only the data are used."""
    parser = Parser(name, **options)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(SegmentationData, "data", required=True)
    for other in OF_RUNS:
        parser.add_argument(f"--{other}", type=Any, default=None)
    return parser


def build_data(settings: Namespace) -> SegmentationData:
    """Returns the data module of its settings.

    Raises:
        DataError: If files have faults.
        FileNotFoundError: If a folder is missing or empty.
        ValueError: If the settings are wrong.
    """
    # jsonargparse builds the parts of the data module only. It would quote the whole config in the
    # errors of the data module itself.
    module, _, name = settings.class_path.rpartition(".")
    kind: Any = getattr(import_module(module), name)
    parts = Parser()
    parts.add_class_arguments(kind, "data", instantiate=False)
    given = Namespace(data=settings.get("init_args", Namespace()))
    return kind(**parts.instantiate_classes(given).data)


def data_of(config: str, root: str | None = None) -> SegmentationData:
    """Returns the data of a config; ``val`` has the samples that ``segformer validate`` measures.

    Args:
        config: A YAML file for ``segformer fit``.
        root: Folder of the data, in place of the config's ``data.root``.

    Raises:
        argparse.ArgumentError: If the config has an unknown key, or a value of the wrong type.
        DataError: If files have faults.
        FileNotFoundError: If a folder is missing or empty.
        ValueError: If the settings are wrong.
    """
    arguments = [f"--config={config}"] + ([f"--data.root={root}"] if root else [])
    settings = data_parser("data").parse_args(arguments).data
    drop_unlabelled(settings)
    return build_data(settings)


def drop_unlabelled(data: Namespace) -> None:
    """Leaves images without labels out of the settings of data: only training uses them."""
    if data.get("init_args", Namespace()).get("unlabelled_images"):
        data.init_args.unlabelled_images = None
