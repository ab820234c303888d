"""``segformer suggest``: choose the images to label next, and suggest their labels."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from segformer.data.annotations.for_tools import TOOLS
from segformer.data.images import find_images
from segformer.deploy import load_model
from segformer.inference.jobs import check_missing
from segformer.inference.scenes import suffixes_of
from segformer.inference.suggestions import PICTURE, TABLE, suggest, unlabelled, write_suggestions


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="file or folder of weights, Hugging Face id, or exported file of logits",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of images to label")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the suggestions"
    )
    parser.add_argument(
        "--count", type=int, default=60, metavar="N", help="number of images, by default 60"
    )
    parser.add_argument(
        "--tool",
        choices=TOOLS,
        default="labelme",
        help="annotation tool that opens the labels, by default labelme",
    )
    parser.add_argument(
        "--labelled",
        type=Path,
        metavar="FOLDER",
        help="folder of images that have labels; others than these are chosen",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0; by default the GPU, if any")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of an earlier run"
    )


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_args(arguments)
    if options.count < 1:
        raise ValueError(f"--count {options.count}; give the number of images, at least 1")
    if not options.overwrite:
        for name in (TABLE, PICTURE, options.tool):
            check_missing(options.out / name)
    model = load_model(options.weights, options.device)
    also = suffixes_of(model)
    labelled = find_images(options.labelled, also) if options.labelled else []
    paths = unlabelled(options.folder, labelled, also, options.out)
    chosen = suggest(model, paths, options.count, labelled)
    written = write_suggestions(chosen, model, options.folder, options.out, options.tool)
    print(f"{len(chosen)} of {len(paths)} images to label next")
    for path in written[:2]:
        print(f"wrote {path}")
    print(f"open in {options.tool}: {written[2] if len(written) == 3 else written[2].parent}")
