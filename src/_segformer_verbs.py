"""The verbs of the command ``segformer``, and its help.

This module is not part of the package, because importing the package loads PyTorch, which
``segformer --help`` does not need.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

DEBUG = "SEGFORMER_DEBUG"  # environment variable: show the traceback of every error
COMPLETION = "--print-completion"
SHELLS = ("bash", "zsh", "tcsh")

VERBS = {
    "check": "Read every image and label map of a config or a folder, before training.",
    "fit": "Train a network, by a config or on a folder of images and label maps.",
    "pretrain": "Train a classifier on folders of images, as a backbone to start from.",
    "validate": "Measure a network on the validation split.",
    "test": "Measure a network on the test split.",
    "explain": "Show where a network is wrong, and labels it doubts, on a page.",
    "predict": "Label images with a trained network.",
    "suggest": "Choose the images to label next, and suggest their labels.",
    "inspect": "Print what a checkpoint contains, or the data flow of a model.",
    "convert": "Write a checkpoint in another layout.",
    "export": "Write a network as a file for another runtime.",
    "benchmark": "Time and measure a network in each format for other runtimes.",
    "demo": "Show a network's labels over your photos, on a local web page.",
}
EXAMPLES = {
    "check": "segformer check --config configs/camvid.yaml --data.root camvid",
    "fit": "segformer fit --config configs/scenes.yaml",
    "pretrain": "segformer pretrain --config configs/imagenet.yaml --data.root imagenet",
    "validate": "segformer validate --config configs/scenes.yaml --ckpt_path best",
    "test": "segformer test --config configs/camvid.yaml --weights model.safetensors",
    "explain": "segformer explain model.safetensors --config configs/camvid.yaml --out report",
    "predict": "segformer predict model.safetensors photos --out labels",
    "suggest": "segformer suggest model.safetensors unlabelled --out suggestions",
    "inspect": "segformer inspect nvidia/segformer-b0-finetuned-ade-512-512",
    "convert": "segformer convert model.safetensors model.pth --layout nvidia",
    "export": "segformer export model.safetensors model.onnx",
    "benchmark": "segformer benchmark model.safetensors --size 360 480 --data configs/camvid.yaml",
    "demo": "segformer demo model.safetensors",
}
EXIT_CODES = {
    "0": "The command did its work.",
    "1": "An unexpected error, with its traceback; or `check` found a problem.",
    "2": "Wrong arguments or input, with one sentence about the error.",
    "130": "Interrupted by Ctrl-C (SIGINT).",
    "143": "Stopped by SIGTERM; a training run has saved a checkpoint.",
}


class Refusal(SystemExit):
    """Ends the command with exit code 2, after one sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.code = 2


def split(arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the verb and its own arguments; those of ``--print-completion`` are its shell.

    Raises:
        SystemExit: With code 0 after ``--help`` and ``--version``, with code 2 if there is no such
            verb.
    """
    if not arguments:
        parser().print_help(sys.stderr)
        sys.exit(2)
    verb, *rest = arguments
    if verb.startswith("-"):
        return COMPLETION, [parser().parse_args(arguments).print_completion]
    if verb not in VERBS:
        refuse(
            f"segformer: no verb {verb!r}{closest(verb, VERBS) or '; segformer --help lists all'}"
        )
    return verb, rest


def refuse(sentence: str, cause: BaseException | None = None) -> NoReturn:
    """Prints a sentence on the error stream and exits with code 2."""
    print(sentence, file=sys.stderr)
    raise Refusal(sentence) from cause


def closest(word: str, words: Iterable[str], prefix: str = "") -> str:
    """Returns ``"; did you mean 'fit'?"`` with the closest of the words, or nothing."""
    matches = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {prefix + matches[0]!r}?" if matches else ""


class _Parser(argparse.ArgumentParser):
    """Exits with one sentence, which suggests the closest option."""

    def error(self, message: str) -> NoReturn:
        suggestion = closest(message.rpartition(" ")[2], self._option_string_actions)
        refuse(f"segformer: {message}{suggestion or '; segformer --help lists all'}")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the options before the verb; its help lists the verbs."""
    parser = _Parser(
        "segformer",
        usage="segformer VERB [options]",
        description="SegFormer: semantic segmentation with Transformers.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"segformer {_version()}")
    parser.add_argument(
        COMPLETION,
        choices=SHELLS,
        help="print the completion script of a shell; needs the extra [completion]",
    )
    return parser


def _version() -> str:
    try:
        return version("segformer")
    except PackageNotFoundError:
        return "(not installed)"


def _epilog() -> str:
    verbs = [
        f"  {verb:11}{sentence}\n{'':13}$ {EXAMPLES[verb]}" for verb, sentence in VERBS.items()
    ]
    codes = [f"  {code:11}{meaning}" for code, meaning in EXIT_CODES.items()]
    return "\n".join(
        [
            "verbs (segformer VERB --help lists the options of one):",
            *verbs,
            "",
            "exit codes:",
            *codes,
            "",
            "environment:",
            f"  {DEBUG}=1 shows the traceback of every error.",
        ]
    )
