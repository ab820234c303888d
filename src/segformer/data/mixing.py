"""Augmentation that covers a part of a training sample with the same part of another one."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from segformer.data.classes import Classes
from segformer.data.components import components

Sample = tuple[Tensor, Tensor]


class Mixing(ABC):
    """Covers a part of a sample with the same pixels of another sample, image and label map.

    Both samples are augmented before, so that the part comes at a random scale, too. Random numbers
    come from PyTorch's global generator. Attributes are settings: a run is resumed only with
    the same ones.

    Args:
        p: Share of the samples that are mixed.

    Raises:
        ValueError: If ``p`` is no probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p={p} is no probability; give a number from 0 to 1")
        self.p = p

    @abstractmethod
    def mask(self, target: Tensor, classes: Classes) -> Tensor:
        """Returns which pixels (H, W) of a sample are put on another one.

        Args:
            target: Label map (H, W) of the sample that they are taken from.
            classes: The classes of both samples.
        """

    def check(self, classes: Classes) -> None:  # noqa: B027
        """Raises ValueError if the classes are not those that this part is made for."""

    def __call__(self, sample: Sample, other: Sample, classes: Classes) -> Sample:
        """Returns a sample that is covered with a part of another one.

        Args:
            sample: Image (C, H, W) and label map (H, W).
            other: Image and label map of the same sizes.
            classes: The classes of both samples.

        Raises:
            ValueError: If the sizes differ.
        """
        (image, target), (other_image, other_target) = sample, other
        if image.shape != other_image.shape:
            raise ValueError(
                f"samples of {tuple(image.shape)} and {tuple(other_image.shape)} cannot be mixed; "
                "let train_transform end in a crop of one size, such as "
                "segformer.data.transforms.TrainTransform"
            )
        mask = self.mask(other_target, classes)
        return other_image.where(mask, image), other_target.where(mask, target)


class CutMix(Mixing):
    """A box of another sample (arXiv 1905.04899, section 3.1).

    The box is drawn as torchvision's ``v2.CutMix`` draws it. Its share of the image is 1 - λ, where
    λ comes from the distribution Beta(α, α), before it is clipped at the image's sides.

    Args:
        p: Share of the samples that are mixed.
        alpha: Parameter α; 1 makes each share as likely as any other.

    Raises:
        ValueError: If ``p`` is no probability.
    """

    def __init__(self, p: float = 0.5, alpha: float = 1.0) -> None:
        super().__init__(p)
        self.alpha = alpha

    def mask(self, target: Tensor, classes: Classes) -> Tensor:
        drawing = v2.CutMix(alpha=self.alpha, num_classes=len(classes))
        left, top, right, bottom = drawing.make_params([target[None]])["box"]
        mask = torch.zeros_like(target, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return mask


class ClassMix(Mixing):
    """All pixels of half of the classes of another sample (arXiv 2007.07936, section 3.1).

    The classes are drawn at random; of an odd number, one more than half are taken. Ignored pixels
    are no class. The paper mixes images without labels, by the masks that a network predicts; here
    labelled samples are mixed by their labels.
    """

    def mask(self, target: Tensor, classes: Classes) -> Tensor:
        found = target.unique()
        found = found[found != classes.ignore_index]
        chosen = found[torch.randperm(len(found))[: (len(found) + 1) // 2]]
        return torch.isin(target, chosen)


class CopyPaste(Mixing):
    """Some connected regions of another sample (arXiv 2012.07177, section 3).

    The paper pastes a random subset of an image's objects. Here each region of one class whose
    pixels touch side by side is an object.

    Args:
        p: Share of the samples that are mixed.
        names: Names of the classes whose regions are pasted; by default all. Those of things, such
            as cars, rather than of surroundings.
        share: Probability that a region is pasted.

    Raises:
        ValueError: If ``p`` or ``share`` is no probability.
    """

    def __init__(
        self, p: float = 0.5, names: Sequence[str] | None = None, share: float = 0.5
    ) -> None:
        super().__init__(p)
        if not 0 <= share <= 1:
            raise ValueError(f"share={share} is no probability; give a number from 0 to 1")
        self.names, self.share = names, share

    def check(self, classes: Classes) -> None:
        for name in self.names or ():
            if name not in classes.names:
                near = difflib.get_close_matches(name, classes.names, 3) or classes.names
                raise ValueError(
                    f"there is no class {name!r} to copy and paste; choose from {', '.join(near)}"
                )

    def mask(self, target: Tensor, classes: Classes) -> Tensor:
        names = classes.names if self.names is None else self.names
        chosen = torch.tensor([classes.names.index(name) for name in names])
        region = components(target.long().where(torch.isin(target, chosen), -1))
        is_pasted = torch.rand(int(region.max()) + 1) < self.share
        return torch.cat([is_pasted, torch.tensor([False])])[region]  # -1 is the last entry
