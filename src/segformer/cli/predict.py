"""``segformer predict``: label images with a trained network."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from segformer.deploy import load_model
from segformer.evaluation import Slide
from segformer.inference import InWindows, Labeller, WholeImages, label_files, plan


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


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_args(arguments)
    labeller = _labeller(options)
    targets_of = plan(options.images, options.out, options.overwrite)  # before the slow loading
    label_files(load_model(options.weights, options.device), targets_of, labeller)


def _labeller(options: Namespace) -> Labeller:
    """Returns how images are labelled."""
    if options.slide:
        return InWindows(Slide(*((side, side) for side in options.slide)))
    return WholeImages()
