"""Shared by the verbs that write a picture or a table: a file is whole, or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segformer.data.complete import complete


def write(path: Path, write_to: Callable[[Path], object]) -> None:
    """Writes a file, and says so."""
    with complete(path) as partial:
        write_to(partial)
    print(f"wrote {path}")
