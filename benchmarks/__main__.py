"""``python -m benchmarks [PART…]`` measures and writes ``benchmarks/results.json``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import measure, recipes
from benchmarks.jobs import PARTS, PEERS, Job, command, jobs, key, run
from benchmarks.provenance import cpu, provenance, warn_if_busy, watched

RECIPES = ["recipes"]
RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    options = parse()
    if options.parts == RECIPES:
        # As an exception, it ends the command of the row, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        recipes.run(options)
        return
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.one:
        print(json.dumps(run(json.loads(options.one))))
        return
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    wanted = [job for part in options.parts or PARTS[:-1] for job in jobs(part, options)]
    if options.resume:
        wanted = [job for job in wanted if not is_measured(job, results)]
    warn_if_busy()
    end = time.monotonic() + 60 * options.minutes
    for job in tqdm(wanted, "benchmarks", unit="measurement"):
        if time.monotonic() > end:
            print("stopped after --minutes; --resume measures the rest", file=sys.stderr)
            break
        with watched() as load:
            outcome = measured(job)
        row = {**outcome, **provenance(command(job), cpu(job["threads"]), load)}
        job.pop("root", None)  # the name of a private folder
        results.setdefault(job["part"], {})[key(job)] = {**job, **row}
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line's options; the part ``recipes`` has its own."""
    if sys.argv[1:2] == RECIPES:
        return argparse.Namespace(parts=RECIPES, **vars(recipes.parse(sys.argv[2:])))
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", help=f"some of {', '.join(PARTS)}; by default all but the last"
    )
    parser.add_argument("--variants", nargs="+", default=["b0", "b2", "b5"])
    parser.add_argument(
        "--peers",
        nargs="*",
        default=list(PEERS),
        help=f"contestants besides transformers: {', '.join(PEERS)}, compile",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--camvid",
        help="folder of the CamVid data set, for the part accuracy: images/{train,val} and "
        "labels/{train,val}",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the part accuracy"
    )
    parser.add_argument(
        "--allocators", nargs="+", default=["default", "retaining"], help="default, retaining"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="measure only what the results do not hold yet, or hold from a busy machine",
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no measurement after this time"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one measurement, in its own process
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    if "accuracy" in options.parts and not options.camvid:
        parser.error("the part accuracy needs --camvid FOLDER")
    return options


def is_measured(job: Job, results: dict[str, Any]) -> bool:
    """Whether the results hold this job, it did not fail, and the machine was not busy."""
    row = results.get(job["part"], {}).get(key(job), {"failed": "not yet"})
    return not {"failed", "note"} & row.keys()


def measured(job: Job) -> dict[str, Any]:
    """The outcome of a job in a process of its own, under the job's allocator."""
    environment = {**os.environ, **(measure.RETAINING if job["allocator"] == "retaining" else {})}
    words = [sys.executable, "-m", "benchmarks", "--one", json.dumps(job)]
    words += ["--threads", str(job["threads"])]
    process = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        return {"failed": process.stderr.strip().splitlines()[-1]}
    return json.loads(process.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
