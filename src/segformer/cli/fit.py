"""``segformer fit``: train a network, from a config or from a folder."""

from __future__ import annotations

from argparse import ArgumentParser

from segformer.cli import training


def add_arguments(parser: ArgumentParser) -> None:
    training.add_options(
        parser,
        training.CONFIG,
        training.ROOT,
        ("--data.batch_size N", "training images per step and device"),
        ("--model.network CLASS", "segformer.SegFormer, segformer.SETR, segformer.Pretrained, …"),
        ("--model.network.backbone NAME", "size of the network: b0 … b5 for SegFormer"),
        ("--trainer.max_steps N", "number of optimizer steps of the run"),
        training.DEVICES,
        training.PRECISION,
        training.SEED,
        training.RESUME,
    )
    training.add_folder(
        parser,
        ("--variant NAME", "size of the network from random weights: b0 … b5; b0 by default"),
        ("--weights FILE", "weights to start from"),
        ("--out FILE", "YAML to write; run.yaml in the run's folder by default"),
        ("--dry_run", "write the YAML, and do not train"),
    )


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    training.run_on("lightning_cli", parser, "fit", arguments)
