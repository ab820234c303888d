"""Distillation: a network is trained with the predictions of another one, its teacher."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer.data.classes import Classes, ignore_index
from segformer.data.normalization import Normalization
from segformer.deploy import load_model
from segformer.deploy.exported import Exported
from segformer.models import SegmentationModel
from segformer.ops import at_least_float32, upsample, with_background
from segformer.train.teacher import WithTeacher, maps_and_logits
from segformer.train.weights import check_classes


class _AtTemperature(nn.Module):
    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be greater than 0, such as 4")
        self.temperature = temperature


class KL(_AtTemperature):
    """KL divergence of the student's class probabilities from the teacher's, at each pixel.

    Both logits are divided by the temperature T, and the divergence is multiplied by T², so that
    its gradients have the same size for all temperatures (Hinton et al., arXiv 1503.02531). The
    result is the mean over the valid pixels.

    Args:
        temperature: T; a higher one gives the less probable classes more influence.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        """Returns a scalar of two logits (B, K, h, w), over the pixels ``valid`` (B, 1, h, w)."""
        divergences = _kl_div(student / self.temperature, teacher / self.temperature, 1)
        return self.temperature**2 * _mean(divergences, valid)


class ChannelWise(_AtTemperature):
    """KL divergence of where each class is, after Shu et al. (CWD, arXiv 2011.13256, equation 4).

    Each class's logits become a distribution over the valid pixels of an image, by a softmax at the
    temperature T. The result is T² times the divergence, as a mean over classes and images. Of two
    classes the difference of the logits is one map, as a network of one logit has it.

    Args:
        temperature: T, 4 in the paper.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        """Returns a scalar of two logits (B, K, h, w), over the pixels ``valid`` (B, 1, h, w)."""
        if student.shape[1] == 2:
            student, teacher = (x[:, 1:] - x[:, :1] for x in (student, teacher))
        nowhere = torch.finfo(student.dtype).min  # not -inf: an image may have no valid pixel
        student, teacher = (
            (logits / self.temperature).masked_fill(~valid, nowhere).flatten(2)
            for logits in (student, teacher)
        )
        return self.temperature**2 * _kl_div(student, teacher, 2).mean()


class FeatureMaps(nn.Module):
    """Half the mean squared difference of normalised feature maps (PKD, arXiv 2207.02039).

    1×1 convolutions, which are trained, project the student's maps to the teacher's channels, as in
    FitNets (arXiv 1412.6550). Each channel of an image is normalised to a mean of 0 and a variance
    of 1 over the valid pixels; PKD normalises over the batch. A channel's loss is then 1 minus
    Pearson's correlation of student and teacher. The result is the sum over the levels.

    Args:
        student: Channels of each of the student's maps.
        teacher: Channels of each of the teacher's maps.

    Raises:
        ValueError: If the numbers of maps differ.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        if len(student) != len(teacher):
            raise ValueError(
                f"the student has {len(student)} feature maps and the teacher {len(teacher)}; "
                "distil logits only, or choose a teacher with as many"
            )
        self.projections = nn.ModuleList(
            nn.Conv2d(own, others, 1) for own, others in zip(student, teacher, strict=True)
        )

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], valid: Tensor
    ) -> Tensor:
        """Returns a scalar of maps (B, C_i, h_i, w_i), over the pixels ``valid`` (B, 1, H, W)."""
        losses = []
        for project, own, others in zip(self.projections, student, teacher, strict=True):
            size = own.shape[-2:]
            inside = _resized(valid, size)
            mine, theirs = (
                _normalized(at_least_float32(maps), inside)
                for maps in (project(own), upsample(others, size))
            )
            losses.append(_mean((mine - theirs).square().mean(1), inside) / 2)
        return torch.stack(losses).sum()


