"""PyTorch's own files: programs of torch.export, and packages compiled by AOTInductor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.pt2_archive import _package as archive

from segformer.deploy.description import KEY, Description
from segformer.deploy.graph import Graph
from segformer.deploy.onnx import quiet
from segformer.deploy.program import capture


def write(graph: Graph, path: Path, description: Description) -> None:
    """Writes a graph as a program of ATen operators, which need only PyTorch."""
    program = capture(graph.to_precision(description.precision), description)
    torch.export.save(program, path, extra_files={KEY: description.to_json()})


def write_compiled(graph: Graph, path: Path, description: Description) -> None:
    """Writes a graph as a package of machine code for this kind of CPU, by AOTInductor."""
    program = capture(graph.to_precision(description.precision), description)
    with quiet(), torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": {KEY: description.to_json()}},
        )


class Session:
    """A ``.pt2`` file in PyTorch.

    Args:
        path: A program or a package.
        device: Device of a program; a package runs where it was compiled for.

    Raises:
        ValueError: If the file is no such archive, or no export of this library.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        try:
            content = archive.load_pt2(path)
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(f"PyTorch cannot read {str(path)!r}: {error}") from error
        self.run: Any
        if content.aoti_runners:
            self.run = content.aoti_runners["model"]
            stated = self.run.get_metadata().get(KEY)
            self.engine = f"AOTInductor of PyTorch {torch.__version__}"
        else:
            self.run = content.exported_programs["model"].module(check_guards=False).to(device)
            stated = content.extra_files.get(KEY)
            self.engine = f"PyTorch {torch.__version__}, a program of torch.export"
        self.description = Description.of_file(stated, path)

    def __call__(self, *inputs: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = self.run(*inputs)
        return result
