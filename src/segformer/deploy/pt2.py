"""PyTorch's own files: programs of torch.export, and packages compiled by AOTInductor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segformer.deploy.description import KEY, Description, unreadable
from segformer.deploy.devices import only_cpu, torch_device
from segformer.deploy.graph import Graph
from segformer.deploy.program import capture, quiet


def write(graph: Graph, path: Path, description: Description) -> None:
    """Writes a graph as a program of ATen operators, which need only PyTorch."""
    program = capture(graph, description)
    torch.export.save(program, path, extra_files={KEY: description.to_json()})


def write_compiled(graph: Graph, path: Path, description: Description) -> None:
    """Writes a graph as a package of machine code for this kind of CPU, by AOTInductor."""
    program = capture(graph, description)
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
        ValueError: If the file is no such archive, or no export of this library; or the device is
            missing.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        from torch.export.passes import move_to_device_pass
        from torch.export.pt2_archive import _package

        self.device = torch_device(device)
        try:
            content = _package.load_pt2(path)
        except Exception as error:
            raise unreadable("PyTorch", path, error) from error
        runner: Any = content.aoti_runners.get("model")
        program: Any = content.exported_programs.get("model")
        stated = runner.get_metadata().get(KEY) if runner else content.extra_files.get(KEY)
        self.description = Description.of_file(stated, path)
        self.run: Any
        if runner:
            only_cpu("a package of AOTInductor", device)
            self.run = runner
            self.engine = f"AOTInductor of PyTorch {torch.__version__}"
        else:
            moved = move_to_device_pass(program, self.device)
            self.run = moved.module(check_guards=False)
            self.engine = f"PyTorch {torch.__version__}, a program of torch.export"

    def __call__(self, *inputs: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = self.run(*(x.to(self.device) for x in inputs))
        return result.cpu()
