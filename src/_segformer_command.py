"""The command ``segformer``, before PyTorch is loaded: OpenMP reads its settings at that moment only."""

from __future__ import annotations

import os


def main() -> None:
    """Entry point of the command line."""
    # Threads that spin while they wait take the cores from the ones they wait for: on a machine with more threads
    # than cores a step takes ten times as long. On an idle machine passive waiting costs nothing measurable.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    from segformer.cli import main

    main()
