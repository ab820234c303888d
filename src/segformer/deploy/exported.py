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
from segformer.inference import predict_file
from segformer.inference.results import Prediction
from segformer.ops import at_least_float32, upsample, upsample_argmax, with_background


def is_exported(source: str | os.PathLike[str]) -> bool:
    """Returns whether a path has the suffix of an exported file."""
    return format_of(Path(source)) is not None


def load(path: str | os.PathLike[str], device: str = "cpu") -> Exported:
    """Returns an exported file as a model, in the engine of its format.

    Args:
        path: A file that ``segformer export`` or :func:`segformer.deploy.export` wrote.
        device: Device of the engine: ``"cpu"``, ``"cuda"`` for ``.onnx`` and ``.pt2``, ``"gpu"`` or
            ``"npu"`` for ``.xml``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its suffix is of no format, a package or the device is missing, or the file
            is broken or was written by another tool.
    """
    return Exported(path, device)


class Exported(nn.Module):
    """An exported file, with the methods of a :class:`~segformer.SegmentationModel`.

    It can be pickled, for worker processes, which then read the file again. It has no parameters;
    images may be on any device and of any floating precision, and the results are on their device.
    The engine uses as many threads as PyTorch has when the file is read.

    Args:
        path: The file.
        device: Device of the engine.

    Attributes:
        description: What the file says about itself.
        engine: Name and version of what runs it.
        classes: Names and colours of the classes.
        normalization: How images are normalised.
        output: ``"labels"``, ``"logits"`` or ``"probabilities"``.
        gives_logits: Whether :meth:`forward` works; not for a file that gives labels.
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
        if self.path.is_dir() and FORMATS[name].suffix:
            raise ValueError(f"{str(self.path)!r} is a folder; name an exported file")
        if not self.path.exists():
            raise FileNotFoundError(f"no file {str(self.path)!r}")
        session = FORMATS[name].session(self.path, self.device)
        self.description, self.engine = session.description, session.engine
        self.session: Callable[..., Tensor] = session

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path.absolute(), "device": self.device}

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
    def size(self) -> tuple[int, int] | None:
        """The only height and width of the images; None for any."""
        return self.description.size

    @property
    def takes_size(self) -> bool:
        """Whether the file interpolates its stride-4 logits to a size that it is given."""
        return self.description.takes_size

    @property
    def gives_logits(self) -> bool:
        return self.output != "labels"

    @property
    def normalization(self) -> Normalization:
        return self.description.normalization

    def forward(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Returns the logits (B, K, *size*) of images (B, C, H, W).

        For a file that gives probabilities they are the logarithms of these, which have the same
        softmax and the same greatest class.

        Args:
            images: Images, normalised by ``normalization``. For a file that normalises them itself
                the pixels are computed back, exactly; it also takes pixels, uint8.
            size: Height and width of the logits; by default those of the images. A file with a
                second input for it interpolates its stride-4 logits; otherwise the logits are
                interpolated from the images' size.

        Raises:
            ValueError: If the images do not fit the file, or it gives labels only.
        """
        height, width = images.shape[-2:] if size is None else size
        logits = self._logits(images, (int(height), int(width)))
        return logits if logits.shape[-2:] == (height, width) else upsample(logits, (height, width))

    def _logits(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the logits of the images' size, or of *size* if the graph takes one."""
        if not self.gives_logits:
            raise ValueError(
                f"{str(self.path)!r} gives labels, no logits; for windows, several sizes, mirrored "
                "images or probabilities export it with --output logits"
            )
        result = self._run(images, size)
        if self.output == "probabilities":  # finite, as infinities would not interpolate
            return result.clamp_min(torch.finfo(result.dtype).tiny).log()
        return result

    def predict(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Returns the labels (B, *size*) int64 of images (B, C, H, W).

        Args:
            images: As for :meth:`forward`.
            size: Height and width of the labels; by default those of the images. A file with a
                second input for it interpolates its stride-4 logits to this size, as
                :meth:`segformer.SegmentationModel.predict` does. Otherwise logits are interpolated
                from the images' size, and each label is that of the nearest pixel of the image:
                few labels at the borders of objects differ.

        Raises:
            ValueError: If the images do not fit the file.
        """
        height, width = images.shape[-2:] if size is None else size
        size = (int(height), int(width))
        if self.output == "labels":
            labels = self._run(images, size)
            if labels.shape[-2:] != size:
                labels = F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0]
            return labels.long()
        return upsample_argmax(with_background(self._logits(images, size)), size)

    def predict_file(self, path: str | os.PathLike[str]) -> Prediction:
        """Returns the labels of an image file, and its class probabilities if the file gives them.

        As :meth:`segformer.SegmentationModel.predict_file`.
        """
        return predict_file(self, path)

    def predict_with_probabilities(
        self, images: Tensor, size: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns labels (B, *size*) and class probabilities (B, K, *size*) float32.

        The labels are those of :meth:`predict`, as the arguments are.

        Raises:
            ValueError: If the images do not fit the file, or it gives labels only.
        """
        height, width = images.shape[-2:] if size is None else size
        size = (int(height), int(width))
        logits = with_background(self._logits(images, size))
        probabilities = upsample(at_least_float32(logits), size).softmax(1)
        return upsample_argmax(logits, size), probabilities.float()

    def _run(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the output of the graph, at the images' size, or at *size* if it takes one."""
        height, width = size if self.description.takes_size else images.shape[-2:]
        x, *wanted = self.inputs(images, size)
        result = torch.cat(
            [self._run_batch(part, *wanted) for part in x.split(self.description.batch or len(x))]
        )
        return result[..., :height, :width].to(images.device)  # without padding

    def inputs(self, images: Tensor, size: Sequence[int] | None = None) -> list[Tensor]:
        """Returns what the graph takes for images, and for a size of its output.

        Images that are smaller than a fixed size are padded, and the size is that of the padded
        output.

        Raises:
            ValueError: If the images do not fit the file.
        """
        self._check(images)
        d, (height, width) = self.description, images.shape[-2:]
        x = images.detach().cpu()
        if x.dtype == torch.uint8 and d.size is not None:
            x = self.normalization(x)  # so that the padding is the mean colour
        if d.size is not None:
            x = F.pad(x, (0, d.size[1] - width, 0, d.size[0] - height))
        x = self._pixels(x) if d.input == "uint8" else x.float()
        if not d.takes_size:
            return [x]
        rows, columns = (
            round(wanted * padded / length)
            for wanted, padded, length in zip(
                size or (height, width), d.size or (height, width), (height, width), strict=True
            )
        )
        return [x, torch.tensor([rows, columns])]

    def _pixels(self, images: Tensor) -> Tensor:
        """Returns images (B, C, H, W) as pixels, uint8 (B, H, W, C)."""
        if images.dtype != torch.uint8:
            n = self.normalization
            mean, std = (torch.tensor(values)[:, None, None] for values in (n.mean, n.std))
            images = ((images.float() * std + mean) / n.scale).round().clamp(0, 255)
        return images.permute(0, 2, 3, 1).to(torch.uint8)

    def _run_batch(self, images: Tensor, *size: Tensor) -> Tensor:
        count = len(images)
        missing = (self.description.batch or count) - count
        if missing:
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        return self.session(images, *size)[:count]

    def _check(self, images: Tensor) -> None:
        """Raises ValueError if the file does not take these images."""
        d = self.description
        takes = f"{str(self.path)!r}, which takes (B, {d.channels}, H, W)"
        if images.ndim != 4 or images.shape[1] != d.channels or not len(images):
            raise ValueError(f"images of shape {tuple(images.shape)} for {takes}, B at least 1")
        if not images.is_floating_point() and (images.dtype, d.input) != (torch.uint8, "uint8"):
            raise ValueError(
                f"images of {images.dtype} for {takes}, in floating point; normalise them as its "
                "normalization says, with segformer.data.transforms.Normalize(model.normalization)"
            )
        self._check_size(*images.shape[-2:])

    def _check_size(self, height: int, width: int) -> None:
        d = self.description
        if min(height, width) < d.min_size:
            raise ValueError(
                f"images of {height}×{width} are too small; at least {d.min_size}×{d.min_size} "
                "pixels: resize or pad them"
            )
        if d.size is not None and (height > d.size[0] or width > d.size[1]):
            raise ValueError(
                f"images of {height}×{width} are larger than the {d.size[0]}×{d.size[1]} of "
                f"{str(self.path)!r}; "
                + ("label them in windows, " if self.gives_logits else "")
                + "resize them, or export it without --size"
            )
