"""Optimizers, parameter groups and learning-rate schedules (arXiv 2105.15203, section 4.1)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter
from typing import Any, Literal

import torch
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from segformer.models import SegmentationModel


def param_groups(
    network: SegmentationModel,
    head_lr_mult: float = 10.0,
    auxiliary: nn.Module | None = None,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Returns the published parameter groups, without parameters that need no gradient.

    The backbone's norms have no weight decay. All other parameters have, biases included, as in
    the published runs. Its tables of relative positions are marked ``is_matrix=False`` for
    :class:`Muon`.

    Args:
        network: The network that is trained.
        head_lr_mult: Learning rate of the heads over that of the optimizer, for
            :func:`apply_lr_mult`.
        auxiliary: Further heads of the training task.
        layer_decay: See :func:`layer_factors`, whose factors are over the optimizer's rate, too:
            that of the head is ``head_lr_mult / layer_decay`` times that of the last layer.
    """
    backbone = network.backbone
    norms = {
        id(parameter)
        for module in backbone.modules()
        if "norm" in type(module).__name__.lower()  # of PyTorch, timm and this package
        for parameter in module.parameters(recurse=False)
    }
    factors = layer_factors(backbone, layer_decay)
    groups: dict[tuple[float, bool, bool], list[Tensor]] = defaultdict(list)
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            is_table = _is_matrix(parameter) and not name.endswith("weight")
            groups[factors[name], id(parameter) in norms, is_table].append(parameter)
    heads = [*network.decode_head.parameters(), *(auxiliary.parameters() if auxiliary else ())]
    heads = [parameter for parameter in heads if parameter.requires_grad]
    return [
        {
            "params": parameters,
            "lr_mult": factor,
            **({"weight_decay": 0.0} if is_norm else {}),
            **({"is_matrix": False} if is_table else {}),
        }
        for (factor, is_norm, is_table), parameters in sorted(groups.items(), key=itemgetter(0))
    ] + ([{"params": heads, "lr_mult": head_lr_mult}] if heads else [])


def _is_matrix(parameter: Tensor) -> bool:
    """Returns whether a parameter has more than one row and column."""
    return parameter.ndim > 1 and min(parameter.shape[:2]) > 1


def layer_factors(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Returns the factor of the learning rate of each parameter of a backbone, by name.

    Layer-wise learning-rate decay, as in BEiT (arXiv 2106.08254, section 3.2): the factor of a
    layer is ``decay`` to the power of the number of layers from it to the head. The last layer's
    factor is ``decay``.

    Args:
        backbone: A module with timm's method ``group_matcher``, which says what its layers are.
        decay: From 0 to 1; 1 is the same rate for all layers.

    Raises:
        ValueError: If ``decay`` is out of this range, or the backbone has no such method.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if decay == 1:
        return dict.fromkeys(names, 1.0)
    if not 0 < decay < 1:
        raise ValueError(f"layer_decay={decay}; give a factor above 0, up to 1, such as 0.9")
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is None:
        raise ValueError(
            f"layer_decay={decay}, but the backbone {type(backbone).__name__} has no method "
            "group_matcher, which says what its layers are (timm's models have it); add it, or "
            "leave layer_decay out"
        )
    head = ""  # the name of no parameter: timm puts it into the layer after all others
    named = ((name, None) for name in [*names, head])
    layers = group_with_matcher(named, matcher(), reverse=True)
    return {name: decay ** (layers[head] - layers[name]) for name in names}


def apply_lr_mult(optimizer: Optimizer) -> Optimizer:
    """Multiplies each group's learning rate by its ``lr_mult``, before a scheduler is made."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_mult", 1.0)
    return optimizer


class OfficialAdamW(torch.optim.AdamW):
    """PyTorch's AdamW with the published learning rate and weight decay (section 4.1)."""

    def __init__(self, params: Iterable[Any], lr: float = 6e-5, weight_decay: float = 0.01) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)


