"""ONNX files: written by PyTorch's exporter, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segformer.deploy.description import KEY, Description, unreadable
from segformer.deploy.graph import Graph
from segformer.deploy.program import capture, quiet

OPSET = 18  # LayerNormalization (17), and Resize as PyTorch interpolates


def write(graph: Graph, path: Path, description: Description) -> None:
    """Writes a graph as an ONNX file; weights beyond 2 GB go to a second file beside it."""
    program = capture(graph, description)
    inputs = ["images", "size"] if description.takes_size else ["images"]
    with quiet():
        exported: Any = torch.onnx.export(
            program,
            input_names=inputs,
            output_names=[description.output],
            opset_version=OPSET,
            verbose=False,
        )
    exported.model.metadata_props.update(metadata(description))
    exported.save(str(path))


def save(model: Any, path: Path, description: Description) -> None:
    """Writes an ONNX model with another description than it had."""
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata(description))
    onnx.save(model, path)


def metadata(description: Description) -> dict[str, str]:
    """Returns the description, and its parts that people read in viewers."""
    return {
        KEY: description.to_json(),
        "names": ", ".join(description.classes.names),
        "mean": str(list(description.normalization.mean)),
        "std": str(list(description.normalization.std)),
        "scale": str(description.normalization.scale),
        "license": description.licence,
        "version": description.version,
    }


def start(
    source: str | bytes,
    provider: str = "CPUExecutionProvider",
    settings: dict[str, str] | None = None,
) -> Any:
    """Returns ONNX Runtime's session of a file or of a serialised model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(source, options, [provider], [settings or {}])


def run(session: Any, *inputs: Tensor) -> Tensor:
    """Returns the output of an ONNX Runtime session."""
    return torch.from_numpy(session.run(None, feed(inputs))[0])


def feed(inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Returns the inputs of a graph by their names."""
    names = ("images", "size")
    return {name: np.ascontiguousarray(x.numpy()) for name, x in zip(names, inputs, strict=False)}


class Session:
    """An ONNX file in ONNX Runtime.

    Args:
        path: The file.
        device: ``"cpu"``, or ``"cuda"`` or ``"cuda:1"`` if ONNX Runtime is built for it.

    Raises:
        ValueError: If the file is not ONNX, or no export of this library; or the device is missing.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        import onnxruntime

        provider, settings = _provider(device)
        try:
            self.session = start(str(path), provider, settings)
        except Exception as error:
            raise unreadable("ONNX Runtime", path, error) from error
        if provider not in self.session.get_providers():  # it took the CPU instead
            raise ValueError(
                f"ONNX Runtime cannot start its {provider}: its libraries or a driver are missing; "
                "use the cpu"
            )
        stated = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        self.description = Description.of_file(stated, path)
        self.engine = f"ONNX Runtime {onnxruntime.__version__} on {provider[:-17]}"

    def __call__(self, *inputs: Tensor) -> Tensor:
        return run(self.session, *inputs)


def _provider(device: str) -> tuple[str, dict[str, str]]:
    """Returns ONNX Runtime's name of what computes on a device, and its settings."""
    import onnxruntime

    kind, _, index = device.partition(":")
    provider = f"{kind.upper()}ExecutionProvider"
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"ONNX Runtime has no device {device!r}; choose cpu or cuda")
    if provider not in onnxruntime.get_available_providers():
        raise ValueError(
            f"this ONNX Runtime has no {provider}; pip install onnxruntime-gpu, or use the cpu"
        )
    return provider, {"device_id": index} if index else {}
