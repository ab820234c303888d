"""Post-training quantisation: graphs in int8, by NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from segformer.deploy import onnx, openvino
from segformer.deploy.comparison import Samples, fit
from segformer.deploy.description import Description
from segformer.deploy.exported import Exported
from segformer.deploy.formats import FORMATS
from segformer.deploy.graph import Graph
from segformer.evaluation import Scores, evaluate

logger = logging.getLogger(__name__)

CALIBRATED = 300  # images at most
RANKED = 32  # images on which each layer's part in a loss of mIoU is measured


class Quantizer:
    """Writes graphs in int8.

    Convolutions, linear layers, and queries times keys compute in int8; norms, softmax and
    interpolations stay in float32.

    Args:
        format: Name of the files' format.
        images: Pixels uint8 (C, H, W), like those that the model will see; the first 300 are used.
            The ranges of the activations are measured on them, at the size of most of them.
        channels: Number of channels that the model takes.
        dataset: Samples (image uint8 (C, H, W), label (H, W)), with ``classes``. Layers return to
            float32 until the loss of mIoU on them is small enough. By default none does.
        max_drop: The greatest loss of mIoU, in points.

    Raises:
        ValueError: If NNCF is not installed, there are no images, or one is not uint8
            (channels, H, W).
    """

    def __init__(
        self,
        format: str,
        images: Iterable[Tensor] | None,
        channels: int,
        dataset: Any = None,
        max_drop: float = 0.5,
    ) -> None:
        if find_spec("nncf") is None:
            raise ValueError('int8 needs nncf; pip install "segformer[int8]"')
        if images is None:
            raise ValueError("int8 needs images to calibrate on; pass --data CONFIG")
        # NNCF reads the images several times
        kept: Any = images if hasattr(images, "__getitem__") else list(images)
        self.images = kept
        self.count = min(len(self.images), CALIBRATED)
        if self.count == 0:
            raise ValueError("int8 needs at least 1 image to calibrate on, got 0")
        sizes: Counter[tuple[int, int]] = Counter()
        for index in range(self.count):
            image = self.images[index]
            check_image(image, channels, index)
            sizes[image.shape[1], image.shape[2]] += 1
        self.size = sizes.most_common(1)[0][0]
        self.format = format
        self.dataset = dataset
        self.max_drop = max_drop

    def write(self, graph: Graph, path: Path, description: Description) -> None:
        """Writes a graph in float32, and what NNCF makes of that file to a path."""
        engine = ENGINES[self.format]
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            floats = Path(folder, path.name)
            FORMATS[self.format].write(graph, floats, replace(description, precision="fp32"))
            with silent():
                model = self.quantized(engine, Exported(floats))
            engine.save(model, path, description)

    def quantized(self, engine: Engine, exported: Exported) -> Any:
        """Returns the model of a file in int8."""
        import nncf
        from nncf.quantization import advanced_parameters as advanced

        # NNCF would give each channel that enters a depthwise convolution a range of its own, but
        # along the axis of height, since a permutation precedes the convolution.
        whole = advanced.QuantizationParameters(per_channel=False)
        parameters = nncf.AdvancedQuantizationParameters(activations_quantization_params=whole)
        options: dict[str, Any] = {
            "model": engine.read(exported.path, self.inputs(exported, 0)),
            "calibration_dataset": nncf.Dataset(
                range(self.count), lambda index: onnx.feed(self.inputs(exported, index))
            ),
            "model_type": nncf.ModelType.TRANSFORMER,
            "subset_size": self.count,
            "ignored_scope": nncf.IgnoredScope(types=[engine.resize]),
        }
        if self.dataset is None:
            return nncf.quantize(advanced_parameters=parameters, **options)
        return nncf.quantize_with_accuracy_control(
            validation_dataset=nncf.Dataset(range(len(self.dataset))),
            validation_fn=partial(self.validate, engine, exported),
            max_drop=self.max_drop,
            advanced_quantization_parameters=parameters,
            advanced_accuracy_restorer_parameters=advanced.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=RANKED, num_ranking_workers=1
            ),
            **options,
        )

    def inputs(self, exported: Exported, index: int) -> list[Tensor]:
        """Returns the inputs of a graph for a calibration image."""
        size = self.size_for(exported.description)
        images = exported.normalization(fit(self.images[index], size))
        return exported.inputs(images.expand(exported.description.batch or 1, -1, -1, -1), size)

    def size_for(self, description: Description) -> tuple[int, int]:
        """Returns the height and width at which a graph is calibrated and its mIoU measured."""
        if description.size is not None:
            return description.size
        height, width = (max(length, description.min_size) for length in self.size)
        return height, width

    def validate(
        self, engine: Engine, exported: Exported, candidate: Any, indices: Iterable[int]
    ) -> tuple[float, list[float]]:
        """Returns the mIoU of a candidate on some samples, in per cent, and that of each sample."""
        exported.session = engine.run(candidate)
        size = self.size_for(exported.description)
        each = [evaluate(exported, Samples(self.dataset, [index], size)) for index in indices]
        miou = Scores.of(torch.stack([s.confusion for s in each]).sum(0)).miou
        if len(each) == len(self.dataset):
            logger.info("mIoU %.2f %% of a candidate on %d images", 100 * miou, len(each))
        return 100 * miou, [100 * s.miou for s in each]


def check_image(image: Any, channels: int, index: int) -> None:
    """Raises ValueError if a calibration image is not uint8 (channels, H, W)."""
    found = f"a {type(image).__name__}"
    if isinstance(image, Tensor):
        found = f"{str(image.dtype)[6:]} {tuple(image.shape)}"
    if not isinstance(image, Tensor) or image.ndim != 3 or image.dtype != torch.uint8:
        raise ValueError(
            f"calibration image {index} is {found}; uint8 ({channels}, H, W) is needed"
        )
    if len(image) != channels:
        raise ValueError(
            f"calibration image {index} has {len(image)} channels, and the model takes {channels}; "
            "calibrate on images like those that the model was trained on"
        )


class Engine(ABC):
    """Models of a format while they are quantised.

    Attributes:
        resize: The format's operator that interpolates.
    """

    resize: ClassVar[str]

    @abstractmethod
    def read(self, path: Path, inputs: Sequence[Tensor]) -> Any:
        """Returns the model in a file, for inputs of the shapes of these."""

    @abstractmethod
    def run(self, candidate: Any) -> Callable[..., Tensor]:
        """Returns what NNCF gives to a validation as a function of a model's inputs."""

    @abstractmethod
    def save(self, model: Any, path: Path, description: Description) -> None:
        """Writes a model, for inputs of the shapes that a description leaves open."""


