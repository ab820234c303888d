"""Which images an encoder takes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def smallest_side(sr_ratios: Sequence[int]) -> int:
    """Height and width in pixels of the smallest image, at least 32.

    In a smaller one, the map of some stage would be smaller than one cell of its sequence
    reduction.
    """
    strides = (4 << stage for stage in range(len(sr_ratios)))  # 4, 8, 16, 32
    return max(32, *(stride * ratio for stride, ratio in zip(strides, sr_ratios, strict=True)))


def check_images(images: Tensor, in_channels: int, min_size: int) -> None:
    """Check that images are float (B, ``in_channels``, H, W), with H and W ≥ ``min_size``.

    Raises:
        ValueError: if they are not.
    """
    if images.ndim != 4:
        raise ValueError(
            f"images must be (B, {in_channels}, H, W), got shape {tuple(images.shape)}; add the "
            "batch dimension with images[None]"
        )
    channels, height, width = images.shape[1:]
    if channels != in_channels:
        raise ValueError(
            f"images have {channels} channels (shape {tuple(images.shape)}), the model takes "
            f"{in_channels}; build it with in_channels={channels}, or permute the images "
            "to (B, C, H, W)"
        )
    if height < min_size or width < min_size:
        raise ValueError(
            f"images of {height}×{width} are too small; at least {min_size}×{min_size} "
            "pixels: resize or pad them"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}, not floating point; normalise them as the model's "
            "normalization says, with segformer.data.transforms.Normalize(model.normalization)"
        )


def refuse_scripting(self: nn.Module) -> None:
    """Called by torch.jit.script before it compiles a module (``__prepare_scriptable__``).

    Raises:
        NotImplementedError: always, since TorchScript cannot compile these networks.
    """
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(self).__name__}; PyTorch has deprecated it: use "
        "torch.export.export, or torch.jit.trace"
    )
