"""Images as the batches that a model takes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from segformer.data.normalization import IMAGENET
from segformer.data.transforms import Normalize, PadTo
from segformer.ops.modes import evaluating


def pad_to_least(model: Any, images: Tensor) -> Tensor:
    """Pads images (…, H, W) right and bottom with 0 up to the least size that the model takes."""
    least = getattr(getattr(model, "backbone", None), "min_size", 1)
    return PadTo((least, least))(images)


def own_size_labels(model: Any, images: Tensor) -> Tensor:
    """Images (B, C, H, W) of any size to labels (B, H, W), by the model's own ``predict``."""
    labels = model.predict(pad_to_least(model, images))
    return labels[..., : images.shape[-2], : images.shape[-1]]


def normalize_for(model: Any) -> Normalize:
    """The transform that normalises images by a model's ``normalization``, or by ImageNet's."""
    return Normalize(getattr(model, "normalization", IMAGENET))


def as_batch(model: Any, image: Tensor, device: str | torch.device) -> Tensor:
    """An image, uint8 (3, H, W), as a batch that the model takes: normalised, padded to its least size, in its precision."""
    dtype = next(model.parameters()).dtype if isinstance(model, nn.Module) else torch.float32
    return pad_to_least(model, normalize_for(model)(image))[None].to(device, dtype)


def in_evaluation(model: Any) -> AbstractContextManager[Any]:
    """Evaluation mode inside, for what has one."""
    return evaluating(model) if isinstance(model, nn.Module) else nullcontext()
