"""Whether an exported file computes what the model computes in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer.deploy.exported import Exported
from segformer.ops import with_background

TIE = 1e-3  # of the range of logits: where the two best classes are closer, either is right
# By precision: the greatest relative difference of logits, and the smallest share of equal labels.
# Trained networks measure int8 by their mIoU.
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
    """

    shapes: tuple[tuple[int, ...], ...]
    difference: float | None
    equal: float

    def passes(self, precision: str) -> bool:
        difference, equal = GATES[precision]
        return (self.difference or 0.0) <= difference and self.equal >= equal

    def __str__(self) -> str:
        shapes = ", ".join("×".join(map(str, shape)) for shape in self.shapes)
        share = f"{100 * self.equal:.3f} % of labels equal"
        if self.difference is None:
            return f"{share} ({shapes})"
        return f"greatest relative difference {self.difference:.1e}, {share} ({shapes})"


def compare(exported: Exported, model: Any, batches: Sequence[Tensor] = ()) -> Comparison:
    """Returns how a file differs from its model on images of several sizes.

    Args:
        exported: The file.
        model: The model in PyTorch.
        batches: Pixels uint8 (B, C, H, W); by default smooth noise, at sizes that no graph is
            captured with, one of them odd, and a batch of 3.
    """
    batches = batches or list(noise(exported))
    differences, equal, total = [], 0, 0
    for pixels in batches:
        ours = _normalized(model, pixels)
        with torch.no_grad():
            logits = model(ours)
        theirs = _normalized(exported, pixels)
        labels = exported.predict(theirs)
        if exported.output != "labels":
            differences.append(_difference(logits, exported(theirs), exported.output))
        decided = _decided(with_background(logits))
        equal += int((labels == with_background(logits).argmax(1))[decided].sum())
        total += int(decided.sum())
    shapes = tuple(tuple(pixels.shape) for pixels in batches)
    return Comparison(shapes, max(differences) if differences else None, equal / max(1, total))


def noise(exported: Exported) -> Iterator[Tensor]:
    """Yields batches of smooth noise, uint8 (B, C, H, W), that the file takes."""
    d = exported.description
    small = d.min_size
    sizes = [d.size] * 2 if d.size else [(small, small), (2 * small + 1, 3 * small + 1), (333, 500)]
    counts = [d.batch] * len(sizes) if d.batch else [1, 3, 2]
    generator = torch.Generator().manual_seed(0)
    for count, (height, width) in zip(counts, sizes, strict=False):
        yield smooth(count, d.channels, height, width, generator)


def smooth(
    count: int, channels: int, height: int, width: int, generator: torch.Generator
) -> Tensor:
    """Returns images of smooth noise, uint8 (count, channels, height, width)."""
    coarse = torch.rand(count, channels, 2 + height // 24, 2 + width // 24, generator=generator)
    fine = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (255 * fine).round().to(torch.uint8)


def _normalized(model: Any, pixels: Tensor) -> Tensor:
    images: Tensor = model.normalization(pixels)
    return images


def _difference(logits: Tensor, theirs: Tensor, output: str) -> float:
    if output == "probabilities":
        return float((with_background(logits).softmax(1) - theirs.exp()).abs().max())
    return float((logits - theirs).abs().max() / logits.abs().max())


def _decided(logits: Tensor) -> Tensor:
    """Returns where (B, H, W) the two greatest logits differ by more than a tie."""
    best, second = logits.topk(2, 1).values.unbind(1)
    return best - second > TIE * (logits.max() - logits.min())
