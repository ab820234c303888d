"""``segformer validate``: measure a network on the validation split."""

from __future__ import annotations

from argparse import ArgumentParser

from segformer.cli import training
from segformer.cli.measuring import add_arguments

__all__ = ["add_arguments", "run"]


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    training.run("lightning_cli", parser, ["validate", *arguments])
