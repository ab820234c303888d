"""``segformer explain``: a page about where a model is wrong on labelled images."""

from __future__ import annotations

import os
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from segformer.cli.data import add_root, data_of_config
from segformer.deploy import load_model
from segformer.evaluation import PROTOCOLS, find_protocol
from segformer.inference.explanation import examine
from segformer.inference.explanation_page import JSON, PAGE, write_report

SPLITS = ("train", "val", "test")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="file, folder or Hugging Face id, or an exported file"
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="YAML file for segformer fit: its data"
    )
    add_root(parser)
    parser.add_argument(
        "--split",
        nargs="+",
        choices=SPLITS,
        default=["val"],
        help="one or several of train, val and test; val by default",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"folder of the page, {PAGE}, its pictures and {JSON}",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the folder of an earlier report"
    )
    parser.add_argument(
        "--worst", type=int, default=12, metavar="N", help="worst images on the page; 12 by default"
    )
    parser.add_argument(
        "--doubts",
        type=int,
        default=20,
        metavar="N",
        help="doubted label files on the page; 20 by default",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help=f"label as a paper measures: {', '.join(PROTOCOLS)}",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0; by default the GPU, if any")


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_args(arguments)
    for name in ("worst", "doubts"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name} {getattr(options, name)} is below 0; give 0 or more")
    protocol = options.protocol and find_protocol(options.protocol)
    _check_folder(options.out, options.overwrite)
    data = data_of_config(parser.prog, options.config, options.data_root)
    splits = {split: _split(data, split) for split in dict.fromkeys(options.split)}
    model = load_model(options.weights, options.device)
    explanation = examine(model, splits, protocol)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{options.out.name}.", dir=options.out.parent
    ) as made:
        report = Path(made, "report")
        report.mkdir()
        name = Path(options.weights).name
        write_report(explanation, report, name, options.worst, options.doubts)
        if options.out.exists():
            options.out.rename(Path(made, "earlier"))  # removed with the temporary folder
        os.replace(report, options.out)
    print(f"wrote {options.out / PAGE}; open it in a browser")


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Raises an error if the report cannot take the place of what is there.

    Raises:
        FileExistsError: If there is an earlier report, and ``overwrite`` is not set.
        ValueError: If there is something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / PAGE).is_file() or not (folder / JSON).is_file():
        raise ValueError(
            f"{str(folder)!r} exists and is no report; choose another folder with --out"
        )
    if not overwrite:
        raise FileExistsError(
            f"{str(folder)!r} is an earlier report; replace it with --overwrite, or choose another "
            "folder with --out"
        )


def _split(data: Any, name: str) -> Any:
    """Returns a split of the data.

    Raises:
        ValueError: If the data have none of this name.
    """
    found = getattr(data, name)
    if found is None:
        have = [split for split in SPLITS if getattr(data, split) is not None]
        raise ValueError(f"the data have no split {name}; choose --split {' or '.join(have)}")
    return found
