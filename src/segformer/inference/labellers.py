"""How an image gets its labels: whole, in windows, or by a protocol of the papers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segformer.data.classes import number_of_labels
from segformer.data.families.opened import Window
from segformer.data.labels import file_type
from segformer.evaluation import (
    WINDOWS,
    Protocol,
    Slide,
    as_batch,
    average_windows,
    check_logits,
    device_of,
)
from segformer.evaluation.batches import in_evaluation, normalized
from segformer.evaluation.large import Take
from segformer.evaluation.protocols import gives_logits

Pair = tuple[np.ndarray, np.ndarray]  # labels (H, W), class probabilities (K, H, W) float32


class Labeller(ABC):
    """How an image gets its labels.

    Attributes:
        windows: The windows of an image that need not fit into memory; None if this way needs the
            whole image in memory.
    """

    windows: Slide | None = None

    def check(self, model: Any) -> None:  # noqa: B027 - most ways take any model
        """Raises ValueError if images cannot be labelled by this model in this way."""

    @abstractmethod
    def labels(self, model: Any, image: Tensor) -> np.ndarray:
        """Returns the labels (H, W) of an image, (C, H, W).

        Labels are uint8, or uint16 for more than 255 classes.

        Args:
            model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
            image: The image, with the bands that the model takes.
        """

    @abstractmethod
    def with_probabilities(self, model: Any, image: Tensor) -> Pair:
        """Returns the labels (H, W) of an image and its class probabilities (K, H, W) float32.

        The labels are those of :meth:`labels`, as the arguments are. A model of one logit has two
        classes.

        Raises:
            ValueError: If the model gives labels only.
        """

    def decide(self, logits: Tensor) -> Tensor:
        """Returns the labels (h, w) of the mean logits (K, h, w) of windows."""
        return logits.argmax(0)


@dataclass(frozen=True)
class WholeImages(Labeller):
    """Labels images whole, at their own size."""

    windows = WINDOWS

    def labels(self, model: Any, image: Tensor) -> np.ndarray:
        """Returns the labels (H, W) of an image, (C, H, W)."""
        height, width = image.shape[1:]
        predicted = model.predict(as_batch(model, image, device_of(model)))
        return in_file_type(predicted[0, :height, :width], model)

    def with_probabilities(self, model: Any, image: Tensor) -> Pair:
        """Returns the labels (H, W) of an image and its class probabilities (K, H, W) float32."""
        height, width = image.shape[1:]
        images = as_batch(model, image, device_of(model))
        labels, probabilities = model.predict_with_probabilities(images)
        return (
            in_file_type(labels[0, :height, :width], model),
            probabilities[0, :, :height, :width].cpu().numpy(),
        )


@dataclass(frozen=True)
class InWindows(Labeller):
    """Labels images in windows; the sums of logits take at most 1 GiB, or those of two windows.

    An image no larger than a window is labelled whole.

    Args:
        slide: The windows.
    """

    slide: Slide

    @property
    def windows(self) -> Slide:  # type: ignore[override]
        return self.slide

    def check(self, model: Any) -> None:
        """Raises ValueError if the model gives labels only."""
        check_logits(model, Protocol(self.slide))

    def labels(self, model: Any, image: Tensor) -> np.ndarray:
        """Returns the labels (H, W) of an image, (C, H, W)."""
        height, width = image.shape[1:]
        if height <= self.slide.crop_size[0] and width <= self.slide.crop_size[1]:
            return WholeImages().labels(model, image)
        labels = np.zeros((height, width), file_type(model.num_classes))

        def take(window: Window, logits: Tensor) -> None:
            labels[window.slices] = self.decide(logits).numpy()

        self._average(model, image, take)
        return labels

    def with_probabilities(self, model: Any, image: Tensor) -> Pair:
        """Returns the labels (H, W) of an image and its class probabilities (K, H, W) float32."""
        height, width = image.shape[1:]
        if height <= self.slide.crop_size[0] and width <= self.slide.crop_size[1]:
            return WholeImages().with_probabilities(model, image)
        labels = np.zeros((height, width), file_type(model.num_classes))
        probabilities = np.zeros((number_of_labels(model.num_classes), height, width), np.float32)

        def take(window: Window, logits: Tensor) -> None:
            labels[window.slices] = self.decide(logits).numpy()
            probabilities[:, *window.slices] = logits.softmax(0).numpy()

        self._average(model, image, take)
        return labels, probabilities

    def _average(self, model: Any, image: Tensor, take: Take) -> None:
        def read(window: Window) -> Tensor:
            return image[:, *window.slices].as_subclass(Tensor)

        size = (image.shape[1], image.shape[2])
        average_windows(model, size, read, take, self.slide, device=device_of(model))


@dataclass(frozen=True)
class ByProtocol(Labeller):
    """Labels images as ``segformer validate`` does by the same protocol.

    Args:
        protocol: The protocol, such as ``find_protocol("ade20k", tta=True)``.
    """

    protocol: Protocol

    def check(self, model: Any) -> None:
        """Raises ValueError if the protocol needs logits, and the model gives labels only."""
        check_logits(model, self.protocol)

    def labels(self, model: Any, image: Tensor) -> np.ndarray:
        """Returns the labels (H, W) of an image, (C, H, W)."""
        images = normalized(model, image, device_of(model))
        return in_file_type(self.protocol.predict(model, images)[0], model)

    @torch.no_grad()
    def with_probabilities(self, model: Any, image: Tensor) -> Pair:
        """Returns the labels (H, W) of an image and its class probabilities (K, H, W) float32."""
        images = normalized(model, image, device_of(model))
        with in_evaluation(model):
            probabilities = self.protocol.probabilities(model, images).float()
        return in_file_type(probabilities.argmax(1)[0], model), probabilities[0].cpu().numpy()


@dataclass(frozen=True)
class Thresholded(Labeller):
    """Labels 1 where the probability of a model of one logit exceeds a threshold.

    Args:
        labeller: How the probabilities are computed.
        threshold: From 0 to 1, both excluded. 0.5 gives the labels of every other labeller.

    Raises:
        ValueError: If the threshold is outside.
    """

    labeller: Labeller
    threshold: float

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(
                f"a threshold of {self.threshold}; give a probability between 0 and 1, such as 0.3"
            )

    @property
    def windows(self) -> Slide | None:  # type: ignore[override]
        return self.labeller.windows

    def check(self, model: Any) -> None:
        """Raises ValueError if the model has more than one logit, or gives labels only."""
        self.labeller.check(model)
        if model.num_classes != 1:
            raise ValueError(
                f"a threshold is for models of one logit, and this one has {model.num_classes}; "
                "leave out --threshold: the label is the most probable class"
            )
        check_probabilities(model, "a threshold needs")

    def labels(self, model: Any, image: Tensor) -> np.ndarray:
        """Returns the labels (H, W) of an image, (C, H, W)."""
        return self.with_probabilities(model, image)[0]

    def with_probabilities(self, model: Any, image: Tensor) -> Pair:
        """Returns the labels (H, W) of an image and its class probabilities (K, H, W) float32."""
        _, probabilities = self.labeller.with_probabilities(model, image)
        return (probabilities[1] > self.threshold).astype(np.uint8), probabilities

    def decide(self, logits: Tensor) -> Tensor:
        """Returns the labels (h, w) of the mean logits (2, h, w) of windows."""
        return (logits.softmax(0)[1] > self.threshold).long()


def check_probabilities(model: Any, what: str) -> None:
    """Raises ValueError if a model gives labels only; ``what`` is the start of the sentence."""
    if not gives_logits(model):
        raise ValueError(
            f"{what} probabilities, and this model gives labels only; export it with --output "
            "logits"
        )


def in_file_type(labels: Tensor, model: Any) -> np.ndarray:
    """Returns labels in the type of a model's label maps: uint8, or uint16 for many classes."""
    return labels.cpu().numpy().astype(file_type(model.num_classes))
