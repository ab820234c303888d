"""``segformer inspect``: print what a checkpoint contains."""

from __future__ import annotations

from argparse import ArgumentParser

from segformer.cli.checkpoints import add_arguments, reading_options
from segformer.evaluation.summary import summarize

__all__ = ["add_arguments", "run"]


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_args(arguments)
    print(summarize(options.source, **reading_options(options)))
