"""ExecuTorch files, for phones and other small devices; XNNPACK computes what it can."""

from __future__ import annotations

import threading
from pathlib import Path

from torch import Tensor

from segformer.deploy.description import KEY, Description, unreadable
from segformer.deploy.devices import only_cpu
from segformer.deploy.graph import Graph
from segformer.deploy.program import capture, quiet


def write(graph: Graph, path: Path, description: Description) -> None:
    """Writes a graph of fixed shape for ExecuTorch."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = capture(graph, description)
    with quiet():
        lowered = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            constant_methods={KEY: description.to_json()},
        )
        path.write_bytes(lowered.to_executorch().buffer)


class Session:
    """An ExecuTorch file in ExecuTorch's own runtime.

    Args:
        path: The ``.pte`` file.
        device: ``"cpu"``, the only one.

    Raises:
        ValueError: If the file is no ExecuTorch program, or no export of this library.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        from executorch.runtime import Runtime, Verification

        only_cpu("ExecuTorch", device)
        content = path.read_bytes()  # so that the file may be replaced while it is in use
        if content[4:6] != b"ET":  # of "ET12", without which ExecuTorch would end the process
            raise unreadable("ExecuTorch", path, "it does not begin as a program of ExecuTorch")
        try:
            program = Runtime.get().load_program(
                content, verification=Verification.InternalConsistency
            )
        except RuntimeError as error:
            raise unreadable("ExecuTorch", path, error) from error
        self.program, self.lock = program, threading.Lock()
        has = KEY in program.method_names
        stated = program.load_method(KEY).execute([])[0] if has else None
        self.description = Description.of_file(stated, path)
        self.method = program.load_method("forward")
        self.engine = "ExecuTorch with XNNPACK"

    def __call__(self, *inputs: Tensor) -> Tensor:
        with self.lock:  # the next call writes into the same memory
            result: Tensor = self.method.execute([x.contiguous() for x in inputs])[0]
            return result.clone()
