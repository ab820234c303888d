"""The entry point of the command ``segformer``.

OpenMP reads its settings when PyTorch is loaded. Importing the package loads PyTorch, so that this
module is not part of it.
"""

from __future__ import annotations

import os
import sys

from _segformer_verbs import split


def main() -> None:
    """Entry point of the command line."""
    # Threads that spin while they wait block the cores that the other threads need: with more
    # threads than cores, a step takes ten times as long. On an idle machine, passive waiting has
    # no measurable cost.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    split(sys.argv[1:])  # exits early for --help, --version and an unknown verb
    from segformer.cli import main

    main()
