"""An exported file as a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer.data.classes import Classes
from segformer.data.normalization import Normalization
from segformer.deploy.formats import FORMATS, check_installed, format_of
from segformer.ops import upsample, upsample_argmax, with_background


def is_exported(source: str | os.PathLike[str]) -> bool:
    """Returns whether a path has the suffix of an exported file."""
    return format_of(Path(source)) is not None


def load(path: str | os.PathLike[str], device: str = "cpu") -> Exported:
    """Returns an exported file as a model, in the engine of its format.

    Args:
        path: A file that ``segformer export`` or :func:`segformer.deploy.export` wrote.
        device: Device of the engine.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its suffix is of no format, a package is missing, or the file is broken or
            was written by another tool.
    """
    return Exported(path, device)


class Exported(nn.Module):
    """An exported file, with the methods of a :class:`~segformer.SegmentationModel`.

    It can be pickled, for worker processes, which then read the file again.

    Args:
        path: The file.
        device: Device of the engine.

    Attributes:
        description: What the file says about itself.
        engine: Name and version of what runs it.
        classes: Names and colours of the classes.
        normalization: How the caller normalises images. A file that takes pixels normalises them
            itself: then it leaves pixels as they are.
        output: ``"labels"``, ``"logits"`` or ``"probabilities"``.
        session: What runs the graph.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "cpu") -> None:
        super().__init__()
        self.path = Path(path)
        self.device = device
        self._open()

    def _open(self) -> None:
        name = format_of(self.path)
        if name is None:
            suffixes = ", ".join(sorted({made.suffix for made in FORMATS.values()}))
            raise ValueError(
                f"{str(self.path)!r} has the suffix of no exported file ({suffixes}); read weights "
                "with SegmentationModel.from_pretrained"
            )
        check_installed(FORMATS[name], name)
        if not self.path.is_file():
            raise FileNotFoundError(f"no file {str(self.path)!r}")
        session = FORMATS[name].session(self.path, self.device)
        self.description, self.engine = session.description, session.engine
        self.session: Callable[..., Tensor] = session

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "device": self.device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def classes(self) -> Classes:
        return self.description.classes

    @property
    def num_classes(self) -> int:
        return self.description.num_classes

    @property
    def min_size(self) -> int:
        return self.description.min_size

    @property
    def output(self) -> str:
        return self.description.output

    @property
    def normalization(self) -> Normalization:
        stated = self.description.normalization
        if self.description.input == "normalized":
            return stated
        return Normalization([0.0] * len(stated.mean), [1.0] * len(stated.mean), 1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (B, K, H, W) of images (B, C, H, W).

        For a file that gives probabilities they are the logarithms of these, which have the same
        softmax and the same greatest class.

        Raises:
            ValueError: If the images do not fit the file, or it gives labels only.
        """
        if self.output == "labels":
            raise ValueError(
                f"{str(self.path)!r} gives labels, no logits; for windows, several sizes, mirrored "
                "images or probabilities export it with --output logits"
            )
        result = self._run(images)
        return result.log() if self.output == "probabilities" else result

    def predict(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Returns the labels (B, *size*) int64 of images (B, C, H, W).

        Args:
            images: Images, normalised by ``normalization``.
            size: Height and width of the labels; by default those of the images. Labels that the
                file gives at the images' size are repeated or left out, to the nearest.

        Raises:
            ValueError: If the images do not fit the file.
        """
        height, width = images.shape[-2:] if size is None else size
        size = (int(height), int(width))
        if self.output == "labels":
            labels = self._run(images, size).long()
            if labels.shape[-2:] != size:
                labels = F.interpolate(labels[:, None].double(), size, mode="nearest-exact")[:, 0]
            return labels.long()
        logits = self(images)
        if logits.shape[-2:] != size:
            logits = upsample(logits, size)
        return upsample_argmax(with_background(logits), size)

    def _run(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Returns the output of the graph, at the images' size, or at *size* if it takes one."""
        height, width = images.shape[-2:]
        inputs = self.inputs(images, size)
        result = torch.cat([self.session(*part) for part in self._batches(inputs)])
        if not self.description.takes_size:
            result = result[..., :height, :width]
        return result

    def inputs(self, images: Tensor, size: Sequence[int] | None = None) -> list[Tensor]:
        """Returns what the graph takes for images, and for a size of its output.

        Images that are smaller than a fixed size are padded.

        Raises:
            ValueError: If the images do not fit the file.
        """
        self._check(images)
        height, width = images.shape[-2:]
        if self.description.size is not None:
            fixed = self.description.size
            images = F.pad(images, (0, fixed[1] - width, 0, fixed[0] - height))
        x = images.detach().cpu().float()
        if self.description.input == "uint8":
            x = x.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8)
        inputs = [x]
        if self.description.takes_size:
            inputs.append(torch.tensor(size or (height, width)))
        return inputs

    def _batches(self, inputs: list[Tensor]) -> Any:
        """Yields the inputs in batches of the size that the file takes."""
        images, *size = inputs
        batch = self.description.batch or len(images)
        if len(images) % batch:
            raise ValueError(
                f"a batch of {len(images)} images for a file that takes {batch} at a time; give a "
                "multiple, or export it without --batch"
            )
        for part in images.split(batch):
            yield [part, *size]

    def _check(self, images: Tensor) -> None:
        d = self.description
        if images.ndim != 4 or images.shape[1] != d.channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)} for {str(self.path)!r}, which takes "
                f"(B, {d.channels}, H, W)"
            )
        height, width = images.shape[-2:]
        if min(height, width) < d.min_size:
            raise ValueError(
                f"images of {height}×{width} are too small; at least {d.min_size}×{d.min_size} "
                "pixels: resize or pad them"
            )
        if d.size is not None and (height > d.size[0] or width > d.size[1]):
            raise ValueError(
                f"images of {height}×{width} are larger than the {d.size[0]}×{d.size[1]} of "
                f"{str(self.path)!r}; label them in windows, resize them, or export it without "
                "--size"
            )
