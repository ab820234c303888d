"""Shared by ``segformer inspect`` and ``segformer convert``: how a checkpoint is read."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from segformer.checkpoint import LAYOUTS

SOURCE = "file, folder or Hugging Face id"


def add_arguments(parser: ArgumentParser, source: str = SOURCE) -> None:
    """Adds the source, with its help, and the options of reading it."""
    parser.add_argument("source", metavar="IN", help=source)
    parser.add_argument(
        "--source-layout",
        choices=LAYOUTS,
        metavar="LAYOUT",
        help=f"layout of IN, if the names of its tensors fit several: {', '.join(LAYOUTS)}",
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="number of classes of a new, random classifier"
    )
    parser.add_argument(
        "--in-channels",
        type=int,
        metavar="N",
        help="number of image channels; the first layer's weights are summed or repeated",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hugging Face hub")


def reading_options(options: Namespace) -> dict[str, Any]:
    """Returns the arguments of :func:`segformer.checkpoint.read`."""
    return {
        "num_classes": options.num_classes,
        "in_channels": options.in_channels,
        "layout": options.source_layout,
        "revision": options.revision,
    }
