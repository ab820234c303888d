"""The layout of the convolutional model's weights: Phil Wang's segformer-pytorch.

In a table, ``{s}`` is the stage and ``{j}`` the block.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from segformer.checkpoint.formats import State, WeightFile
from segformer.checkpoint.layout import Layout
from segformer.checkpoint.report import Report
from segformer.data.classes import Classes

HEADS = (1, 2, 5, 8)


@dataclass(frozen=True)
class LucidrainsLayout(Layout):
    """A layout whose shapes show everything except the number of attention heads."""

    def infer(
        self, state: State, file: WeightFile, num_classes: int | None, report: Report
    ) -> dict[str, Any]:
        def shape(key: str) -> tuple[int, ...]:
            return self.shape(key, 4, state, file)

        stages = [f"backbone.stages.{s}." for s in range(4)]
        dims = [shape(stage + "embed.proj.weight")[0] for stage in stages]
        _assume_heads(dims, file, report)
        known_classes, channels = shape("decode_head.classifier.weight")[:2]
        backbone = {
            "dims": dims,
            "heads": HEADS,
            "ff_expansion": [
                shape(stage + "blocks.0.ffn.fc1.weight")[0] // dim
                for stage, dim in zip(stages, dims, strict=True)
            ],
            "reduction_ratio": [
                shape(stage + "blocks.0.attn.kv.conv.weight")[2] for stage in stages
            ],
            "num_layers": [self.count(stage + "blocks.{}.norm1.weight", state) for stage in stages],
            "in_channels": shape(stages[0] + "embed.proj.weight")[1],
        }
        head = {"in_channels": dims, "num_classes": known_classes, "channels": channels}
        return {
            "backbone": {"class": "ConvolutionalMiT", "config": backbone},
            "decode_head": {"class": "LinearHead", "config": head},
            "classes": asdict(Classes.of_logits(known_classes)),
            "align_corners": False,
        }


def _assume_heads(dims: list[int], file: WeightFile, report: Report) -> None:
    """Reports that the usual numbers of heads are assumed.

    Raises:
        ValueError: If they do not divide the widths.
    """
    if any(dim % heads for dim, heads in zip(dims, HEADS, strict=True)):
        raise ValueError(
            f"{str(file.path)!r} has dims {dims} and does not state its attention heads, which "
            f"cannot be the usual {HEADS}; build the model with its original arguments, and "
            "call model.load_weights with this file"
        )
    report.add(
        "note",
        "heads",
        f"the file does not state them; {HEADS} are assumed. If it has others, build the model, "
        "and call its load_weights",
    )


def _fold(state: State) -> dict[str, str]:
    """Gives kernels of unfolded patches their height and width, and norms their usual names."""
    for key in [key for key in state if re.search(r"\.norm\.[gb]$", key)]:
        state[key[:-1] + ("weight" if key.endswith("g") else "bias")] = state.pop(key).flatten()
    for key in [key for key in state if re.search(r"stages\.\d+\.1\.weight$", key)]:
        kernel = 7 if "stages.0." in key else 3
        if state[key].shape[1] % kernel**2 == 0:
            state[key] = state[key].reshape(state[key].shape[0], -1, kernel, kernel)
    return {}


_BLOCKS = "stages.{s}.blocks.{j}."

LUCIDRAINS = LucidrainsLayout(
    "lucidrains",
    marker="stages.0.2.0.0.fn.to_q.weight",
    backbone={
        "stages.{s}.embed.proj": "stages.{s}.1",
        _BLOCKS + "norm1": "stages.{s}.2.{j}.0.norm",
        _BLOCKS + "attn.q": "stages.{s}.2.{j}.0.fn.to_q",
        _BLOCKS + "attn.kv.conv": "stages.{s}.2.{j}.0.fn.to_kv",
        _BLOCKS + "attn.proj": "stages.{s}.2.{j}.0.fn.to_out",
        _BLOCKS + "norm2": "stages.{s}.2.{j}.1.norm",
        _BLOCKS + "ffn.fc1": "stages.{s}.2.{j}.1.fn.net.0",
        _BLOCKS + "ffn.dwconv.depthwise": "stages.{s}.2.{j}.1.fn.net.1.net.0",
        _BLOCKS + "ffn.dwconv.pointwise": "stages.{s}.2.{j}.1.fn.net.1.net.1",
        _BLOCKS + "ffn.fc2": "stages.{s}.2.{j}.1.fn.net.3",
    },
    decode_head={
        "projections.{s}": "to_fused.{s}.0",
        "fuse": "to_segmentation.0",
        "classifier": "to_segmentation.1",
    },
    prefix="mit.",
    holds="a ConvSegFormer",
    fold=_fold,
)
