"""How sure a model is of an image, and which images of many to label next.

While few images are labelled, typical ones of each kind teach more than the least sure or the most
unlike ones, which are often odd (Hacohen, Dekel and Weinshall, "Active Learning on a Budget:
Opposite Strategies Suit High and Low Budgets", ICML 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segformer.evaluation.batches import as_batch, device_of, in_evaluation, inner_model
from segformer.evaluation.protocols import own_size_logits
from segformer.models import SegmentationModel
from segformer.ops import at_least_float32, upsample, with_background
from segformer.ops.conditions import calls_forward_of


@dataclass(frozen=True)
class Uncertainty:
    """How sure a model is of an image.

    Args:
        entropy: Mean over the pixels of the entropy of the class probabilities, as a share of its
            greatest value, that of equal probabilities.
        disagreement: Share of the pixels whose label is another one in the mirrored image.
        features: Mean of the backbone's coarsest map (C,); None for a model without a backbone,
            such as an exported file.
    """

    entropy: float
    disagreement: float
    features: Tensor | None


@torch.inference_mode()
def uncertainty(model: Any, image: Tensor, valid: Tensor | None = None) -> Uncertainty:
    """Returns how sure a model is of an image.

    Args:
        model: Model that gives logits.
        image: The image (C, H, W), with the bands that the model takes.
        valid: Pixels (H, W) that have data, of which at least one does; by default all.
    """
    model = inner_model(model)
    batch = as_batch(model, image, device_of(model))
    height, width = image.shape[-2:]
    with in_evaluation(model):
        (upright, features), (mirrored, _) = (
            _logits_and_features(model, images) for images in (batch, _mirrored(batch, width))
        )
    upright, mirrored = (
        with_background(logits)[..., :height, :width].float() for logits in (upright, mirrored)
    )
    differs = mirrored.flip(-1).argmax(1)[0] != upright.argmax(1)[0]
    counted = torch.ones_like(differs) if valid is None else valid.to(differs.device)
    share = differs[counted].float().mean()
    return Uncertainty(float(_entropy(upright)[counted].mean()), float(share), features)


def _mirrored(batch: Tensor, width: int) -> Tensor:
    """Returns images whose first columns are mirrored; padding at the right stays there."""
    return torch.cat([batch[..., :width].flip(-1), batch[..., width:]], -1)


def _entropy(logits: Tensor) -> Tensor:
    """Returns the entropy (H, W) of the probabilities of an image, at most 1."""
    log = logits[0].log_softmax(0)
    return -(log.exp() * log).sum(0) / math.log(len(log))


def _logits_and_features(model: Any, batch: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the logits (1, K, H, W) of an image and its features, in one pass."""
    if not (isinstance(model, SegmentationModel) and calls_forward_of(model, SegmentationModel)):
        return own_size_logits(model, batch), None
    maps = model.backbone(batch)
    logits = at_least_float32(model.decode_head(maps))
    logits = upsample(logits, batch.shape[-2:], model.align_corners)
    return logits, maps[-1].mean((2, 3))[0].float().cpu()


def ranks(values: Sequence[float]) -> Tensor:
    """Returns the place of each value among all, from 0 for the smallest to 1 for the greatest.

    Equal values have the mean of their places.
    """
    _, kinds, counts = torch.tensor(values, dtype=torch.float64).unique(
        return_inverse=True, return_counts=True
    )
    places = counts.cumsum(0) - (counts + 1) / 2
    return places.double()[kinds] / max(1, len(values) - 1)


def choose(found: Sequence[Uncertainty], count: int, known: Sequence[Tensor] = ()) -> list[int]:
    """Returns the indices of the images to label next, the most useful first.

    The images, and those that have labels, are divided into as many kinds as will have labels, by
    k-means of their features. Of each kind without a label the most typical image is chosen, the
    one nearest to the mean; first from the kinds with the greatest sum of uncertainties, which are
    the mean ranks of entropy and disagreement. Without features the least sure are chosen.

    Args:
        found: What is known of each image.
        count: Number of images to choose.
        known: Features of images that have labels.
    """
    entropy, disagreement = (
        ranks([getattr(image, name) for image in found]) for name in ("entropy", "disagreement")
    )
    uncertain = (entropy + disagreement) / 2
    if any(image.features is None for image in found):
        return uncertain.argsort(descending=True, stable=True)[:count].tolist()
    images, count = len(found), min(count, len(found))
    of_found = [image.features for image in found if image.features is not None]
    features = _standardized(torch.stack([*of_found, *known]).double())
    kinds, distances = _kinds(features, count + len(known))
    own, kinds_known = kinds[:images], kinds[images:].unique()
    sums = torch.zeros(count + len(known)).double().index_add_(0, own, uncertain)
    sums[kinds_known] -= images  # the last, if there are not enough others
    typical = distances[:images].argsort(stable=True)
    chosen: list[int] = []
    while len(chosen) < count:  # a second round if kinds have no image, or a label
        left = typical[~torch.isin(typical, torch.tensor(chosen, dtype=torch.int64))]
        first_of = {int(own[index]): int(index) for index in left.flip(0)}
        order = sorted(first_of, key=lambda kind: -float(sums[kind]))
        chosen += [first_of[kind] for kind in order][: count - len(chosen)]
    return chosen


def _kinds(features: Tensor, count: int, rounds: int = 30) -> tuple[Tensor, Tensor]:
    """Returns the cluster of each row of features (N, C), by k-means, and its distance to the mean.

    The first means are rows, each drawn by its squared distance to the nearest one before
    (k-means++), always the same ones.
    """
    generator = torch.Generator().manual_seed(0)
    means = features.mean(0, keepdim=True)  # the first is the row nearest to the mean of all
    means = features[torch.cdist(features, means).argmin(0)]
    nearest = torch.cdist(features, means)[:, 0]
    while len(means) < count:
        drawn = (nearest.square() + 1e-12).multinomial(1, generator=generator)
        means = torch.cat([means, features[drawn]])
        nearest = torch.minimum(nearest, torch.cdist(features, means[-1:])[:, 0])
    for _ in range(rounds):
        kinds = torch.cdist(features, means).argmin(1)
        sums = torch.zeros_like(means).index_add_(0, kinds, features)
        sizes = kinds.bincount(minlength=count)[:, None]
        means = torch.where(sizes > 0, sums / sizes.clamp(min=1), means)
    distances, kinds = torch.cdist(features, means).min(1)
    return kinds, distances


def _standardized(features: Tensor) -> Tensor:
    """Returns features (N, C) with a mean of 0 and a standard deviation of 1 in each channel."""
    return (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-12)
