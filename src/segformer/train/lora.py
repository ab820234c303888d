"""Adapters of low rank in place of the backbone's own weights, through peft."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from segformer.models import SegmentationModel


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation of the backbone (arXiv 2106.09685).

    The backbone's weights W stay as they are, and W + α/r · BA is trained, of which only A and B
    change. The decode head is trained whole. A run's final weights are merged.

    Args:
        rank: Number of rows r of A.
        alpha: α, the scale of the adapters.
        modules: Layers that are adapted, by the end of their names, such as ``[q, kv]`` of MiT; or
            ``all-linear``.
        dropout: Share of the adapters' inputs that are dropped in training.
        options: Further arguments of peft's ``LoraConfig``, such as ``use_dora``, or
            ``modules_to_save``, layers that are trained whole.
    """

    rank: int = 8
    alpha: int = 16
    modules: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def adapt(self, network: SegmentationModel) -> None:
        """Adds adapters to a network's backbone, whose own parameters then need no gradient.

        Raises:
            ValueError: If peft is not installed, or the backbone has no layers of one of the names.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ValueError('LoRA needs peft; pip install "segformer[lora]"') from error
        modules = self.modules if isinstance(self.modules, str) else list(self.modules)
        _check_modules(modules, network.backbone)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=modules,
            lora_dropout=self.dropout,
            **self.options,
        )
        inject_adapter_in_model(config, network.backbone)


def without_adapters(network: Any) -> Any:
    """Returns a network whose adapters are merged into plain layers; itself if it has none."""
    adapted = [
        name
        for name, module in network.named_modules()
        if hasattr(module, "lora_A") or hasattr(module, "modules_to_save")
    ]
    if not adapted:
        return network
    network = copy.deepcopy(network)
    for name in adapted:
        network.set_submodule(name, _plain(network.get_submodule(name)))
    return network


def _plain(layer: Any) -> nn.Module:
    """Returns the layer that one of peft's stands for."""
    if hasattr(layer, "modules_to_save"):  # peft trains a copy beside the original
        trained: nn.Module = layer.modules_to_save[layer.active_adapters[0]]
        return trained
    layer.merge()
    base: nn.Module = layer.get_base_layer()
    return base.requires_grad_()


def _check_modules(modules: str | list[str], backbone: nn.Module) -> None:
    """Raises ValueError if one of the modules is not in the backbone."""
    layers = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    if modules == "all-linear" and not any(isinstance(m, nn.Linear) for m in layers.values()):
        raise ValueError(
            f"lora.modules is all-linear, and the backbone {type(backbone).__name__} has no linear "
            f"layer; name its convolutions, such as {', '.join(ends[:3])}"
        )
    for end in modules if isinstance(modules, list) else ():
        if not any(f".{name}".endswith(f".{end}") for name, _ in backbone.named_modules()):
            near = difflib.get_close_matches(end, ends, 3) or ends[:8]
            raise ValueError(
                f"lora.modules: no module of the backbone has a name that ends in {end!r}; did you "
                f"mean {', '.join(near)}?"
            )
