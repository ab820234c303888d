"""``segformer benchmark``: time and measure a model in each format and precision."""

from __future__ import annotations

import json
import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from segformer.cli import data
from segformer.cli.writing import write
from segformer.deploy import FORMATS, is_exported
from segformer.deploy.benchmark import benchmark, check_names
from segformer.deploy.exporting import check_target
from segformer.deploy.ranking import PYTORCH, Benchmark, plot
from segformer.models import SegmentationModel


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="file, folder or Hugging Face id")
    parser.add_argument(
        "formats",
        nargs="*",
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)}; by default all whose packages are installed, except for aoti "
        "and executorch, which compile for minutes",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        default=[],
        metavar="P",
        help="fp32, fp16, bf16 or int8; by default all that a format has",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=("H", "W"),
        help="height and width of the image that is timed, by default 512 512",
    )
    parser.add_argument(
        "--rounds", type=int, default=10, metavar="N", help="how often each is timed, by default 10"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of each engine, by default PyTorch's"
    )
    data.add_arguments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="keep the exported files, and benchmark.png, here"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG of mIoU over milliseconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of all measurements")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of an earlier benchmark"
    )


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_intermixed_args(arguments)
    if options.data is not None and options.plot is None and options.out is not None:
        options.plot = options.out / "benchmark.png"
    check_names(options.formats, options.precision)  # before the slow loading
    _check_files(options)
    if is_exported(options.weights):
        raise ValueError(
            f"{options.weights!r} is an exported file; give the weights it was made of"
        )
    labelled = data.data_of(parser, options)
    result = benchmark(
        SegmentationModel.from_pretrained(options.weights),
        options.formats,
        options.precision,
        size=tuple(options.size),
        rounds=options.rounds,
        threads=options.threads,
        dataset=labelled and labelled.val,
        calibration=labelled and labelled.calibration_images(),
        max_drop=options.max_drop,
        folder=options.out,
        overwrite=options.overwrite,
    )
    print(result)
    if result.best.format != PYTORCH:
        print(_export_line(result, options))
    if options.json:
        text = json.dumps(result.to_dict(), indent=2) + "\n"
        write(options.json, lambda path: path.write_text(text, encoding="utf-8"))
    if options.plot:
        write(options.plot, lambda path: plot(result).savefig(path, format="png"))


def _check_files(options: Namespace) -> None:
    """Raises an error if the plot or the measurements cannot be written."""
    if options.plot is not None and options.data is None:
        raise ValueError("--plot shows mIoU; give labelled images with --data CONFIG")
    if options.plot is not None and options.plot.suffix != ".png":
        raise ValueError(f"--plot {str(options.plot)!r} is a PNG file; let its name end in .png")
    for path in filter(None, (options.plot, options.json)):
        check_target(path, options.overwrite)


def _export_line(result: Benchmark, options: Namespace) -> str:
    """Returns the command that exports the best."""
    best = result.best
    words = ["segformer", "export", options.weights, f"model{FORMATS[best.format].suffix}"]
    words += ["--format", best.format, "--precision", best.precision]
    if not FORMATS[best.format].is_dynamic:
        words += ["--size", *map(str, result.size)]
    if best.precision == "int8":
        words += ["--data", options.data]
        words += ["--data.root", options.data_root] if options.data_root else []
        words += ["--max-drop", f"{options.max_drop:g}"]
    return shlex.join(words)
