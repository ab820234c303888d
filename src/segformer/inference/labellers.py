"""How an image gets its labels: whole, in windows, or by a protocol of the papers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from segformer.data.families.opened import Window
from segformer.data.labels import file_type
from segformer.evaluation import (
    WINDOWS,
    Protocol,
    Slide,
    as_batch,
    check_logits,
    device_of,
    label_windows,
)
from segformer.evaluation.batches import normalized


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


@dataclass(frozen=True)
class WholeImages(Labeller):
    """Labels images whole, at their own size."""

    windows = WINDOWS

    def labels(self, model: Any, image: Tensor) -> np.ndarray:
        """Returns the labels (H, W) of an image, (C, H, W)."""
        height, width = image.shape[1:]
        predicted = model.predict(as_batch(model, image, device_of(model)))
        return in_file_type(predicted[0, :height, :width], model)


@dataclass(frozen=True)
class InWindows(Labeller):
    """Labels images in windows, with the logits of one row of windows in memory.

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

        def read(window: Window) -> Tensor:
            return image[:, *window.slices].as_subclass(Tensor)

        def write(window: Window, part: np.ndarray) -> None:
            labels[window.slices] = part

        label_windows(model, (height, width), read, write, self.slide, device=device_of(model))
        return labels


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


def in_file_type(labels: Tensor, model: Any) -> np.ndarray:
    """Returns labels in the type of a model's label maps: uint8, or uint16 for many classes."""
    return labels.cpu().numpy().astype(file_type(model.num_classes))
