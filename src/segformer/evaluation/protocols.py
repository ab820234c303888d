"""The papers' evaluation protocols, for any module that maps images to logits.

An image is resized, and labelled whole or in overlapping windows, at one scale or several, and
flipped. The class probabilities of all these passes are averaged at the image's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from segformer.data.classes import Classes
from segformer.data.families.opened import starts
from segformer.data.labels import check_labels
from segformer.evaluation.batches import (
    in_evaluation,
    inner_model,
    normalized,
    own_size_labels,
    pad_to_min_size,
)
from segformer.evaluation.metrics import Scores, check_predictions, confusion_matrix
from segformer.ops import at_least_float32, upsample, with_background

Size = tuple[int, int]
ToLogits = Callable[[Tensor], Tensor]


def own_size_logits(model: ToLogits, images: Tensor) -> Tensor:
    """Returns the logits (B, K, H, W) of images (B, C, H, W) of any size."""
    padded = pad_to_min_size(model, images)
    return upsample(model(padded), padded.shape[-2:])[..., : images.shape[-2], : images.shape[-1]]


@dataclass(frozen=True)
class Whole:
    """Labels whole images."""

    def logits(self, model: ToLogits, images: Tensor) -> Tensor:
        """Returns the logits (B, K, H, W) of images (B, C, H, W)."""
        return own_size_logits(model, images)


@dataclass(frozen=True)
class Slide:
    """Labels images in windows, and averages the logits of windows that overlap.

    The last windows of a row or column are moved back to the border.

    Args:
        crop_size: Height and width of a window in pixels.
        stride: Vertical and horizontal distance of two windows in pixels.

    Raises:
        ValueError: If there would be gaps between windows.
    """

    crop_size: Size
    stride: Size

    def __post_init__(self) -> None:
        if not all(
            0 < stride <= crop for stride, crop in zip(self.stride, self.crop_size, strict=True)
        ):
            raise ValueError(
                f"stride={self.stride} must be from 1 to crop_size={self.crop_size}; with a "
                "greater one, pixels between windows get no label"
            )

    def starts(self, height: int, width: int) -> tuple[list[int], list[int]]:
        """Returns the top rows and the left columns of the windows."""
        return (
            starts(height, self.crop_size[0], self.stride[0]),
            starts(width, self.crop_size[1], self.stride[1]),
        )

    def weight(self, height: int, width: int) -> Tensor:
        """Returns the weight (H, W) of a window's pixels in the mean."""
        return torch.ones(height, width)

    def logits(self, model: ToLogits, images: Tensor) -> Tensor:
        """Returns the logits (B, K, H, W) of images (B, C, H, W)."""
        tops, lefts = self.starts(*images.shape[-2:])
        total: Any = None
        weights = images.new_zeros(images.shape[-2:])
        height, width = images.shape[-2:]
        weight = self.weight(min(height, self.crop_size[0]), min(width, self.crop_size[1]))
        weight = weight.to(images)
        for top in tops:
            for left in lefts:
                rows = slice(top, top + self.crop_size[0])
                columns = slice(left, left + self.crop_size[1])
                logits = at_least_float32(own_size_logits(model, images[:, :, rows, columns]))
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], *images.shape[-2:])
                total[:, :, rows, columns] += logits * weight
                weights[rows, columns] += weight
        return total / weights


@dataclass(frozen=True)
class Blend(Slide):
    """Windows whose pixels weigh less towards the window's edge, so that no border is seen.

    At the edge, a network sees one side of its surroundings only. The weight falls linearly along
    both axes, from 1 in the middle.
    """

    def weight(self, height: int, width: int) -> Tensor:
        """Returns the weight (H, W) of a window's pixels in the mean."""
        return _tent(height)[:, None] * _tent(width)


