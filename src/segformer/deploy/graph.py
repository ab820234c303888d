"""What an exported file computes: pixels or normalised images in, labels or logits out."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer.data.normalization import Normalization
from segformer.networks.all_mlp import AllMLPHead
from segformer.ops import upsample, upsample_sum, with_background
from segformer.ops.all_mlp import is_affine_in_evaluation, normalized_blocks
from segformer.ops.conditions import is_plain


class FromPixels(nn.Module):
    """Pixels, uint8 (B, H, W, C), to normalised images (B, C, H, W)."""

    factor: Tensor
    offset: Tensor
    limits: Tensor | None  # (2, C, 1, 1)

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        mean = torch.tensor(normalization.mean)[:, None, None]
        std = torch.tensor(normalization.std)[:, None, None]
        self.register_buffer("factor", normalization.scale / std)
        self.register_buffer("offset", mean / std)
        limits = None
        if normalization.limits:
            limits = torch.tensor(list(zip(*normalization.limits, strict=True)))[..., None, None]
        self.register_buffer("limits", limits)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float()
        if self.limits is not None:
            x = torch.minimum(torch.maximum(x, self.limits[0]), self.limits[1])
        return x * self.factor - self.offset


class Logits(nn.Module):
    """Logits of pixels (B, K, H, W) float32."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


class Probabilities(nn.Module):
    """Class probabilities (B, K, H, W) float32, K = 2 for a model of one logit."""

    def forward(self, logits: Tensor) -> Tensor:
        return with_background(logits).softmax(1)


class Labels(nn.Module):
    """Labels (B, H, W) uint8, uint16 for more than 255 classes."""

    def forward(self, logits: Tensor) -> Tensor:
        dtype = torch.uint8 if logits.shape[1] <= 255 else torch.uint16
        return with_background(logits).argmax(1).to(dtype)


class LabelsOfMaxima(nn.Module):
    """Labels as :class:`Labels` returns them: the first class whose logit is the greatest.

    OpenVINO computes this in half the time of its argmax over many channels. The ranks are exact in
    bfloat16, in which a device may compute.
    """

    MAX_CLASSES = 255

    def forward(self, logits: Tensor) -> Tensor:
        logits = with_background(logits)
        count = logits.shape[1]
        ranks = torch.arange(count, 0, -1, dtype=logits.dtype, device=logits.device)
        is_greatest = logits >= logits.amax(1, keepdim=True)
        # a product, since OpenVINO would transpose the maps for torch.where
        best = (is_greatest * ranks[:, None, None]).amax(1)
        return (count - best).to(torch.uint8)


OUTPUTS: dict[str, type[nn.Module]] = {
    "labels": Labels,
    "logits": Logits,
    "probabilities": Probabilities,
}
INPUTS = ("normalized", "uint8")
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}  # by the name of the precision


class Graph(nn.Module):
    """A model between its exported input and output; the model itself is copied.

    Args:
        model: a :class:`~segformer.SegmentationModel`.
        input: ``"normalized"``: images (B, C, H, W) float32, normalised by
            ``model.normalization``; ``"uint8"``: pixels (B, H, W, C).
        output: ``"labels"``, ``"logits"`` or ``"probabilities"``; see their classes here.
    """

    NORMS: ClassVar[tuple[type[nn.Module], ...]] = (
        nn.LayerNorm,
        nn.GroupNorm,
        nn.modules.batchnorm._BatchNorm,
    )

    def __init__(self, model: Any, input: str = "normalized", output: str = "labels") -> None:
        super().__init__()
        self.takes_pixels = input == "uint8"
        self.normalize = FromPixels(model.normalization) if self.takes_pixels else nn.Identity()
        self.backbone = deepcopy(model.backbone).float()
        self.decode_head = composed(deepcopy(model.decode_head).float())
        self.align_corners = model.align_corners
        self.output = OUTPUTS[output]()
        self.dtype = torch.float32
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, size: Tensor | None = None) -> Tensor:
        """Images to the output, at their own size or at ``size``, int64 (2,): height and width."""
        x = self.normalize(images).to(self.dtype)
        height, width = x.shape[-2:]
        logits = self.decode_head(self.backbone(x)).float()  # (B, K, H/4, W/4)
        if size is not None:
            height, width = (_checked(length) for length in size.tolist())
        logits = upsample(logits, (height, width), self.align_corners)
        result: Tensor = self.output(logits)
        return result

    def to_precision(self, precision: str) -> Graph:
        """Converts the network to ``"fp16"`` or ``"bf16"``, except for its norms and classifier.

        Their sums and logits exceed the precision, or the range, of 16 bits. Any other precision
        leaves the network as it is.
        """
        if precision not in HALVES:
            return self
        self.dtype = dtype = HALVES[precision]
        for part in (self.backbone, self.decode_head):
            part.to(dtype)
            _keep_in_float32(part, self.NORMS)
        if hasattr(self.decode_head, "classifier"):
            classifier: Any = self.decode_head.classifier
            self.decode_head.classifier = ToFloat32(classifier)
        return self


def _checked(length: Any) -> Any:
    torch._check(length >= 1)
    return length


def _keep_in_float32(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    for name, child in module.named_children():
        if isinstance(child, kinds):
            setattr(module, name, InFloat32(child))
        else:
            _keep_in_float32(child, kinds)


class InFloat32(nn.Module):
    """A layer that computes in float32 inside a network of half precision."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.float()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.float())
        return y.to(x.dtype)


class ToFloat32(InFloat32):
    """A last layer that computes in float32, and whose output stays in it."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.float())
        return y


class ComposedHead(nn.Module):
    """The all-MLP head in evaluation, with its linear layers multiplied out.

    ReLU(BN(F · concat(up(W_i x_i + b_i)))) = ReLU(Σ up(A_i x_i) + c); see
    :mod:`segformer.ops.all_mlp`. An engine then holds the A_i as constants, which it can quantise.
    """

    def __init__(self, head: AllMLPHead) -> None:
        super().__init__()
        exact: Any = deepcopy(head).double()
        blocks, bias = normalized_blocks(exact.projections, exact.fuse, exact.norm)
        self.levels = nn.ModuleList()
        for block, project in zip(blocks, exact.projections, strict=True):
            weight = block @ project.weight
            level = nn.Conv2d(weight.shape[1], len(weight), 1, bias=not self.levels)
            level.weight.data = weight[:, :, None, None].float()
            self.levels.append(level)
        self.levels[0].bias.data = bias.float()
        self.classifier = head.classifier

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first, to logits (B, K, H_1, W_1)."""
        levels = [level(x) for x, level in zip(features, self.levels, strict=True)]
        logits: Tensor = self.classifier(F.relu(upsample_sum(levels)))
        return logits


def composed(head: nn.Module) -> nn.Module:
    """Returns a plain all-MLP head as a :class:`ComposedHead`, any other head unchanged."""
    whole: Any = head
    composes = is_plain(head, AllMLPHead) and is_affine_in_evaluation(
        whole.projections, whole.fuse, whole.norm, whole.dropout
    )
    return ComposedHead(whole) if composes else head
