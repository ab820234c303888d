"""Files that are whole, or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A path beside a file to write to; it becomes the file at the end, and is removed on errors.

    An earlier file of the same name is kept until then.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_to_replace(source: Path, target: Path) -> None:
    """Raises FileExistsError if an image's result would be written in its own place."""
    if target.exists() and target.samefile(source):
        raise FileExistsError(f"{str(target)!r} is the image itself; write into another folder")