class ONNX(Engine):
    """ONNX models in ONNX Runtime."""

    resize = "Resize"

    def read(self, path: Path, inputs: Sequence[Tensor]) -> Any:
        import onnx as library

        return library.load(path)

    def run(self, candidate: Any) -> Callable[..., Tensor]:
        return partial(onnx.run, onnx.start(candidate.SerializeToString()))

    def save(self, model: Any, path: Path, description: Description) -> None:
        onnx.save(model, path, description)


class OpenVINO(Engine):
    """OpenVINO models, of a fixed shape: see :class:`segformer.deploy.openvino.Session`."""

    resize = "Interpolate"

    def read(self, path: Path, inputs: Sequence[Tensor]) -> Any:
        return openvino.reshaped(openvino.core().read_model(path), [x.shape for x in inputs])

    def run(self, candidate: Any) -> Callable[..., Tensor]:
        return partial(openvino.run, candidate)

    def save(self, model: Any, path: Path, description: Description) -> None:
        openvino.save(openvino.reshaped(model, [description.shape]), path, description)


ENGINES: dict[str, Engine] = {"onnx": ONNX(), "openvino": OpenVINO()}


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Context without NNCF's log and the progress bars of its steps."""
    log = logging.getLogger("nncf")
    level = log.level
    log.setLevel(logging.ERROR)
    output = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
