"""``python -m benchmarks [PART…]``: writes ``benchmarks/results.json``, ``README.md``'s tables and the plot."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import contestants, measure

HERE = Path(__file__).parent
PARTS = ("logits", "labels", "argmax", "step", "memory", "small", "loading", "accuracy")
PEERS = ("bfloat16", "smp", "onnxruntime", "openvino")
ADE, CITYSCAPES = (150, (512, 512)), (19, (1024, 2048))


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", help=f"some of {', '.join(PARTS)}; by default all but the last"
    )
    parser.add_argument("--variants", nargs="+", default=["b0", "b2", "b5"])
    parser.add_argument(
        "--peers",
        nargs="*",
        default=list(PEERS),
        help=f"besides transformers: {', '.join(PEERS)}, compile",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--camvid",
        help="the data set's folder, for accuracy: images/{train,val} beside labels/{train,val}",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="of accuracy's runs"
    )
    parser.add_argument(
        "--allocators", nargs="+", default=["default", "retaining"], help="default, retaining"
    )
    parser.add_argument("--resume", action="store_true", help="measure only what the results lack")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)}; choose of {', '.join(PARTS)}")
    if "accuracy" in options.parts and not options.camvid:
        parser.error("accuracy needs --camvid FOLDER")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.one:
        print(json.dumps(_one(json.loads(options.one))))
        return
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    results["machine"] = _machine(options.threads)
    jobs = [job for part in options.parts or PARTS[:-1] for job in _jobs(part, options)]
    if options.resume:
        jobs = [
            job
            for job in jobs
            if "failed"
            in results.get(job["part"], {}).get(_key(job), {"failed": "not measured yet"})
        ]
    for job in tqdm(jobs, "benchmarks", unit="measurement"):
        outcome = _in_a_process(job)
        job.pop("root", None)  # whoever's folders are called what they may
        results.setdefault(job["part"], {})[_key(job)] = {**job, **outcome}
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out.resolve().parent == HERE:  # the tables are of the results beside them
        from benchmarks.report import write

        write(results, HERE)


def _jobs(part: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a part measures, each in a process of its own under each allocator."""
    jobs: list[dict[str, Any]] = []
    for allocator in options.allocators:
        for classes, size in (ADE, CITYSCAPES):
            one = {"part": part, "allocator": allocator, "classes": classes, "size": size}
            if part == "argmax":
                jobs.append(one)
            if part in ("logits", "labels"):  # what takes minutes a round is left out
                of = {
                    ("logits", 150): "b0 b1 b2 b3 b4 b5",
                    ("logits", 19): "b0 b1 b2",
                    ("labels", 150): "b0 b1 b2",
                    ("labels", 19): "b0",
                }
                jobs += [{**one, "variant": v} for v in options.variants if v in of[part, classes]]
            if part == "step" and classes == 150:
                jobs += [{**one, "variant": v} for v in options.variants if v == "b0"]
        if (
            part == "memory" and allocator == "default"
        ):  # the other keeps a reserve, in which small growth hides
            for who in ("segformer", "transformers"):
                one = {
                    "part": part,
                    "allocator": allocator,
                    "who": who,
                    "variant": "b0",
                    "classes": 150,
                }
                jobs.append({**one, "what": "step", "size": (512, 512)})
                jobs += [
                    {**one, "what": "labels", "size": (side, side)}
                    for side in (256, 512, 1024, 2048)
                ]
        if part == "small":
            jobs += [
                {
                    "part": part,
                    "allocator": allocator,
                    "variant": v,
                    "size": (side, side),
                    "batch": batch,
                    "what": what,
                }
                for v in options.variants
                if v in ("b0", "b2")
                for side in (64, 128, 224)
                for batch in (1, 4, 16)
                for what in ("logits", "pyramid", "classes")
            ]
        if part == "accuracy":
            both = ("segformer", "transformers")
            jobs += [
                {"part": part, "allocator": allocator, "seed": s, "who": w, "root": options.camvid}
                for s in options.seeds
                for w in both
            ]
    if part == "loading":
        jobs.append({"part": part, "allocator": "default"})
    for job in jobs:
        is_large = job.get("classes") == 19 and part != "argmax"
        job |= {
            "threads": options.threads,
            "repeats": 3 if is_large else options.repeats,
            "peers": [] if is_large else options.peers,
        }
    return jobs


def _key(job: dict[str, Any]) -> str:
    names = ("variant", "classes", "size", "batch", "what", "seed", "who", "allocator")
    return " ".join(
        "×".join(map(str, job[n])) if n == "size" else str(job[n]) for n in names if n in job
    )


def _in_a_process(job: dict[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, **(measure.RETAINING if job["allocator"] == "retaining" else {})}
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--one",
        json.dumps(job),
        "--threads",
        str(job["threads"]),
    ]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        return {"failed": run.stderr.strip().splitlines()[-1]}
    return json.loads(run.stdout.strip().splitlines()[-1])


def _one(job: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    part, size = job["part"], tuple(job.get("size", ()))
    if part == "logits":
        from segformer.evaluation.multiply_adds import multiply_adds

        works = contestants.logits(job["variant"], job["classes"], size, job["peers"])
        rate = measure.matrix_product_rate()
        rows = measure.interleaved(works, job["repeats"])
        work = multiply_adds(contestants.ours(job["variant"], job["classes"]), *size)
        return {
            "rows": rows,
            "share of matrix-product rate": work / rows[0]["seconds"]["median"] / rate,
            "matrix products": 2 * rate,
        }
    if part == "labels":
        return {
            "rows": measure.interleaved(
                contestants.labels(job["variant"], job["classes"], size, job["peers"]),
                job["repeats"],
            )
        }
    if part == "argmax":
        share = contestants.boundary_share(
            contestants.like_a_trained_models(job["classes"], size[0] // 4, size[1] // 4)
        )
        return {
            "rows": measure.interleaved(contestants.argmax(job["classes"], size), job["repeats"]),
            "boundary": share,
        }
    if part == "step":
        return {
            "rows": measure.interleaved(
                contestants.step(job["variant"], job["classes"], size),
                job["repeats"],
                gradients=True,
            )
        }
    if part == "memory":
        if job["what"] == "step":
            return {
                "bytes": measure.peak_growth(
                    contestants.step(job["variant"], job["classes"], size)[job["who"]]
                )
            }
        work = contestants.labels(job["variant"], job["classes"], size, [])[job["who"]]
        with torch.inference_mode():
            peak = measure.peak_growth(work)
            return {
                "bytes": peak,
                "seconds": measure.interleaved({"labels": work}, 3)[0]["seconds"]["median"],
            }
    if part == "small":
        return {
            "rows": measure.interleaved(
                contestants.small(job["variant"], size, job["batch"], job["what"]),
                job["repeats"],
                warm_up=2,
            )
        }
    if part == "accuracy":
        from benchmarks import accuracy

        return {"points": accuracy.run(job["who"], job["root"], job["seed"])}
    from benchmarks import loading

    return loading.seconds(job["repeats"])


def _machine(threads: int) -> dict[str, str]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        cpu = next(
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    packages = (
        "torch",
        "transformers",
        "segmentation-models-pytorch",
        "onnxruntime",
        "openvino",
        "albumentations",
    )
    return {
        "cpu": f"{cpu}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }


if __name__ == "__main__":
    main()
