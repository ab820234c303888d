"""``segformer predict``: label images with a trained network."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from segformer.checkpoint import read_processor
from segformer.deploy import load_model
from segformer.evaluation import PROTOCOLS, Slide, find_protocol
from segformer.inference import (
    ByProcessor,
    ByProtocol,
    InWindows,
    Labeller,
    WholeImages,
    label_files,
    plan,
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="file or folder of weights, Hugging Face id, or exported file, such as model.onnx",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image file, folder of images, or .npy file, uint8 (H, W, 3), larger than memory",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the label maps and overlays, created if missing",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of an earlier run"
    )
    parser.add_argument(
        "--device",
        help="such as cpu or cuda:0; by default the GPU, if any, and the CPU for exported files",
    )
    parser.add_argument(
        "--slide",
        type=int,
        nargs=2,
        metavar=("CROP", "STRIDE"),
        help="label through square windows, such as 1024 768; memory holds the logits of one band "
        "of windows, classes × CROP × width × 4 bytes",
    )

    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help=f"label as a paper measures: {', '.join(PROTOCOLS)}",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over several sizes and mirrored images, as --protocol defines",
    )
    parser.add_argument(
        "--processor",
        action="store_true",
        help="label as transformers does, by the preprocessor_config.json beside the weights",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_args(arguments)
    labeller = _labeller(options)
    targets_of = plan(options.images, options.out, options.overwrite)  # before the slow loading
    label_files(load_model(options.weights, options.device), targets_of, labeller)


def _labeller(options: Namespace) -> Labeller:
    """Returns how images are labelled.

    Raises:
        ValueError: If the options contradict each other.
    """
    ways = [f"--{name}" for name in ("slide", "protocol", "processor") if getattr(options, name)]
    if len(ways) > 1:
        raise ValueError(
            f"{' and '.join(ways)} each say how images are labelled; give only one of them"
        )
    if options.tta and options.protocol is None:
        raise ValueError("--tta needs a --protocol, which has its ratios")
    if options.protocol is not None:
        return ByProtocol(find_protocol(options.protocol, options.tta))
    if options.processor:
        return ByProcessor(read_processor(options.weights))
    if options.slide:
        return InWindows(Slide(*((side, side) for side in options.slide)))
    return WholeImages()
