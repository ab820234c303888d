"""Whether an exported file computes what the model computes in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from segformer.deploy.exported import Exported
from segformer.evaluation import evaluate
from segformer.evaluation.batches import in_evaluation
from segformer.ops import with_background

TIE = 1e-3  # of the range of logits: where the two best classes are closer, either is right
# By precision: the greatest relative difference of logits, and the smallest share of equal labels.
# int8 is judged by the loss of mIoU, where there are labelled images.
GATES: dict[str, tuple[float, float]] = {
    "fp32": (1e-4, 0.9999),
    "fp16": (float("inf"), 0.995),
    "bf16": (float("inf"), 0.98),
    "int8": (float("inf"), 0.0),
}


@dataclass(frozen=True)
class Comparison:
    """An exported file beside its model, over some batches of images.

    Args:
        shapes: Shapes of the images.
        difference: Greatest difference of logits, over the greatest logit; of probabilities, their
            greatest difference; None for labels.
        equal: Share of equal labels, ties left out.
        miou: The model's mIoU and the file's, in per cent; None if it was not measured.
    """

    shapes: tuple[tuple[int, ...], ...]
    difference: float | None
    equal: float
    miou: tuple[float, float] | None = None

    def passes(self, precision: str, max_drop: float = 0.5) -> bool:
        """Returns whether the file is near enough to its model.

        Args:
            precision: Precision of the file.
            max_drop: The greatest loss of mIoU, in points.
        """
        difference, equal = GATES[precision]
        before, after = self.miou or (0.0, 0.0)
        near = (self.difference or 0.0) <= difference and self.equal >= equal
        return near and before - after <= max_drop

    def __str__(self) -> str:
        shapes = ", ".join("×".join(map(str, shape)) for shape in dict.fromkeys(self.shapes))
        parts = [f"{100 * self.equal:.3f} % of labels equal ({shapes})"]
        if self.difference is not None:
            parts.insert(0, f"greatest relative difference {self.difference:.1e}")
        if self.miou is not None:
            parts.append("mIoU {:.2f} % before and {:.2f} % after".format(*self.miou))
        return ", ".join(parts)


def compare(exported: Exported, model: Any, batches: Sequence[Tensor] = ()) -> Comparison:
    """Returns how a file differs from its model on images of several sizes.

    Args:
        exported: The file.
        model: The model in PyTorch.
        batches: Pixels (B, C, H, W); by default smooth noise, at sizes that no graph is
            captured with, one of them odd, and a batch of 3.
    """
    batches = batches or list(noise(exported))
    differences, equal, total = [], 0, 0
    for pixels in batches:
        with torch.no_grad(), in_evaluation(model):
            logits = model(model.normalization(pixels))
        theirs = exported.normalization(pixels)
        if exported.gives_logits:
            found = exported(theirs)
            differences.append(_difference(logits, found, exported.output))
            labels = with_background(found).argmax(1)
        else:
            labels = exported.predict(theirs)
        logits = with_background(logits)
        decided = _decided(logits)
        equal += int((labels == logits.argmax(1))[decided].sum())
        total += int(decided.sum())
    shapes = tuple(tuple(pixels.shape) for pixels in batches)
    # a tensor's maximum, because Python's may leave out NaN
    difference = float(torch.tensor(differences).max()) if differences else None
    return Comparison(shapes, difference, equal / max(1, total))


def with_miou(comparison: Comparison, exported: Exported, model: Any, dataset: Any) -> Comparison:
    """Returns a comparison with the mIoU of a model and its file on labelled images.

    Args:
        comparison: The comparison so far.
        exported: The file.
        model: The model in PyTorch.
        dataset: Samples (image uint8 (C, H, W), label (H, W)), with ``classes``.
    """
    size = exported.description.size
    samples = Samples(dataset, range(len(dataset)), size)
    before, after = (100 * evaluate(network, samples).miou for network in (model, exported))
    return replace(comparison, miou=(before, after))


class Samples:
    """Some samples of a data set.

    Args:
        dataset: Samples (image uint8 (C, H, W), label (H, W)), with ``classes``.
        indices: Which of them.
        size: Height and width that the images are resized to; by default they are not resized.
    """

    def __init__(
        self, dataset: Any, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> None:
        self.dataset = dataset
        self.classes = dataset.classes
        self.indices = indices
        self.size = size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.dataset[self.indices[index]]
        return fit(image, self.size), label


def fit(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Returns an image (C, H, W) at a size, by default its own."""
    if size is None or tuple(image.shape[-2:]) == tuple(size):
        return image
    resized: Tensor = resize(image, list(size), antialias=True)
    return resized


def noise(exported: Exported) -> Iterator[Tensor]:
    """Yields batches of pixels (B, C, H, W), smooth noise, that the file takes."""
    d = exported.description
    small = d.min_size
    sizes = [d.size] * 2 if d.size else [(small, small), (2 * small + 1, 3 * small + 1), (333, 500)]
    counts = [d.batch] * len(sizes) if d.batch else [1, 3, 2]
    generator = torch.Generator().manual_seed(0)
    for count, (height, width) in zip(counts, sizes, strict=False):
        shares = smooth(count, d.channels, height, width, generator)
        # The graph clips pixels to the limits itself.
        of_all = replace(d.normalization, limits=()) if d.input == "uint8" else d.normalization
        yield of_all.pixels(shares)


def smooth(
    count: int, channels: int, height: int, width: int, generator: torch.Generator
) -> Tensor:
    """Returns smooth noise (count, channels, height, width) from 0 to 1."""
    coarse = torch.rand(count, channels, 2 + height // 24, 2 + width // 24, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def _difference(logits: Tensor, theirs: Tensor, output: str) -> float:
    if output == "probabilities":
        return float((with_background(logits).softmax(1) - theirs.exp()).abs().max())
    return float((logits - theirs).abs().max() / logits.abs().max())


def _decided(logits: Tensor) -> Tensor:
    """Returns where (B, H, W) the two greatest logits differ by more than a tie."""
    best, second = logits.topk(2, 1).values.unbind(1)
    return best - second > TIE * (logits.max() - logits.min())
