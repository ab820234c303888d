"""Samples of training and measuring, and how they become batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Size, Tensor
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors

from segformer.data.labels import check_labels, label_type


class Transformed(Dataset):
    """The transformed samples of a data set; raises ValueError for an invalid label map."""

    def __init__(self, dataset: Any, transform: Callable[..., Any]) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, label = self.dataset[index]
        what = f"label map {index} of {type(self.dataset).__name__}"
        if not isinstance(label, Tensor) or label.ndim != 2:
            shown = tuple(label.shape) if hasattr(label, "shape") else label
            raise ValueError(
                f"{what} is a {type(label).__name__}, {shown}; give a tensor of class indices "
                "(H, W)"
            )
        check_labels(label, len(self.dataset.classes), what)
        label = label.to(label_type(len(self.dataset.classes)))
        # A label that is no Mask would not be cropped with its image.
        return self.transform(tv_tensors.Image(image), tv_tensors.Mask(label))


class Pixels(Dataset):
    """Images of a data set without their labels, evenly spread over it.

    Args:
        dataset: Samples (image (C, H, W) uint8, label (H, W)).
        count: Greatest number of images.
    """

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset = dataset
        total = len(dataset)
        count = min(count, total)
        self.indices = [k * total // count for k in range(count)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        image, _ = self.dataset[self.indices[index]]
        return image.as_subclass(Tensor)


def by_size(samples: Sequence[tuple[Tensor, Tensor]]) -> list[Any]:
    """Returns batches of images (B, 3, H, W) and labels (B, H, W), one for each size."""
    groups: dict[Size, list[tuple[Tensor, Tensor]]] = {}
    for image, label in samples:
        groups.setdefault(image.shape, []).append((image, label))
    return [default_collate(group) for group in groups.values()]


def collated(samples: list[Any]) -> Any:
    """Returns the batch of training samples; raises ValueError if their sizes differ."""
    sizes = dict.fromkeys(tuple(image.shape[-2:]) for image, _ in samples)
    if len(sizes) > 1:
        shown = ", ".join(f"{height}×{width}" for height, width in sizes)
        raise ValueError(
            f"training samples of {shown} pixels make no batch; let data.train_transform, and that "
            "of data.last_steps, end in one size, such as segformer.data.transforms.TrainTransform"
        )
    return default_collate(samples)


def both_collated(count: int, samples: list[Any]) -> tuple[Any, Any]:
    """Returns the batch of the first ``count`` samples, and that of the others."""
    return collated(samples[:count]), default_collate(samples[count:])
