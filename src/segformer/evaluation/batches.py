"""From images to the batches that a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from segformer.data.normalization import IMAGENET
from segformer.data.transforms import Normalize, PadTo
from segformer.ops.modes import evaluating


def inner_model(model: Any) -> Any:
    """Returns the model in PyTorch's wrappers, which hide its attributes; another one as it is."""
    while isinstance(model, nn.DataParallel | DistributedDataParallel | AveragedModel):
        model = model.module
    return model


def pad_to_min_size(model: Any, images: Tensor) -> Tensor:
    """Pads images (…, H, W) right and bottom with 0 up to the model's ``min_size``."""
    min_size = getattr(model, "min_size", 1)
    return PadTo((min_size, min_size))(images)


def own_size_labels(model: Any, images: Tensor) -> Tensor:
    """Returns the labels (B, H, W) of images (B, C, H, W) of any size, by ``model.predict``."""
    labels = model.predict(pad_to_min_size(model, images))
    return labels[..., : images.shape[-2], : images.shape[-1]]


def normalize_for(model: Any) -> Normalize:
    """Returns the transform of a model's ``normalization``, or of ImageNet's if it has none."""
    return Normalize(getattr(model, "normalization", IMAGENET))


def as_batch(model: Any, image: Tensor, device: str | torch.device) -> Tensor:
    """Returns an image, uint8 (3, H, W), as a batch (1, 3, H', W') that the model takes.

    It is normalised, padded to the model's smallest size, and in the precision of its parameters.
    """
    return pad_to_min_size(model, normalized(model, image, device))


def normalized(model: Any, image: Tensor, device: str | torch.device) -> Tensor:
    """Returns an image, uint8 (3, H, W), as a batch (1, 3, H, W).

    It is normalised, and in the precision of the model's parameters.
    """
    return normalize_for(model)(image)[None].to(device, dtype_of(model))


def device_of(model: Any) -> torch.device:
    """Returns the device of a model's parameters; the CPU for a model without parameters."""
    return next((tensor.device for tensor in _parameters(model)), torch.device("cpu"))


def dtype_of(model: Any) -> torch.dtype:
    """Returns the precision of a model's parameters; float32 for a model without parameters."""
    return next((tensor.dtype for tensor in _parameters(model)), torch.float32)


def _parameters(model: Any) -> Iterator[Tensor]:
    return model.parameters() if isinstance(model, nn.Module) else iter(())


def in_evaluation(model: Any) -> AbstractContextManager[Any]:
    """Context manager with the model in evaluation mode, if it is a module."""
    return evaluating(model) if isinstance(model, nn.Module) else nullcontext()
