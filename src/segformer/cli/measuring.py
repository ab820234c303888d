"""Shared by ``segformer validate`` and ``segformer test``: the options of a measurement."""

from __future__ import annotations

from argparse import ArgumentParser

from segformer.cli import training


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options that people use first."""
    training.add_options(
        parser,
        training.CONFIG,
        training.ROOT,
        ("--data.val_batch_size N", "images of one size that are measured together"),
        (
            "--weights FILE",
            "weights to measure: file, folder, Hugging Face id or exported file",
        ),
        ("--ckpt_path FILE", "checkpoint to measure; best or last: that of the newest run"),
        ("--protocol NAME", "measure as a paper does: ade20k, cityscapes, …"),
        ("--tta", "average over several sizes and mirrored images, as --protocol defines"),
        ("--per-image", "write a table of IoU and boundary IoU of each image"),
        (
            "--compare FILE",
            "other weights: their difference with intervals, and the images that got worse",
        ),
        ("--trainer.accelerator NAME", "cpu, cuda or mps; the fastest there is by default"),
        training.DEVICES,
        training.PRECISION,
    )
