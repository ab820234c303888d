"""``segformer check``: read the data of a config or a folder before training."""

from __future__ import annotations

from argparse import ArgumentParser

from segformer.cli import training


def add_arguments(parser: ArgumentParser) -> None:
    training.add_options(
        parser,
        training.CONFIG,
        training.ROOT,
        ("--out FILE", "picture to write, of samples and their labels; check.png by default"),
        ("--write-statistics", "add mean, deviation and range of the bands to the config"),
        ("--num_workers N", "number of loader processes; 2 by default"),
    )
    training.add_folder(parser)


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    training.run_on("check", parser, "check", arguments)