def _tent(length: int) -> Tensor:
    """Returns weights (length,) that fall from the middle to both ends, and are above 0."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(distance, distance.flip(0)) / -(-length // 2)


@dataclass(frozen=True)
class Protocol:
    """How images are labelled for an evaluation.

    Args:
        mode: :class:`Whole` or :class:`Slide`.
        scale: Long and short side in pixels that an image is fitted into, with its aspect ratio; by
            default its own size.
        multiple: Its height and width are then rounded up to multiples of this number, which
            changes the aspect ratio slightly (the official code's aligned resize).
        ratios: Factors of the size, with one pass for each.
        flip: Whether each pass is repeated with the mirrored image.
    """

    mode: Whole | Slide = Whole()
    scale: Size | None = None
    multiple: int = 1
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def passes(self) -> int:
        """The number of times that an image goes through the model; windows are not counted."""
        return len(self.ratios) * (1 + self.flip)

    def sizes(self, height: int, width: int) -> list[Size]:
        """Returns the height and width of each pass."""
        fit = 1.0
        if self.scale is not None:
            fit = min(max(self.scale) / max(height, width), min(self.scale) / min(height, width))

        def rounded(length: float) -> int:
            return max(1, -(-int(length + 0.5) // self.multiple)) * self.multiple

        return [
            (rounded(height * fit * ratio), rounded(width * fit * ratio)) for ratio in self.ratios
        ]

    def probabilities(
        self, model: ToLogits, images: Tensor, size: Sequence[int] | None = None
    ) -> Tensor:
        """Returns the class probabilities (B, K, *size*), the mean of all passes.

        Args:
            model: Module that maps images to logits.
            images: Normalised images (B, C, H, W).
            size: Height and width of the result; by default those of the images.
        """
        wanted = tuple(images.shape[-2:] if size is None else size)
        total: Any = 0
        for resized in self.sizes(images.shape[-2], images.shape[-1]):
            scaled = _at_size(images, resized)
            for mirrored in (False, True) if self.flip else (False,):
                logits = self.mode.logits(model, scaled.flip(-1) if mirrored else scaled)
                logits = at_least_float32(logits)
                logits = logits.flip(-1) if mirrored else logits
                total = total + with_background(upsample(logits, wanted)).softmax(1)
        return total / self.passes

    @torch.no_grad()
    def predict(self, model: Any, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Returns the labels (B, *size*), int64; the arguments are those of :meth:`probabilities`.

        A module is in evaluation mode meanwhile. A model that gives labels only has one pass.

        Raises:
            ValueError: If it gives labels only, and this protocol needs logits.
        """
        if not gives_logits(model):
            check_logits(model, self)
            (resized,) = self.sizes(images.shape[-2], images.shape[-1])
            return _only_labels(model, _at_size(images, resized), size or images.shape[-2:])
        with in_evaluation(model):
            return self.probabilities(model, images, size).argmax(1)


def gives_logits(model: Any) -> bool:
    """Returns whether a model gives logits; an exported file may give labels only."""
    return getattr(model, "gives_logits", True)


def check_logits(model: Any, protocol: Protocol) -> None:
    """Raises ValueError if a protocol needs logits, and the model gives labels only."""
    if not gives_logits(model) and (protocol.passes > 1 or protocol.mode != Whole()):
        raise ValueError(
            "windows, several sizes and mirrored images need logits, and this model gives labels "
            "only; export it with --output logits, or label images whole, once"
        )


def check_number_of_classes(classes: Classes, num_classes: int) -> None:
    """Raises ValueError if a model has other classes than the data, by their number."""
    if not classes.fit(num_classes):
        raise ValueError(
            f"the model has {num_classes} classes, and the data {len(classes)}; give weights that "
            "were trained on the classes of these data"
        )


def _check_upright(image: Tensor, label: Tensor, index: int) -> None:
    height, width = image.shape[-2:]
    if height != width and tuple(label.shape) == (width, height):
        raise ValueError(
            f"image {index} has {height}×{width} pixels, and its label map {width}×{height}; "
            "transpose one of them"
        )


def _at_size(images: Tensor, size: Size) -> Tensor:
    return images if size == tuple(images.shape[-2:]) else upsample(images, size)


def _only_labels(model: Any, images: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(size) == tuple(images.shape[-2:]):
        return own_size_labels(model, images)
    return model.predict(images, size)


WINDOWS = Slide((1024, 1024), (768, 768))  # Cityscapes'

# By data set, as in the official code: at one size (tools/test.py), and the ratios of its test-time
# augmentation (--aug-test).
TTA_RATIOS = {
    "ade20k": (0.75, 0.875, 1.0, 1.125, 1.25),
    "ade20k-640": (0.75, 0.875, 1.0, 1.125, 1.25),
    "cityscapes": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
    "whole": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    "aligned": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    "slide": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
}
PROTOCOLS = {
    "whole": Protocol(),
    "aligned": Protocol(multiple=32),
    "slide": Protocol(WINDOWS),
    "ade20k": Protocol(scale=(2048, 512), multiple=32),
    "ade20k-640": Protocol(scale=(2048, 640), multiple=32),  # B5
    "cityscapes": Protocol(WINDOWS, scale=(2048, 1024)),
}


def find_protocol(name: str, tta: bool = False) -> Protocol:
    """Returns a protocol by its name, with the papers' test-time augmentation if ``tta`` is set.

    Raises:
        ValueError: If there is no protocol of this name.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return replace(PROTOCOLS[name], ratios=TTA_RATIOS[name], flip=True) if tta else PROTOCOLS[name]


def evaluate(
    model: Any,
    dataset: Any,
    protocol: Protocol | None = None,
    *,
    device: str | torch.device = "cpu",
) -> Scores:
    """Returns the scores of a model on a data set.

    Args:
        model: Module or function that maps normalised images (B, 3, H, W) to logits of any size,
            such as an exported file; for a Hugging Face model,
            ``lambda images: model(images).logits``. Its ``normalization`` is used if it has one,
            otherwise ImageNet's.
        dataset: Samples (image uint8 (3, H, W), label (H, W)), with ``classes``. The label 255 is
            ignored, or 65535 for more than 255 classes. An image may have been resized: its logits
            are interpolated to the size of the label map.
        protocol: How images are labelled; by default whole, at their own size.
        device: Device of the model.

    Raises:
        ValueError: If the model gives labels only, and the protocol needs logits; if it has other
            classes than the data; or if a label map lies on its side.
    """
    model = inner_model(model)
    protocol = protocol or Protocol()
    check_logits(model, protocol)
    if (num_classes := getattr(model, "num_classes", None)) is not None:
        check_number_of_classes(dataset.classes, num_classes)
    num_labels = len(dataset.classes.of_labels())
    confusion = confusion_matrix(num_labels).to(device)
    for index in tqdm(range(len(dataset)), "evaluate", unit="image"):
        image, label = dataset[index]
        check_labels(label, num_labels, f"label map {index}")
        _check_upright(image, label, index)
        predicted = protocol.predict(model, normalized(model, image, device), label.shape)
        check_predictions(predicted, num_labels)
        confusion.update(predicted, label[None].long().to(device))
    return Scores.of(confusion.compute())
