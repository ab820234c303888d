"""``segformer inspect`` and ``segformer convert``: what a checkpoint holds, and the same model in another layout."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from segformer.checkpoint import (
    LAYOUTS,
    WRITABLE,
    BackboneOnlyError,
    Numerics,
    Reading,
    build,
    describe,
    read,
)
from segformer.models import SegFormer, SegmentationModel


class MultiplyAdds(TorchDispatchMode):
    """Counts the multiply-adds of what is computed inside, by PyTorch's formulas.

    :class:`torch.utils.flop_counter.FlopCounterMode` counts by module, with hooks on all of them;
    modules with hooks compute the paper's head literally, which takes more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        out = func(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **kwargs, out_val=out) // 2
        return out


def multiply_adds(model: SegmentationModel, height: int, width: int) -> int:
    """Multiply-adds from one image of this size to its stride-4 logits, attention included; nothing is computed."""
    with torch.device("meta"), torch.no_grad():
        twin = build(describe(model)).eval()
        images = torch.empty(1, model.backbone.in_channels, height, width)
        with MultiplyAdds() as counter:
            twin.decode_head(twin.backbone(images))
    return counter.total


def summary(reading: Reading, size: tuple[int, int] = (512, 512)) -> str:
    """What a checkpoint holds, in a few lines."""
    model = SegFormer.compose(**reading.parts)
    backbone, head = (describe(model)[name] for name in ("backbone", "decode_head"))
    config = backbone["config"]
    names = ", ".join(reading.classes.names[:6]) + (", …" if len(reading.classes) > 6 else "")
    rows = {
        "layout": reading.report.layout,
        "variant": _size(config),
        "decode head": f"{head['class']}, {head['config']['channels']} channels",
        "image channels": str(config["in_channels"]),
        "classes": f"{len(reading.classes)}: {names}",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,} ({next(model.parameters()).dtype})",
        "multiply-adds": f"{multiply_adds(model, *size) / 1e9:.1f} G at {size[0]}×{size[1]}",
        "numerics": _numerics(describe(model)),
        "normalization": str(reading.normalization),
    }
    rows_of_report = (
        f"{event:15}{subject}: {reason}" for event, subject, reason in reading.report.rows
    )
    return "\n".join([_table(reading, rows), *rows_of_report])


def _size(config: dict[str, Any]) -> str:
    """What a backbone is called, or its sizes where it has no name."""
    name = config.get("variant", config.get("name", config.get("dims")))
    return name if isinstance(name, str) else f"of its own, {name}"


def _numerics(description: dict[str, Any]) -> str:
    """What makes the same weights give other outputs."""
    if description["backbone"]["class"] == "MiT":
        return str(Numerics.of(description))
    config = {**description["backbone"]["config"], **description["decode_head"]["config"]}
    told = {
        name: config[name]
        for name in ("positions", "fit", "norm_eps", "scales", "kernel_size")
        if name in config
    }
    told |= {"align_corners": config.get("align_corners", description["align_corners"])}
    return ", ".join(f"{name}={value}" for name, value in told.items())


def _table(reading: Reading, rows: dict[str, str]) -> str:
    return "\n".join(
        [reading.report.source, *(f"{name:15}{value}" for name, value in rows.items())]
    )


def main(args: list[str]) -> None:
    """``segformer inspect`` and ``segformer convert``."""
    verb, args = args[0], args[1:]
    run = {"inspect": inspect, "convert": convert}[verb]
    parser = argparse.ArgumentParser(f"segformer {verb}", description=run.__doc__)
    parser.add_argument("source", metavar="IN", help="file, folder or Hugging Face id")
    parser.add_argument(
        "--source-layout",
        choices=LAYOUTS,
        help="the layout of IN, where the names of its tensors cannot tell it",
    )
    parser.add_argument(
        "--num-classes", type=int, help="another number of classes: a new, random classifier"
    )
    parser.add_argument(
        "--in-channels",
        type=int,
        help="another number of image channels: the stem is summed or repeated",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    if verb == "convert":
        parser.add_argument(
            "target",
            metavar="OUT",
            help="a .safetensors file; for nvidia and smp also a .pth; for huggingface a folder",
        )
        parser.add_argument("--layout", choices=WRITABLE, default="native")
    options = parser.parse_args(args)
    try:
        run(options)
    except (OSError, ValueError) as error:
        sys.exit(f"segformer {verb}: {error}")


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "num_classes": options.num_classes,
        "in_channels": options.in_channels,
        "layout": options.source_layout,
        "revision": options.revision,
    }


def inspect(options: argparse.Namespace) -> None:
    """Say what a checkpoint holds, in any layout: variant, classes, parameters, multiply-adds, numerics, and what reading it would drop."""
    try:
        print(summary(read(options.source, **_chosen(options))))
    except BackboneOnlyError:
        reading = read(options.source, **{**_chosen(options), "num_classes": 1})
        parameters = sum(p.numel() for p in reading.backbone.parameters())
        variant = reading.backbone.config["variant"]
        rows = {
            "layout": reading.report.layout,
            "variant": variant,
            "decode head": "none",
            "parameters": f"{parameters:,}",
        }
        print(_table(reading, rows))


def convert(options: argparse.Namespace) -> None:
    """Write a checkpoint of any layout in another one; what the target cannot say is warned of, with its size."""
    SegFormer.from_pretrained(options.source, **_chosen(options)).save(
        options.target, options.layout
    )
    print(f"{options.target}: {options.layout} layout")
