"""The formats of exported files: what each can hold, and who reads and writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from torch import Tensor

from segformer.deploy import executorch, onnx, openvino, pt2, triton
from segformer.deploy.description import Description
from segformer.deploy.graph import Graph


class Session(Protocol):
    """An exported file in its engine.

    Attributes:
        description: What the file says about itself.
        engine: Name and version of what runs it, for people.
    """

    description: Description
    engine: str

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Returns the graph's output for images, and the size of the output if it takes one."""


@dataclass(frozen=True)
class Format:
    """A format of exported files.

    Args:
        suffix: Of the file's name; none for a folder.
        write: Writes a graph with a description to a path.
        session: Reads a file.
        extra: Extra of this package that installs what the format needs.
        packages: Packages that the format needs.
        precisions: Precisions that a file can have.
        beside: Suffixes of further files that may be written beside it.
        is_dynamic: Whether batch, height and width of the images may be left open.
    """

    suffix: str
    write: Callable[[Graph, Path, Description], None]
    session: Callable[[Path, str], Session]
    extra: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...]
    beside: tuple[str, ...] = ()
    is_dynamic: bool = True

    @property
    def installation(self) -> str:
        """The command that installs the packages."""
        return f'pip install "segformer[{self.extra}]"'

    def missing(self) -> list[str]:
        """Returns the packages that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx",
        onnx.write,
        onnx.Session,
        "onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        ("fp32", "fp16", "int8"),
        beside=(".onnx.data",),  # the weights, if they take more than 2 GB
    ),
    "openvino": Format(
        ".xml",
        openvino.write,
        openvino.Session,
        "openvino",
        ("openvino", "onnx", "onnxscript"),
        ("fp32", "fp16", "bf16", "int8"),
        beside=(".bin",),
    ),
    "pt2": Format(".pt2", pt2.write, pt2.Session, "", (), ("fp32", "fp16", "bf16")),
    "aoti": Format(".pt2", pt2.write_compiled, pt2.Session, "", (), ("fp32", "fp16", "bf16")),
    "executorch": Format(
        ".pte",
        executorch.write,
        executorch.Session,
        "executorch",
        ("executorch",),
        ("fp32",),
        is_dynamic=False,
    ),
    "triton": Format(
        "",  # a folder
        triton.write,
        triton.Session,
        "onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        ("fp32", "fp16"),
    ),
}


def find_format(name: str) -> Format:
    """Returns a format by its name.

    Raises:
        ValueError: If there is none of this name, or a package that it needs is missing.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; choose one of {', '.join(FORMATS)}")
    check_installed(FORMATS[name], name)
    return FORMATS[name]


def check_installed(made: Format, name: str) -> None:
    """Raises ValueError if a package that a format needs is not installed."""
    if missing := made.missing():
        raise ValueError(f"the format {name} needs {', '.join(missing)}; {made.installation}")


def format_of(path: Path) -> str | None:
    """Returns the format of a file or folder, by its suffix, None for weights and all others."""
    if (path / triton.CONFIG).is_file():
        return "triton"
    names = [name for name, made in FORMATS.items() if made.suffix == path.suffix != ""]
    return names[0] if names else None
