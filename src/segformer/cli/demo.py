"""``segformer demo``: a local web page that shows a network's labels over a photo."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from segformer.deploy import demo, load_model


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="file, folder or Hugging Face id, or an exported file"
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="port of 127.0.0.1; by default a free one from 7860"
    )
    parser.add_argument(
        "--max-side",
        type=int,
        default=demo.MAX_SIDE,
        metavar="N",
        help="photos with a longer side are made smaller first, by default "
        f"{demo.MAX_SIDE} pixels; memory holds classes × N × N × 4 bytes",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0; by default the GPU, if any")


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_args(arguments)
    if options.port is not None and not 1 <= options.port <= 65535:
        raise ValueError(f"--port {options.port}; give a number from 1 to 65535")
    if options.max_side < 1:
        raise ValueError(f"--max-side {options.max_side}; give a number of pixels, at least 1")
    demo.check_installed()
    model = load_model(options.weights, options.device)
    demo.serve(model, Path(options.weights).name, options.port, options.max_side)
