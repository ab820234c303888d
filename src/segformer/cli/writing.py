"""Shared by the verbs that write a picture or a table: a file is whole, or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write(path: Path, write_to: Callable[[Path], object]) -> None:
    """Writes a file beside its name, and then gives it the name."""
    partial = path.with_name(f".{path.name}.part")
    try:
        write_to(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    print(f"wrote {path}")