class Poly(LambdaLR):
    """Linear warm-up, then decay of the learning rate as (1 - step / total_steps)^power.

    Args:
        optimizer: Optimizer with the base learning rates, which the schedule multiplies.
        total_steps: Number of optimizer steps of the whole run.
        warmup_steps: Number of steps of the warm-up, at most a tenth of the run.
        warmup_ratio: Factor of the learning rate at the first step.
        power: Exponent of the decay; 1.0 is linear.
        min_lr: Learning rate of each group at the end of the run, at most its highest.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 1500,
        warmup_ratio: float = 1e-6,
        power: float = 1.0,
        min_lr: float = 0.0,
    ) -> None:
        warmup_steps = min(warmup_steps, total_steps // 10)

        def factor(step: int, floor: float) -> float:
            poly = floor + (1 - floor) * max(0.0, 1 - step / total_steps) ** power
            if step >= warmup_steps:
                return poly
            return poly * (1 - (1 - step / warmup_steps) * (1 - warmup_ratio))

        rates = [group["lr"] for group in optimizer.param_groups]
        floors = [min(1.0, min_lr / rate) if min_lr else 0.0 for rate in rates]
        super().__init__(optimizer, [partial(factor, floor=floor) for floor in floors])


class OneCycle(LambdaLR):
    """Cosine warm-up, then cosine decay of the learning rate.

    Args:
        optimizer: Optimizer with the highest learning rates, those at the end of the warm-up.
        total_steps: Number of optimizer steps of the whole run.
        warmup: Share of the run that is warm-up.
        start: Factor of the learning rate at the first step.
        end: Factor of the learning rate at the last step.

    Raises:
        ValueError: If ``warmup`` is below 0, or the whole run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup: float = 0.1,
        start: float = 0.04,
        end: float = 1e-3,
    ) -> None:
        _check_warmup(warmup)

        def factor(step: int) -> float:
            done = min(1.0, step / total_steps)
            if done < warmup:
                return _cosine(start, 1.0, done / warmup)
            return _cosine(1.0, end, (done - warmup) / (1 - warmup))

        super().__init__(optimizer, factor)


