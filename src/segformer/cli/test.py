"""``segformer test``: measure a network on the test split."""

from __future__ import annotations

from argparse import ArgumentParser

from segformer.cli import training
from segformer.cli.measuring import add_arguments

__all__ = ["add_arguments", "run"]


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    training.run("lightning_cli", parser, ["test", *arguments])
