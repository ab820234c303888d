"""Times this version against another one, alternating in one run.

    git worktree add /tmp/before 0.1.1
    python -m benchmarks.versions /tmp/before/src

Each version runs in a process of its own, and one of them waits while the other works. The figures
are the medians of this version's time over the other's, with their ranges.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

OURS = Path(__file__).resolve().parent.parent / "src"
WORK = ("logits", "labels", "step")

WORKER = """
import sys, time, torch
from segformer import SegFormer
from segformer.losses import CrossEntropy

torch.manual_seed(0)
images, target = torch.randn(1, 3, 512, 512), torch.randint(0, 150, (2, 512, 512))
models, loss = {}, CrossEntropy()

def logits(model):
    with torch.inference_mode():
        model.eval().decode_head(model.backbone(images))

def labels(model):
    model.predict(images)

def step(model):
    model.train()
    loss(model.decode_head(model.backbone(images.expand(2, -1, -1, -1))), target).backward()
    model.zero_grad()

for line in sys.stdin:
    work, variant = line.split()
    model = models.get(variant) or models.setdefault(variant, SegFormer(variant))
    start = time.perf_counter()
    {"logits": logits, "labels": labels, "step": step}[work](model)
    print(time.perf_counter() - start, flush=True)
"""


class Version:
    """A process that works with the package below a folder.

    Args:
        source: the folder that holds the package.
    """

    def __init__(self, source: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(source)}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], env=environment, **pipes)

    def seconds(self, work: str, variant: str) -> float:
        """The time of one round."""
        print(work, variant, file=self.process.stdin, flush=True)
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser("benchmarks.versions", description=__doc__)
    parser.add_argument("source", type=Path, help="folder that holds the other package")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--variants", nargs="+", default=["b0", "b2"])
    arguments = parser.parse_args()
    ours, other = Version(OURS), Version(arguments.source)
    print(f"{'work':8}{'variant':9}{'this, s':>9}{'other, s':>10}{'this / other':>14}  range")
    for variant in arguments.variants:
        for work in WORK:
            pairs = []
            for version in (ours, other):
                version.seconds(work, variant)
            for turn in tqdm(range(arguments.rounds), desc=f"{work} {variant}", leave=False):
                first, second = (ours, other) if turn % 2 else (other, ours)
                times = {id(version): version.seconds(work, variant) for version in (first, second)}
                pairs.append((times[id(ours)], times[id(other)]))
            ratios = sorted(a / b for a, b in pairs)
            a, b = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(ratios)
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            print(f"{work:8}{variant:9}{a:9.3f}{b:10.3f}{ratio:14.3f}  {spread}", flush=True)


if __name__ == "__main__":
    main()
