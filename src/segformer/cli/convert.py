"""``segformer convert``: write a checkpoint in another layout."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from segformer.checkpoint import WRITABLE
from segformer.cli import checkpoints
from segformer.deploy.exporting import check_target
from segformer.models import SegFormer


def add_arguments(parser: ArgumentParser) -> None:
    checkpoints.add_arguments(parser)
    parser.add_argument(
        "target",
        metavar="OUT",
        help="a .safetensors file; for nvidia and smp also a .pth file; for huggingface a folder",
    )
    parser.add_argument(
        "--layout", choices=WRITABLE, default="native", help="layout of OUT, by default native"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_args(arguments)
    check_target(Path(options.target), options.overwrite)
    model = SegFormer.from_pretrained(options.source, **checkpoints.reading_options(options))
    model.save(options.target, options.layout)
    print(f"{options.target}: {options.layout} layout")
