"""A model of a Triton Inference Server repository: a folder with an ONNX file and its config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segformer.deploy import onnx
from segformer.deploy.description import Description
from segformer.deploy.graph import Graph

CONFIG = "config.pbtxt"
MAX_BATCH = 8  # images that Triton joins, if the file takes any number
TYPES = {  # ONNX's names of types, and Triton's
    "tensor(float)": "TYPE_FP32",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(int64)": "TYPE_INT64",
}


def write(graph: Graph, path: Path, description: Description) -> None:
    """Writes the folder ``NAME`` with ``1/model.onnx``, ``config.pbtxt`` and ``labels.txt``.

    Raises:
        ValueError: If the name has other characters than the address of a model may have.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", path.name):
        raise ValueError(
            f"{path.name!r} is no name of a Triton model; use letters, digits, '.', '_' and '-'"
        )
    file = onnx_file(path)
    file.parent.mkdir(parents=True)
    onnx.write(graph, file, description)
    write_config(path, description)


def onnx_file(path: Path) -> Path:
    """Returns the ONNX file in the folder of a model, its version 1."""
    return path / "1" / "model.onnx"


def write_config(path: Path, description: Description) -> None:
    """Writes the configuration of a model beside its ONNX file, and the names of its classes."""
    session = onnx.Session(onnx_file(path)).session
    names = "".join(f"{name}\n" for name in description.classes.names)
    (path / "labels.txt").write_text(names, encoding="utf-8")
    # The second input, a size, is one for the whole batch: Triton cannot join such requests.
    # It also refuses to join them for a graph with a fixed batch.
    is_joined = description.batch is None and not description.takes_size
    max_batch = MAX_BATCH if is_joined else 0
    lines = [
        f'name: "{path.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch}",
        *_ports("input", session.get_inputs(), max_batch),
        *_ports("output", session.get_outputs(), max_batch),
        # Not label_filename: Triton reads that as the names of an output's elements, here pixels.
        f'parameters {{ key: "classes" value {{ string_value: {_quoted(description)} }} }}',
    ]
    if is_joined:
        lines.append("dynamic_batching { }")
    (path / CONFIG).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _ports(kind: str, ports: list[Any], max_batch: int) -> Iterator[str]:
    """Yields the lines of all inputs or outputs; a batch dimension is left out, as Triton asks."""
    for port in ports:
        shape = port.shape[1:] if max_batch else port.shape
        dims = ", ".join(str(side) if isinstance(side, int) else "-1" for side in shape)
        yield f'{kind} [ {{ name: "{port.name}" data_type: {TYPES[port.type]} dims: [ {dims} ] }} ]'


def _quoted(description: Description) -> str:
    """Returns the names of the classes as a JSON list, quoted as protobuf's text format asks."""
    return json.dumps(json.dumps(description.classes.names))


class Session(onnx.Session):
    """The ONNX file of a Triton model in ONNX Runtime.

    Args:
        path: The folder of the model.
        device: As for :class:`segformer.deploy.onnx.Session`.

    Raises:
        ValueError: As there.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        super().__init__(onnx_file(path), device)
