"""What each part measures: one job is one measurement, in a process of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks import contestants, measure
from benchmarks.contestants import MMSEGMENTATION

PARTS = (
    *("logits", "labels", "exported", "argmax", "step", "memory", "small", "loading"),
    *("operators", "accuracy"),
)
PEERS = ("bfloat16", "smp", "onnxruntime", "openvino")
ADE, CITYSCAPES = (150, (512, 512)), (19, (1024, 2048))
VARIANTS = {  # larger variants would take minutes a round
    ("logits", 150): ("b0", "b1", "b2", "b3", "b4", "b5"),
    ("logits", 19): ("b0", "b1", "b2"),
    ("labels", 150): ("b0", "b1", "b2"),
    ("labels", 19): ("b0",),
    ("exported", 150): ("b0", "b2"),
    ("exported", 19): (),
    ("step", 150): ("b0",),
    ("step", 19): (),
}
KEY = ("variant", "classes", "size", "batch", "what", "seed", "who", "cores", "allocator")

Job = dict[str, Any]


def jobs(part: str, options: argparse.Namespace) -> Iterator[Job]:
    """The measurements of a part under each allocator."""
    for allocator in options.allocators if part != "loading" else ["default"]:
        for job in _of_part(part, options, allocator):
            is_large = job.get("size") == CITYSCAPES[1] and part != "argmax"
            yield {
                "part": part,
                "allocator": allocator,
                "threads": options.threads,
                **job,
                "repeats": 3 if is_large else options.repeats,
                "peers": [] if is_large else options.peers,
            }


def _of_part(part: str, options: argparse.Namespace, allocator: str) -> Iterator[Job]:
    if part in ("logits", "labels", "exported", "step", "argmax"):
        yield from _of_image_sizes(part, options.variants)
    elif part == "memory" and allocator == "default":  # the other's reserve hides small growth
        yield from _of_memory()
    elif part == "small":
        yield from _of_small_images(options.variants)
    elif part == "accuracy":
        for seed in options.seeds:
            for who in ("segformer", "transformers"):
                yield {"seed": seed, "who": who, "root": options.camvid}
    elif part == "loading":
        yield {}
    elif part == "operators":
        yield from _of_operators(options, allocator)


def _of_image_sizes(part: str, variants: list[str]) -> Iterator[Job]:
    for classes, size in (ADE, CITYSCAPES):
        if part == "argmax":
            yield {"classes": classes, "size": size}
            continue
        for variant in variants:
            if variant in VARIANTS[part, classes]:
                yield {"classes": classes, "size": size, "variant": variant}


def _of_memory() -> Iterator[Job]:
    for who in ("segformer", "transformers"):
        work = {"who": who, "variant": "b0", "classes": 150}
        yield {**work, "what": "step", "size": (512, 512)}
        for side in (256, 512, 1024, 2048):
            yield {**work, "what": "labels", "size": (side, side)}


def _of_small_images(variants: list[str]) -> Iterator[Job]:
    for variant, side, batch in product(variants, (64, 128, 224), (1, 4, 16)):
        if variant in ("b0", "b2"):
            work = {"variant": variant, "size": (side, side), "batch": batch}
            yield from ({**work, "what": what} for what in ("logits", "pyramid", "classes"))


def _of_operators(options: argparse.Namespace, allocator: str) -> Iterator[Job]:
    """The cells that decide: all of the first variant's, and of the others where they may differ.

    An implementation's condition tests sizes and threads. So one thread, the allocator that
    retains, and the other heads are measured with the first variant only.
    """
    first, *others = options.variants
    is_default, size = allocator == "default", ADE[1]
    cells = list(_of_variant(first, is_default))
    if is_default:
        for variant, what in product((MMSEGMENTATION, "convolutional"), ("labels", "step")):
            cells += [{"variant": variant, "what": what, "classes": 19, "size": size}]
        cells += [cell for variant in others for cell in _of_variant(variant, is_default)]
    for cell in cells:
        yield {**cell, "cores": options.threads}
        is_alone = is_default and cell["variant"] == first and cell["what"] == "labels"
        if is_alone and options.threads > 1:
            yield {**cell, "threads": 1, "cores": 1}


def _of_variant(variant: str, is_exported: bool) -> Iterator[Job]:
    for what, side in product(("labels", "step"), (64, 224, 512)):
        yield {"variant": variant, "what": what, "classes": 150, "size": (side, side)}
    if is_exported:
        yield {"variant": variant, "what": "exported", "classes": 150, "size": ADE[1]}
    classes, size = CITYSCAPES
    yield {"variant": variant, "what": "labels", "classes": classes, "size": size}


def key(job: Job) -> str:
    """The name of a job within its part."""
    return " ".join(
        "×".join(map(str, job[name])) if name == "size" else str(job[name])
        for name in KEY
        if name in job
    )


def command(job: Job) -> str:
    """A command that measures this job again (with its part's others of the same variant)."""
    words = ["python -m benchmarks", job["part"]]
    if job["part"] == "operators":
        words += ["--variants", "b0", *({job.get("variant")} & {"b2", "b5"})]
    elif "variant" in job and job["part"] != "memory":
        words += ["--variants", job["variant"]]
    if job["part"] in ("logits", "labels", "exported") and job["peers"]:
        words += ["--peers", *job["peers"]]
    if "seed" in job:
        words += ["--camvid path/to/camvid", "--seeds", str(job["seed"])]
    elif job["part"] != "memory":
        words += ["--repeats", str(job["repeats"])]
    words += ["--allocators", job["allocator"], "--threads", str(job["threads"])]
    return " ".join(words)


def run(job: Job) -> dict[str, Any]:
    """Measure one job in this process."""
    torch.manual_seed(0)
    return RUNNERS[job["part"]](job)


def _logits(job: Job) -> dict[str, Any]:
    from segformer.evaluation.multiply_adds import multiply_adds

    variant, classes, size = job["variant"], job["classes"], tuple(job["size"])
    works = contestants.logits(variant, classes, size, job["peers"])
    rate = measure.matrix_product_rate()
    rows = measure.interleaved(works, job["repeats"])
    work = multiply_adds(contestants.ours(variant, classes), *size)
    return {
        "rows": rows,
        "share of matrix-product rate": work / rows[0]["seconds"]["median"] / rate,
        "matrix products": 2 * rate,
    }


def _label_maps(works_of: Callable[..., dict[str, contestants.Work]], job: Job) -> dict[str, Any]:
    works = works_of(job["variant"], job["classes"], tuple(job["size"]), job["peers"])
    return {"rows": measure.interleaved(works, job["repeats"])}


def _argmax(job: Job) -> dict[str, Any]:
    classes, size = job["classes"], tuple(job["size"])
    logits = contestants.like_a_trained_models(classes, size[0] // 4, size[1] // 4)
    return {
        "rows": measure.interleaved(contestants.argmax(classes, size), job["repeats"]),
        "boundary": contestants.boundary_share(logits),
    }


def _step(job: Job) -> dict[str, Any]:
    works = contestants.step(job["variant"], job["classes"], tuple(job["size"]))
    return {"rows": measure.interleaved(works, job["repeats"], gradients=True)}


def _memory(job: Job) -> dict[str, Any]:
    variant, classes, size = job["variant"], job["classes"], tuple(job["size"])
    if job["what"] == "step":
        return {"bytes": measure.peak_growth(contestants.step(variant, classes, size)[job["who"]])}
    work = contestants.labels(variant, classes, size, [])[job["who"]]
    with torch.inference_mode():
        peak = measure.peak_growth(work)
        seconds = measure.interleaved({"labels": work}, 3)[0]["seconds"]["median"]
    return {"bytes": peak, "seconds": seconds}


def _small(job: Job) -> dict[str, Any]:
    works = contestants.small(job["variant"], tuple(job["size"]), job["batch"], job["what"])
    return {"rows": measure.interleaved(works, job["repeats"], warm_up=2)}


def _loading(job: Job) -> dict[str, Any]:
    from benchmarks import loading

    return loading.seconds(job["repeats"])


def _operators(job: Job) -> dict[str, Any]:
    from benchmarks import ablation

    return ablation.rows(job)


def _accuracy(job: Job) -> dict[str, Any]:
    from benchmarks import accuracy

    return {"points": accuracy.run(job["who"], job["root"], job["seed"])}


RUNNERS = {
    "logits": _logits,
    "labels": partial(_label_maps, contestants.labels),
    "exported": partial(_label_maps, contestants.exported),
    "argmax": _argmax,
    "step": _step,
    "memory": _memory,
    "small": _small,
    "loading": _loading,
    "operators": _operators,
    "accuracy": _accuracy,
}
