"""Adapters of low rank in place of the backbone's own weights, through peft."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
        options: Further arguments of peft's ``LoraConfig``, such as ``use_dora``.
    """

    rank: int = 8
    alpha: int = 16
    modules: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def adapt(self, network: SegmentationModel) -> None:
        """Adds adapters to a network's backbone, whose own parameters then need no gradient.

        Raises:
            ValueError: If peft is not installed, or the backbone has no such layers.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ValueError('LoRA needs peft; pip install "segformer[lora]"') from error
        modules = self.modules if isinstance(self.modules, str) else list(self.modules)
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
    adapted = [name for name, module in network.named_modules() if hasattr(module, "lora_A")]
    if not adapted:
        return network
    network = copy.deepcopy(network)
    for name in adapted:
        layer = network.get_submodule(name)
        layer.merge()
        network.set_submodule(name, layer.get_base_layer().requires_grad_())
    return network
