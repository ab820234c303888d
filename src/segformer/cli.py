"""The command ``segformer``: each verb imports only its own room."""

from __future__ import annotations

import argparse
import logging
import sys

VERBS = {
    "check": "read a config's data before a run does: segformer check --config …",
    "fit": "train a network: segformer fit --config configs/scenes.yaml",
    "validate": "measure on the validation split: segformer validate --config … --weights … --protocol … --tta",
    "test": "measure a checkpoint on the test split: segformer test --config … --ckpt_path …",
    "predict": "label images: segformer predict WEIGHTS IMAGE… --out DIR",
    "inspect": "say what a checkpoint holds: segformer inspect FILE|FOLDER|HUB_ID",
    "convert": "write it in another layout: segformer convert IN OUT --layout native|huggingface|nvidia|smp",
}


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        "segformer",
        description="SegFormer: semantic segmentation with Transformers.",
        epilog="\n".join(f"  {verb:10}{what}" for verb, what in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help=f"one of {', '.join(VERBS)}; VERB --help says more")
    verb = parser.parse_args(sys.argv[1:2]).verb
    logging.basicConfig(format="%(message)s")
    from segformer.workspace import keep_large_blocks

    keep_large_blocks()
    if verb == "predict":
        from segformer.inference import main as predict

        predict(sys.argv[2:])
    elif verb in ("inspect", "convert"):
        from segformer.convert import main as convert

        convert(sys.argv[1:])
    else:
        _train(verb)


def _train(verb: str) -> None:
    try:
        if verb == "check":
            from segformer.train.check import main as check

            return check(sys.argv[2:])
        from segformer.train.cli import SegmentationCLI
    except ModuleNotFoundError as error:
        sys.exit(f"segformer {sys.argv[1]} needs {error.name}; install this package with its training extra, [train]")
    SegmentationCLI()
