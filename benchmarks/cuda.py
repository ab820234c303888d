"""``python -m benchmarks.cuda [PART…]``: this package and its peers on a CUDA device.

Writes ``benchmarks/cuda.json``, which the documentation shows.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import contestants, measure
from benchmarks.contestants import Work
from benchmarks.provenance import provenance, warn_if_busy, watched
from benchmarks.report import Runs
from segformer.ops import upsample, upsample_argmax, upsample_cross_entropy, upsample_sum
from segformer.ops.triton import agrees_on

HERE = Path(__file__).parent
PARTS = ("operators", "bfloat16", "float32", "step")
PEERS = ["smp"] if find_spec("segmentation_models_pytorch") else []
ADE, CITYSCAPES = (150, (512, 512)), (19, (1024, 2048))


def in_bfloat16(variant: str, classes: int, size: tuple[int, int], batch: int) -> dict[str, Work]:
    """Image tensors to label maps of their size, matrix products in bfloat16."""
    images = torch.randn(batch, 3, *size)
    mine, theirs = contestants.ours(variant, classes), contestants.transformers(variant, classes)

    def label(images: Tensor) -> Tensor:
        return contestants.transformers_labels(theirs, images)

    def autocast(label: Callable[[Tensor], Tensor]) -> Work:
        def work() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(images.device.type, torch.bfloat16):
                label(images)

        return work

    works: dict[str, Work] = {"segformer": lambda: mine.predict(images, dtype=torch.bfloat16)}
    if images.is_cuda:
        works = {
            "segformer, CUDA graph": lambda: mine.predict(
                images, dtype=torch.bfloat16, cuda_graph=True
            ),
            **works,
        }
    works["transformers"] = autocast(label)
    works["transformers, torch.compile(mode='reduce-overhead')"] = autocast(
        torch.compile(label, mode="reduce-overhead")
    )
    return works


def operators(classes: int, size: tuple[int, int], batch: int = 2) -> dict[str, dict[str, Work]]:
    """The operators as they run on this device, beside PyTorch's own functions; in bfloat16."""
    h, w = size[0] // 4, size[1] // 4
    logits = contestants.like_a_trained_models(classes, h, w).expand(batch, -1, -1, -1).bfloat16()
    logits = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    target = torch.randint(classes, (batch, *size))
    maps = [
        torch.randn(batch, h // n, w // n, 768).bfloat16().permute(0, 3, 1, 2) for n in (1, 2, 4, 8)
    ]
    return {
        "label map": {
            "segformer": lambda: upsample_argmax(logits, size),
            "interpolate + argmax": lambda: upsample(logits.detach(), size).argmax(1),
        },
        "loss and gradient": {
            "segformer": lambda: torch.autograd.grad(
                upsample_cross_entropy(logits, target), logits
            ),
            "interpolate + cross_entropy": lambda: torch.autograd.grad(
                F.cross_entropy(upsample(logits, size).float(), target), logits
            ),
        },
        "sum of four levels, 768 channels": {
            "segformer": lambda: upsample_sum(maps),
            "interpolate + add": lambda: maps[0] + sum(upsample(x, (h, w)) for x in maps[1:]),
        },
    }


def jobs(part: str, variants: list[str]) -> dict[str, tuple[Callable[[], dict[str, Work]], bool]]:
    """What a part measures: its contestants, and whether gradients are recorded."""
    made: dict[str, tuple[Callable[[], dict[str, Work]], bool]] = {}
    for classes, size in (ADE, CITYSCAPES):
        at = f"{classes} classes, {size[0]}×{size[1]}"
        for v in variants:
            if part == "bfloat16":
                for batch in (1, 16) if (classes, size) == ADE else (1,):
                    made[f"{v}, {at}, bfloat16, batch {batch}"] = (
                        lambda v=v, c=classes, s=size, b=batch: in_bfloat16(v, c, s, b),
                        False,
                    )
            if part == "float32":
                made[f"{v}, {at}: logits"] = (
                    lambda v=v, c=classes, s=size: contestants.logits(v, c, s, PEERS),
                    False,
                )
                made[f"{v}, {at}: labels"] = (
                    lambda v=v, c=classes, s=size: contestants.labels(v, c, s, PEERS),
                    False,
                )
            if part == "step" and (classes, size) == ADE:
                made[f"{v}, {at}: training step, batch 2"] = (
                    lambda v=v, c=classes, s=size: contestants.step(v, c, s),
                    True,
                )
        if part == "operators":
            for name in operators(2, (8, 8)):
                made[f"{at}, batch 2: {name}"] = (
                    lambda name=name, c=classes, s=size: operators(c, s)[name],
                    name.startswith("loss"),
                )
    return made


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.cuda", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", help=f"some of {', '.join(PARTS)}; by default all of them"
    )
    parser.add_argument("--variants", nargs="+", default=["b0", "b2", "b5"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "cuda.json")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA device")
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    if not agrees_on(torch.device("cuda")):
        parser.error(
            "Triton's kernels do not run on this device (the warning above gives the reason); the "
            "benchmark would measure the plain definitions"
        )
    warnings.filterwarnings("ignore")  # after the check, whose warning is the reason
    warn_if_busy()
    device = torch.cuda.get_device_name()
    for part in options.parts or PARTS:
        for name, (make, gradients) in jobs(part, options.variants).items():
            print(name, flush=True)
            with watched() as load:
                outcome = measured(make, options.repeats, gradients, "cuda")
            words = ["python -m benchmarks.cuda", part, "--variants", *options.variants]
            command = " ".join([*words, "--repeats", str(options.repeats)])
            results[name] = {**outcome, **provenance(command, device, load)}
            options.out.write_text(json.dumps(results, indent=1) + "\n")


def measured(
    make: Callable[[], dict[str, Work]], repeats: int, gradients: bool, device: str
) -> dict[str, Any]:
    """Seconds and ratios of the contestants, and the peak of memory above what each starts with."""
    torch._dynamo.reset()  # a compiler that has seen other sizes compiles for any
    try:
        with torch.device(device):
            works = make()
        rows = measure.interleaved(works, repeats, gradients, warm_up=3)
        for row in rows:
            row["bytes"] = _peak(works[row["name"]], gradients)
        return {"rows": rows}
    except Exception as error:  # the other measurements go on
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def _peak(work: Work, gradients: bool) -> int:
    """Peak of memory in bytes, without what a CUDA graph holds for itself."""
    if not torch.cuda.is_initialized():
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.set_grad_enabled(gradients):
        work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def table(results: dict[str, Any]) -> str:
    """Markdown of all results."""
    runs = Runs()
    lines = [
        "| work | contestant | ms | times the first's (range) "
        "| peak memory, without a graph's own | run |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        run = runs.number(result)
        if "failed" in result:
            lines.append(f"| {name} | failed: {result['failed']} | | | | {run} |")
            continue
        for row in result["rows"]:
            ratio = row["ratio"]
            of = f"{ratio['median']:.2f}× ({ratio['min']:.2f}–{ratio['max']:.2f})"
            lines.append(
                f"| {name} | {row['name']} | {1e3 * row['seconds']['median']:.3f} | {of} "
                f"| {row['bytes'] / 2**20:.0f} MiB | {run} |"
            )
    return "\n".join([*lines, "", *runs.table()]) + "\n"


if __name__ == "__main__":
    main()
