"""Labels as transformers gives them: prepared by a checkpoint's own image processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from segformer.checkpoint import Processor
from segformer.data.normalization import Normalization
from segformer.evaluation import device_of
from segformer.evaluation.batches import dtype_of
from segformer.inference.labellers import Labeller, Pair, in_file_type

# By Pillow's number, as transformers' torchvision back end chooses them.
MODES = {
    0: InterpolationMode.NEAREST_EXACT,
    1: InterpolationMode.LANCZOS,
    2: InterpolationMode.BILINEAR,
    3: InterpolationMode.BICUBIC,
}


@dataclass(frozen=True)
class ByProcessor(Labeller):
    """Labels images as transformers does with a checkpoint's image processor.

    An image is resized and normalised; the logits are interpolated to the image's own size. The
    labels are those of ``post_process_semantic_segmentation``, except for a model of one logit,
    whose label 1 transformers never gives.

    Args:
        processor: The checkpoint's processor, from :func:`segformer.checkpoint.read_processor`.
    """

    processor: Processor

    def check(self, model: Any) -> None:
        """Raises ValueError if an exported file takes other images, or cannot resize its logits.

        Also if the model is for images of another normalization.
        """
        wanted, size = self.processor.normalization, self.processor.size
        if model.normalization != wanted:
            raise ValueError(
                f"the processor's normalization is {wanted}, the model's {model.normalization}; "
                "copy the preprocessor_config.json of this model's checkpoint beside it"
            )
        if size is not None and not getattr(model, "takes_size", True):
            raise ValueError(
                "the processor resizes images, and this file cannot interpolate its stride-4 "
                "logits to their own size; export it with --size-input"
            )
        if isinstance(size, tuple):
            _check_size(model, size)

    def labels(self, model: Any, image: Tensor) -> np.ndarray:
        """Returns the labels (H, W) of an image, uint8 (3, H, W)."""
        return in_file_type(model.predict(*self._batch(model, image))[0], model)

    def with_probabilities(self, model: Any, image: Tensor) -> Pair:
        """Returns the labels (H, W) of an image and its class probabilities (K, H, W) float32."""
        labels, probabilities = model.predict_with_probabilities(*self._batch(model, image))
        return in_file_type(labels[0], model), probabilities[0].cpu().numpy()

    def _batch(self, model: Any, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns a prepared image as a batch, and the image's own size."""
        images = prepared(self.processor, image)[None]
        _check_size(model, (images.shape[2], images.shape[3]))
        size = (image.shape[1], image.shape[2])
        return images.to(device_of(model), dtype_of(model)), size


def prepared(processor: Processor, image: Tensor) -> Tensor:
    """Returns an image, uint8 (3, H, W), as a processor prepares it, float32 (3, H', W').

    The values equal those of transformers 5's default, its torchvision back end, bit by bit.
    """
    size, pixels = processor.size, image.as_subclass(torch.Tensor)
    if size is not None:
        lengths = [size] if isinstance(size, int) else list(size)
        pixels = resize(pixels, lengths, MODES[processor.resample], antialias=True)
    return _normalized(pixels, processor.normalization)


def _normalized(pixels: Tensor, by: Normalization) -> Tensor:
    """Returns normalised pixels; :class:`Normalization` itself rounds in another order."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (by.mean, by.std))
    if not mean.any() and (std == 1).all():
        return pixels.float() * by.scale
    return (pixels.float() - mean * (1 / by.scale)) / (std * (1 / by.scale))


def _check_size(model: Any, size: tuple[int, int]) -> None:
    """Raises ValueError if a model does not take images of a size, as they are."""
    fixed, least = getattr(model, "size", None), model.min_size
    shown = f"the processor makes images of {size[0]}×{size[1]} pixels"
    if fixed is not None and size != fixed:
        raise ValueError(
            f"{shown}, and this file takes {fixed[0]}×{fixed[1]} only; export it without --size, "
            "or for the processor's size"
        )
    if min(size) < least:
        raise ValueError(
            f"{shown}, and the model takes {least}×{least} or more; give a larger size in the "
            "preprocessor_config.json"
        )