class WarmupCosine(LambdaLR):
    """Linear warm-up, then cosine decay of the learning rate, step by step.

    At the start of each epoch the rate is that of timm's ``CosineLRScheduler`` with the settings of
    DeiT (arXiv 2012.12877) and PVT v2 (arXiv 2106.13797).

    Args:
        optimizer: Optimizer with the highest learning rates.
        total_steps: Number of optimizer steps of the whole run.
        warmup: Share of the run that is warm-up: by default 5 of 300 epochs.
        warmup_lr: Learning rate of each group at the first step, at most its highest.
        min_lr: Learning rate of each group at the end of the run, at most its highest.

    Raises:
        ValueError: If ``warmup`` is below 0, or the whole run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup: float = 5 / 300,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
    ) -> None:
        _check_warmup(warmup)
        warmup_steps = round(warmup * total_steps)

        def factor(step: int, lr: float) -> float:
            if step < warmup_steps:
                first = min(1.0, warmup_lr / lr)
                return first + (1 - first) * step / warmup_steps
            return _cosine(1.0, min(1.0, min_lr / lr), min(1.0, step / total_steps))

        groups = optimizer.param_groups
        super().__init__(optimizer, [partial(factor, lr=group["lr"]) for group in groups])


def _check_warmup(warmup: float) -> None:
    if not 0 <= warmup < 1:
        raise ValueError(
            f"warmup={warmup} is a share of the run; give a number from 0 to below 1, such as 0.1"
        )


def _cosine(first: float, last: float, done: float) -> float:
    """Returns a value on half a cosine wave from ``first`` to ``last``; ``done`` is in [0, 1]."""
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


class Muon(Optimizer):
    """Muon: updates of weight matrices are orthogonalized momentum, all others are AdamW's.

    From random weights, it needs far fewer steps than AdamW. PyTorch's and timm's Muon
    orthogonalize in bfloat16, which a CPU without bfloat16 arithmetic emulates eighty times slower;
    this one asks. Source: Jordan et al. 2024; Liu et al., arXiv 2502.16982.

    Args:
        params: Parameters or groups of them. Convolutions are matrices (out, in · kernel). Vectors,
            depthwise convolutions and all others whose first or second side is 1, such as position
            embeddings (1, N, C), get AdamW's update, and so do groups with ``is_matrix=False``.
        lr: Learning rate of both; an orthogonal update is scaled to the size of AdamW's.
        momentum: Nesterov momentum of the matrices' gradients.
        betas: AdamW's coefficients.
        weight_decay: Decoupled weight decay, as in AdamW.
        eps: AdamW's epsilon.
        dtype: Type in which matrices are orthogonalized, by default that of the parameters.
    """

    # This polynomial moves each singular value towards 1, the smallest ones fastest.
    QUINTIC = (3.4445, -4.7750, 2.0315)
    STEPS = 5
    ADAMW_RMS = 0.2  # root mean square of a typical AdamW update

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        eps: float = 1e-8,
        dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> None:
        self.dtype = getattr(torch, dtype) if dtype else None
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "betas": betas,
                "weight_decay": weight_decay,
                "eps": eps,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates each parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                if group.get("is_matrix", True) and _is_matrix(p):
                    matrices[p.shape].append(p)
                else:
                    self._adam(p, group)
            for same_shape in matrices.values():
                self._orthogonal(same_shape, group)
        return loss

    def _adam(self, p: Any, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] += 1
        mean = state["mean"].lerp_(p.grad, 1 - group["betas"][0]) / (
            1 - group["betas"][0] ** state["step"]
        )
        square = state["square"].lerp_(p.grad.square(), 1 - group["betas"][1]) / (
            1 - group["betas"][1] ** state["step"]
        )
        p.addcdiv_(mean, square.sqrt_().add_(group["eps"]), value=-group["lr"])

    def _orthogonal(self, same_shape: list[Any], group: dict[str, Any]) -> None:
        """Updates matrices of one shape, as one batch."""
        updates = []
        for p in same_shape:
            state = self.state[p]
            if not state:
                state.update(momentum=torch.zeros_like(p))
            momentum = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            updates.append(p.grad.lerp(momentum, group["momentum"]).flatten(1))
        update = orthogonalize(torch.stack(updates).to(self.dtype), self.QUINTIC, self.STEPS)
        scale = self.ADAMW_RMS * max(update.shape[-2:]) ** 0.5
        for p, u in zip(same_shape, update, strict=True):
            p.add_(u.view_as(p), alpha=-group["lr"] * scale)


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Returns approximately U Vᵀ of each matrix U S Vᵀ (N, m, n), by Newton-Schulz iteration.

    A step is X ← P X, where P = a + b X Xᵀ + c (X Xᵀ)².

    Args:
        matrices: Matrices (N, m, n).
        coefficients: a, b and c.
        steps: Number of steps.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    is_long = x.shape[-1] > 1.5 * x.shape[-2]
    # Products of 16-bit gram matrices would lose the small singular values.
    iterate = _iterate_gram if is_long and x.dtype.itemsize > 2 else _iterate
    x = iterate(x, coefficients, steps)
    return x.mT if tall else x


def _iterate(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterate_gram(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """As :func:`_iterate`, faster for matrices that are much wider than high.

    All of the P commute, so that X Xᵀ becomes P X Xᵀ P. Only the first and the last product have
    the long side of X.
    """
    a, b, c = coefficients

    def polynomial(gram: Tensor) -> Tensor:
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        return p

    gram = x @ x.mT
    product = p = polynomial(gram)
    for _ in range(steps - 1):
        gram = p @ gram @ p
        p = polynomial(gram)
        product = p @ product
    return product @ x
