"""``segformer pretrain``: train a classifier, whose backbone segmentation then starts from."""

from __future__ import annotations

from argparse import ArgumentParser

from segformer.cli import training


def add_arguments(parser: ArgumentParser) -> None:
    training.add_options(
        parser,
        training.CONFIG,
        ("--data.root DIR", "folder with train and val, which have a folder of images a class"),
        ("--data.batch_size N", "training images per step and device"),
        ("--model.network.name NAME", "timm's name of the classifier: mit_b0 … mit_b5, …"),
        ("--trainer.max_epochs N", "number of epochs of the run"),
        training.DEVICES,
        training.PRECISION,
        training.SEED,
        training.RESUME,
    )


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    training.run("classification_cli", parser, ["fit", *arguments])
