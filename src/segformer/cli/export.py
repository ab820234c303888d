"""``segformer export``: write a model as a file for another runtime."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from segformer.cli import checkpoints, data
from segformer.deploy import FORMATS, export
from segformer.deploy.comparison import GATES
from segformer.deploy.graph import INPUTS, OUTPUTS
from segformer.models import SegmentationModel


def add_arguments(parser: ArgumentParser) -> None:
    checkpoints.add_arguments(parser)
    parser.add_argument("target", metavar="OUT", help="the file, such as model.onnx or model.xml")
    parser.add_argument(
        "--format", choices=FORMATS, help="by default the one of OUT's suffix: .pt2 is pt2"
    )
    parser.add_argument(
        "--precision", choices=GATES, default="fp32", help="int8 needs --data; by default fp32"
    )
    parser.add_argument(
        "--output", choices=OUTPUTS, default="labels", help="what the file gives, by default labels"
    )
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default="normalized",
        help="float32 (B, C, H, W), by default; or uint8 pixels (B, H, W, C), normalised inside",
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="fixed size, by default any"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="fixed batch size, by default any")
    parser.add_argument(
        "--size-input", action="store_true", help="a second input: the size of the output"
    )
    data.add_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_args(arguments)
    labelled = data.data_of(parser, options)
    model = SegmentationModel.from_pretrained(
        options.source, **checkpoints.reading_options(options)
    )
    comparison = export(
        model,
        options.target,
        options.format,
        output=options.output,
        input=options.input,
        precision=options.precision,
        size=options.size,
        batch=options.batch,
        takes_size=options.size_input,
        calibration=labelled and labelled.calibration_images(),
        dataset=labelled and labelled.val,
        max_drop=options.max_drop,
        overwrite=options.overwrite,
    )
    print(comparison)
    print(_use_of(Path(options.target)))


def _use_of(path: Path) -> str:
    """Returns the commands that use an exported file."""
    return (
        f"{path}: written. Use it:\n"
        f"  segformer predict {path} photos --out labels\n"
        f"  segformer validate --config CONFIG --weights {path}\n"
        f'  python: model = segformer.deploy.load("{path}"); labels = model.predict(images)'
    )