class Distillation(WithTeacher):
    """Losses between a network, the student, and a teacher that has the same classes.

    It is part of the training task. The teacher is frozen, in evaluation mode, and in no checkpoint
    of the run. It gets the student's augmented images, normalised as its own weights need it.
    Pixels whose target is the ignored value are left out, so that padding is too.

    Args:
        network: The network that is trained.
        teacher: Weights in any layout or an exported file that gives logits, as ``--weights`` of
            ``segformer validate`` takes them; or a model. An exported file runs on the CPU.
        logits: Computes a scalar from the student's logits, the teacher's, both (B, K, h, w), and
            the valid pixels (B, 1, h, w); by default :class:`KL`. The teacher's logits are
            interpolated to the size of the student's if they have another.
        weight: Weight of that scalar beside the loss of the labels.
        features: Makes, from the channels of the student's and of the teacher's feature maps, a
            module that compares the maps, such as :class:`FeatureMaps`; by default these are not
            compared.
        features_weight: Weight of its result.

    Raises:
        ValueError: If the teacher cannot be read, has another number of classes, gives no logits,
            or has no feature maps to compare.
    """

    def __init__(
        self,
        network: SegmentationModel,
        teacher: str | os.PathLike[str] | nn.Module,
        logits: nn.Module | None = None,
        weight: float = 1.0,
        features: Callable[[Sequence[int], Sequence[int]], nn.Module] | None = None,
        features_weight: float = 1.0,
    ) -> None:
        model: Any = teacher if isinstance(teacher, nn.Module) else load_model(teacher, "cpu")
        if isinstance(model, nn.Module):
            model.float()  # as the student's weights are
        super().__init__(model)
        check_classes(Classes.of_logits(network.num_classes), model.classes, "the teacher")
        _check_output(model, features is not None)
        self.logits = logits or KL()
        self.features = features and features(network.backbone.channels, model.backbone.channels)
        self.weight, self.features_weight = weight, features_weight
        self.factor: Tensor
        self.offset: Tensor
        shape = (len(model.normalization.mean), 1, 1)
        self.register_buffer("factor", torch.ones(shape), persistent=False)
        self.register_buffer("offset", torch.zeros(shape), persistent=False)

    def adapt_to(self, network: SegmentationModel) -> None:
        """Takes the names of the student's classes and its normalization, once these are set.

        Raises:
            ValueError: If the teacher has the classes in another order, or the images of student
                and teacher differ in more than mean and deviation.
        """
        check_classes(network.classes, self.teacher.classes, "the teacher")
        self._renormalize(network.normalization)

    def _renormalize(self, student: Normalization) -> None:
        """Sets factor and offset of the student's images, which make them the teacher's."""
        teacher: Normalization = self.teacher.normalization
        if replace(student, mean=teacher.mean, std=teacher.std, scale=teacher.scale) != teacher:
            raise ValueError(
                f"the student takes images normalised by {student} and the teacher by {teacher}; "
                "choose a teacher for the same bands, type and limits of the pixels"
            )
        dtype, to = torch.double, teacher.scale / student.scale
        s_mean, s_std = (torch.tensor(v, dtype=dtype) for v in (student.mean, student.std))
        t_mean, t_std = (torch.tensor(v, dtype=dtype) for v in (teacher.mean, teacher.std))
        self.factor.copy_((s_std * to / t_std)[:, None, None])
        self.offset.copy_(((s_mean * to - t_mean) / t_std)[:, None, None])

    def forward(
        self, images: Tensor, features: Sequence[Tensor], logits: Tensor, target: Tensor
    ) -> Tensor:
        """Returns the weighted sum of the losses, a scalar.

        Args:
            images: What the student got, (B, C, H, W).
            features: The student's feature maps, (B, C_i, h_i, w_i).
            logits: The student's logits (B, K, h, w).
            target: Class indices (B, H, W), of which only the ignored ones matter.
        """
        logits = at_least_float32(with_background(logits))
        size = logits.shape[-2:]
        valid = (target != ignore_index(logits.shape[1]))[:, None]
        maps, taught = self._predict(images, size)
        loss: Tensor = self.weight * self.logits(logits, taught, _resized(valid, size))
        if self.features is not None:
            loss = loss + self.features_weight * self.features(features, maps, valid)
        return loss

    @torch.no_grad()
    def _predict(self, images: Tensor, size: torch.Size) -> tuple[Sequence[Tensor], Tensor]:
        """Returns the teacher's feature maps, if it has any, and its logits (B, K, *size*)."""
        images = torch.addcmul(self.offset, images, self.factor)
        if isinstance(self.teacher, Exported):
            return [], with_background(self.teacher(images, size).to(self.factor))
        maps, logits = maps_and_logits(self.teacher, images)
        return maps, upsample(logits, size, self.teacher.align_corners)


def _kl_div(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Returns KL(teacher ‖ student) of the softmax over a dimension, without this dimension."""
    log_q, log_p = student.log_softmax(dim), teacher.log_softmax(dim)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim)


def _resized(valid: Tensor, size: Sequence[int]) -> Tensor:
    """Returns a mask (B, 1, H, W) at another size: each pixel is the one at its centre."""
    return F.interpolate(valid.float(), tuple(size), mode="nearest-exact") > 0


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Returns the mean of values (B, h, w) over the pixels ``valid`` (B, 1, h, w); 0 of none."""
    return (values * valid[:, 0]).sum() / valid.sum().clamp_min(1)


def _normalized(maps: Tensor, valid: Tensor) -> Tensor:
    """Returns maps (B, C, h, w) with mean 0 and variance 1 of each channel's valid pixels."""
    count = valid.sum((2, 3), keepdim=True).clamp_min(1)
    centred = maps - (maps * valid).sum((2, 3), keepdim=True) / count
    variance = (centred.square() * valid).sum((2, 3), keepdim=True) / count
    return centred * (variance + 1e-5).rsqrt()


def _check_output(teacher: Any, with_features: bool) -> None:
    if not isinstance(teacher, Exported):
        return
    if teacher.output != "logits":
        raise ValueError(
            f"the teacher {str(teacher.path)!r} gives {teacher.output}; export it with "
            "--output logits"
        )
    if with_features:
        raise ValueError(
            f"the teacher {str(teacher.path)!r} is an exported file, which gives no feature maps; "
            "give its weights, or leave features out"
        )
