"""The papers' protocols of measurement, for any module that maps images to logits.

An image is fitted into a size, labelled whole or through windows that overlap, at one size or several, and flipped; the probabilities of
all of these are averaged at the image's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from segformer.data.classes import ignore_index
from segformer.data.labels import check_labels
from segformer.evaluation.batches import in_evaluation, normalize_for, pad_to_least
from segformer.evaluation.metrics import Scores
from segformer.ops import upsample, with_background

Size = tuple[int, int]
ToLogits = Callable[[Tensor], Tensor]


def own_size_logits(model: ToLogits, images: Tensor) -> Tensor:
    """Images (B, C, H, W) of any size to logits (B, K, H, W)."""
    padded = pad_to_least(model, images)
    return upsample(model(padded), padded.shape[-2:])[..., : images.shape[-2], : images.shape[-1]]


@dataclass(frozen=True)
class Whole:
    """Images as they are."""

    def logits(self, model: ToLogits, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K, H, W)."""
        return own_size_logits(model, images)


@dataclass(frozen=True)
class Slide:
    """Windows of ``crop_size``, ``stride`` apart, the last ones moved back to the border; logits are averaged where they overlap.

    Args:
        crop_size: height and width of a window in pixels.
        stride: pixels between two windows, down and across.

    Raises:
        ValueError: when windows would leave gaps.
    """

    crop_size: Size
    stride: Size

    def __post_init__(self) -> None:
        if not all(
            0 < stride <= crop for stride, crop in zip(self.stride, self.crop_size, strict=True)
        ):
            raise ValueError(
                f"stride={self.stride} must be from 1 to crop_size={self.crop_size}, or pixels between windows get no label"
            )

    def starts(self, height: int, width: int) -> tuple[list[int], list[int]]:
        """Where windows start, down and across."""

        def along(side: int, crop: int, stride: int) -> list[int]:
            count = max(0, -(-(side - crop) // stride)) + 1
            return [max(0, min(place * stride, side - crop)) for place in range(count)]

        return along(height, self.crop_size[0], self.stride[0]), along(
            width, self.crop_size[1], self.stride[1]
        )

    def logits(self, model: ToLogits, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K, H, W)."""
        tops, lefts = self.starts(*images.shape[-2:])
        total: Any = None
        count = images.new_zeros(images.shape[-2:])
        for top in tops:
            for left in lefts:
                rows, columns = (
                    slice(top, top + self.crop_size[0]),
                    slice(left, left + self.crop_size[1]),
                )
                crop = images[:, :, rows, columns]
                logits = own_size_logits(model, crop)
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], *images.shape[-2:])
                total[:, :, rows, columns] += logits
                count[rows, columns] += 1
        return total / count


@dataclass(frozen=True)
class Protocol:
    """How images are measured.

    Args:
        mode: :class:`Whole` or :class:`Slide`.
        scale: long and short side in pixels into which an image is fitted, its proportions kept; by default its own size.
        multiple: what its sides are then rounded up to, which bends its proportions a little (the official code's aligned resize).
        ratios: factors of the size, one pass each.
        flip: a pass more each, mirrored.
    """

    mode: Whole | Slide = Whole()
    scale: Size | None = None
    multiple: int = 1
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False

    def sizes(self, height: int, width: int) -> list[Size]:
        """The height and width of each pass."""
        fit = 1.0
        if self.scale is not None:
            fit = min(max(self.scale) / max(height, width), min(self.scale) / min(height, width))

        def rounded(side: float) -> int:
            return max(1, -(-int(side + 0.5) // self.multiple)) * self.multiple

        return [
            (rounded(height * fit * ratio), rounded(width * fit * ratio)) for ratio in self.ratios
        ]

    def probabilities(
        self, model: ToLogits, images: Tensor, size: Sequence[int] | None = None
    ) -> Tensor:
        """Images (B, C, H, W), normalised, to the mean of all passes' class probabilities (B, K, *size*); by default at their own size."""
        wanted = tuple(images.shape[-2:] if size is None else size)
        total: Any = 0
        for resized in self.sizes(images.shape[-2], images.shape[-1]):
            scaled = images if resized == tuple(images.shape[-2:]) else upsample(images, resized)
            for mirrored in (False, True) if self.flip else (False,):
                logits = self.mode.logits(model, scaled.flip(-1) if mirrored else scaled)
                logits = logits.flip(-1) if mirrored else logits
                total = total + with_background(upsample(logits, wanted)).softmax(1)
        return total / (len(self.ratios) * (1 + self.flip))

    @torch.no_grad()
    def predict(self, model: Any, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Images (B, C, H, W), normalised, to labels (B, *size*) int64; the model, where it is a module, in evaluation mode."""
        with in_evaluation(model):
            return self.probabilities(model, images, size).argmax(1)


WINDOWS = Slide((1024, 1024), (768, 768))  # Cityscapes'

# By data set: at one size, and with test-time augmentation, as the official code measured (its tools/test.py with and without --aug-test).
TTA_RATIOS = {
    "ade20k": (0.75, 0.875, 1.0, 1.125, 1.25),
    "ade20k-640": (0.75, 0.875, 1.0, 1.125, 1.25),
    "cityscapes": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
    "whole": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    "slide": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
}
PROTOCOLS = {
    "whole": Protocol(),
    "slide": Protocol(WINDOWS),
    "ade20k": Protocol(scale=(2048, 512), multiple=32),
    "ade20k-640": Protocol(scale=(2048, 640), multiple=32),  # B5
    "cityscapes": Protocol(WINDOWS, scale=(2048, 1024)),
}


def find_protocol(name: str, tta: bool = False) -> Protocol:
    """A protocol by its name, with the papers' test-time augmentation where it is asked for.

    Raises:
        ValueError: when there is none of this name.
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
    """The scores of any module that maps normalised images (B, 3, H, W) to logits, of any size, on a data set.

    Args:
        model: the module, or any function; a Hugging Face model is given as ``lambda images: model(images).logits``. Images are normalised
            by its ``normalization``, where it has one, and by ImageNet's mean and standard deviation otherwise.
        dataset: samples (image uint8 (3, H, W), label (H, W)) and their ``classes``; 255 counts nowhere, and 65535 in place
            of it for more than 255 classes.
        protocol: how images are measured; by default whole, at their own size.
        device: where the model lies.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix

    protocol = protocol or Protocol()
    classes = len(dataset.classes)
    confusion = MulticlassConfusionMatrix(max(2, classes), ignore_index=ignore_index(classes)).to(
        device
    )
    prepare = normalize_for(model)
    for index in tqdm(range(len(dataset)), "evaluate", unit="image"):
        image, label = dataset[index]
        check_labels(label, max(2, classes), f"label map {index}")
        images = prepare(image)[None].to(device)
        confusion.update(
            protocol.predict(model, images, label.shape), label[None].long().to(device)
        )
    return Scores.of(confusion.compute())
