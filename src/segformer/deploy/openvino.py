"""OpenVINO files: an ``.xml`` file beside a ``.bin`` file with the weights."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segformer.deploy import onnx
from segformer.deploy.description import KEY, Description, unreadable
from segformer.deploy.graph import Graph, Labels, LabelsOfMaxima

COMPILED = 4  # graphs kept, one for each of the last shapes


def write(graph: Graph, path: Path, description: Description) -> None:
    """Writes a graph as an OpenVINO IR; its halves of ``fp16`` are the stored weights."""
    save(read(graph, path.parent, description), path, description)


def read(graph: Graph, folder: Path, description: Description) -> Any:
    """Returns a graph of float32 as an OpenVINO model, by way of ONNX."""
    import openvino

    if type(graph.output) is Labels and len(description.classes) <= LabelsOfMaxima.MAX_CLASSES:
        graph.output = LabelsOfMaxima()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = Path(temporary, "graph.onnx")
        onnx.write(graph, file, replace(description, precision="fp32"))
        return openvino.convert_model(file)


def save(model: Any, path: Path, description: Description) -> None:
    """Writes an OpenVINO model with its description, also in the keys of Intel's Model API."""
    import openvino

    model.set_rt_info(description.to_json(), [KEY])
    for key, value in model_info(description).items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, path, compress_to_fp16=description.precision == "fp16")


def model_info(description: Description) -> dict[str, str]:
    """Returns the keys from which Intel's Model API makes a segmentation model."""
    names = [name.replace(" ", "_") for name in description.classes.names]
    keys = {
        "model_type": "Segmentation",
        "labels": " ".join(names),
        "resize_type": "standard",
        "reverse_input_channels": "False",
    }
    if description.input == "uint8":  # the graph normalises
        return keys
    normalization = description.normalization
    scale = normalization.scale
    return keys | {
        "mean_values": " ".join(str(mean / scale) for mean in normalization.mean),
        "scale_values": " ".join(str(std / scale) for std in normalization.std),
    }


@cache
def core() -> Any:
    """Returns OpenVINO's core, one for the process, which is never freed.

    The CPU plugin gives the thread that loads it another stack for signals. If a core is freed in
    another thread, that stack is freed while it is in use, and the next signal, such as that of a
    worker that ends, ends the process (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


def reshaped(model: Any, shapes: Sequence[Sequence[int]]) -> Any:
    """Returns a model, itself, with inputs of these shapes; -1 stands for any length."""
    names = [port.get_any_name() for port in model.inputs]
    model.reshape(dict(zip(names, map(list, shapes), strict=False)))
    return model


def run(compiled: Any, *inputs: Tensor) -> Tensor:
    """Returns the output of a compiled model."""
    result = compiled([x.contiguous().numpy() for x in inputs])[0]
    return torch.from_numpy(result.copy())  # the next call writes into the same memory


class Session:
    """An OpenVINO file in OpenVINO's runtime.

    Each shape of images has a compiled graph of its own: graphs compiled for dynamic shapes gave
    wrong results for larger images after smaller ones (OpenVINO 2026.4). The first image of a shape
    takes a second or more.

    Args:
        path: The ``.xml`` file.
        device: OpenVINO's name of the device: ``"cpu"``, ``"gpu"``, ``"npu"``.

    Raises:
        ValueError: If the file is no OpenVINO model, or no export of this library; or the device is
            missing.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        import openvino

        self.device = device.upper()
        self.lock = threading.Lock()
        self._check_device()
        try:
            self.model = core().read_model(path)
        except RuntimeError as error:
            raise unreadable("OpenVINO", path, error) from error
        has = self.model.has_rt_info([KEY])
        stated = self.model.get_rt_info([KEY]).astype(str) if has else None
        self.description = Description.of_file(stated, path)
        self.compiled: OrderedDict[tuple[tuple[int, ...], ...], Any] = OrderedDict()
        version = openvino.__version__.partition("-")[0]
        self.hint = self._hint()
        self.engine = f"OpenVINO {version} on {self.device}, {self.hint} arithmetic"

    def _check_device(self) -> None:
        devices = core().available_devices  # such as CPU, GPU.0 and GPU.1
        if self.device not in {*devices, *(name.partition(".")[0] for name in devices)}:
            raise ValueError(
                f"OpenVINO has no device {self.device.lower()!r} here; choose one of "
                f"{', '.join(devices).lower()}"
            )

    def _hint(self) -> str:
        """Returns the precision in which the device computes what the file leaves in floats."""
        able = core().get_property(self.device, "OPTIMIZATION_CAPABILITIES")
        hints = {"bf16": ("BF16", "bf16"), "fp16": ("FP16", "f16")}
        name, hint = hints.get(self.description.precision, ("FP32", "f32"))
        return hint if name in able else "f32"

    def __call__(self, *inputs: Tensor) -> Tensor:
        with self.lock:  # the next call writes into the same memory
            return run(self._graph_for(tuple(tuple(x.shape) for x in inputs)), *inputs)

    def _graph_for(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """Returns the compiled graph for inputs of these shapes."""
        if shapes not in self.compiled:
            self.compiled[shapes] = self._compile(shapes)
        self.compiled.move_to_end(shapes)
        while len(self.compiled) > COMPILED:
            self.compiled.popitem(last=False)
        return self.compiled[shapes]

    def _compile(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        model = reshaped(self.model.clone(), shapes)
        threads = torch.get_num_threads()
        settings = {"INFERENCE_PRECISION_HINT": self.hint}
        if self.device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = str(min(threads, os.cpu_count() or threads))
        return core().compile_model(model, self.device, settings)
