"""``segformer inspect``: print what a checkpoint or a named model contains."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from segformer.cli import checkpoints
from segformer.cli.writing import write
from segformer.deploy.exporting import check_target
from segformer.evaluation.flow import draw, trace
from segformer.evaluation.summary import summarize, without_weights

SIZE = (512, 512)


def add_arguments(parser: ArgumentParser) -> None:
    checkpoints.add_arguments(
        parser,
        f"{checkpoints.SOURCE}; or the name of a model: b0 … b5, setr-large, setr-tiny-mla, "
        "conv-segformer, or timm's name of a backbone, such as resnet50",
    )
    parser.add_argument(
        "--flow",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="print what each module makes of an image of this size, and what it costs",
    )
    parser.add_argument(
        "--depth", type=int, metavar="N", help="levels of modules in --flow, by default all"
    )
    parser.add_argument(
        "--draw",
        type=Path,
        metavar="FILE",
        help="SVG picture of the same, by default for an image of 512×512",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_args(arguments)
    reading = checkpoints.reading_options(options)
    _check(options)
    if options.flow is None and options.draw is None:
        print(summarize(options.source, **reading))
        return
    flow = trace(without_weights(options.source, **reading), *(options.flow or SIZE))
    if options.flow is not None:
        print(flow.table(options.depth))
    if options.draw is not None:
        write(options.draw, lambda path: path.write_text(draw(flow), encoding="utf-8"))


def _check(options: Namespace) -> None:
    """Raises an error if the options do not fit, or the picture cannot be written."""
    if options.depth is not None and options.flow is None:
        raise ValueError(f"--depth {options.depth} is for the table of --flow; add --flow H W")
    if options.depth is not None and options.depth < 1:
        raise ValueError(f"--depth {options.depth} shows nothing; give 1 or more")
    if options.draw is None:
        return
    if options.draw.suffix != ".svg":
        raise ValueError(f"--draw {str(options.draw)!r} is an SVG file; let its name end in .svg")
    check_target(options.draw, options.overwrite)
