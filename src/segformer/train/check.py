"""``segformer check --config …``: read every pair before a run does, and say what is there and what is wrong."""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from segformer.data.classes import Classes
from segformer.data.datasets import IGNORE_INDEX
from segformer.train.data import SegmentationData, Transformed
from segformer.visualize import indexed, overlay, sheet

SPLITS = ("train", "val", "test")
SHOWN = 6  # samples of a split in the picture
NAMED = 10  # problems of one kind that are named, before the rest is counted


@dataclass(frozen=True)
class Sample:
    """What one pair holds, or what is wrong with it."""

    size: tuple[int, int] = (0, 0)
    histogram: np.ndarray | None = None
    digest: str = ""
    problem: str = ""


class Samples(Dataset):
    """A data set's pairs, read as training reads them, each summed up."""

    def __init__(self, dataset: Any) -> None:
        self.pairs = Transformed(dataset, lambda image, label: (image, label))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        try:
            image, label = self.pairs[index]
        except (ValueError, OSError) as error:
            return Sample(problem=str(error))
        pixels = image.numpy()
        return Sample(
            (label.shape[0], label.shape[1]),
            np.bincount(label.numpy().ravel(), minlength=256),
            hashlib.blake2b(pixels.tobytes() + str(pixels.shape).encode(), digest_size=16).hexdigest(),
        )


@dataclass
class Findings:
    """What was found in all splits.

    Args:
        counts: pairs of each split.
        sizes: how many pairs have which size, by split.
        histograms: pixels of each label value, by split.
        problems: what is wrong, a sentence a file or pair.
        warnings: what may be meant so.
    """

    counts: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, dict[tuple[int, int], int]] = field(default_factory=dict)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def text(self, classes: Classes) -> str:
        """A report for a person."""
        lines = []
        for split, count in self.counts.items():
            sizes = sorted(self.sizes[split].items(), key=lambda item: -item[1])
            shown = ", ".join(f"{number} of {height}×{width}" for (height, width), number in sizes[:4])
            lines.append(f"{split}: {count} pairs; {shown}" + (f" and {len(sizes) - 4} sizes more" if len(sizes) > 4 else ""))
        width = max(map(len, [*classes.names, "ignored"]))
        lines += ["", f"{'share of pixels, %':{width + 4}}" + "".join(f"{split:>9}" for split in self.counts)]
        for k, name in [*enumerate(classes.names), (IGNORE_INDEX, "ignored")]:
            shares = [100 * self.histograms[split][k] / max(1, self.histograms[split].sum()) for split in self.counts]
            lines.append(f"{name:{width + 4}}" + "".join(f"{share:9.3f}" for share in shares))
        for title, sentences in (("warning", self.warnings), ("problem", self.problems)):
            lines += [""] if sentences else []
            lines += [f"{title}: {sentence}" for sentence in sentences[:NAMED]]
            lines += [f"and {len(sentences) - NAMED} {title}s more"] if len(sentences) > NAMED else []
        return "\n".join([*lines, "", f"{len(self.problems)} problems" if self.problems else "no problems"])


def check(data: SegmentationData, num_workers: int = 2) -> Findings:
    """Read every pair of a data module's splits, with a progress bar."""
    findings = Findings()
    seen: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split in SPLITS:
        dataset = getattr(data, split)
        if dataset is None:
            continue
        findings.counts[split] = len(dataset)
        findings.sizes[split] = defaultdict(int)
        findings.histograms[split] = np.zeros(256, np.int64)
        samples = DataLoader(Samples(dataset), batch_size=None, num_workers=num_workers)
        for index, sample in enumerate(tqdm(samples, f"check {split}", unit="pair")):
            if sample.problem:
                findings.problems.append(sample.problem)
                continue
            findings.sizes[split][sample.size] += 1
            findings.histograms[split] += sample.histogram
            pairs = getattr(dataset, "pairs", None)
            seen[sample.digest].append((split, str(pairs[index][0]) if pairs else f"sample {index}"))
            if sample.histogram is not None and sample.histogram[IGNORE_INDEX] == sample.histogram.sum():
                findings.warnings.append(f"{seen[sample.digest][-1][1]} has no labelled pixel")
        absent = [name for k, name in enumerate(data.classes.names) if not findings.histograms[split][k]]
        if absent:
            more = f" and {len(absent) - NAMED} classes more" if len(absent) > NAMED else ""
            findings.warnings.append(f"{split} has no pixel of {', '.join(absent[:NAMED])}{more}")
    for places in seen.values():
        if len({split for split, _ in places}) > 1:
            findings.problems.append("one image is in two splits: " + ", ".join(f"{name} ({split})" for split, name in places))
        elif len(places) > 1:
            findings.warnings.append(f"one image is in {places[0][0]} more than once: " + ", ".join(name for _, name in places))
    return findings


def picture(data: SegmentationData) -> Image.Image | None:
    """Samples of the first split with their labels beside and over them; none where none could be read."""
    columns: dict[str, list[Image.Image]] = {"image": [], "labels": [], "both": []}
    for index in np.linspace(0, len(data.train) - 1, min(SHOWN, len(data.train))).astype(int).tolist():
        try:
            image, label = data.train[index]
        except (ValueError, OSError):
            continue
        rgb = Image.fromarray(image.permute(1, 2, 0).numpy())
        columns["image"].append(rgb)
        columns["labels"].append(indexed(label.numpy(), data.classes).convert("RGB"))
        columns["both"].append(overlay(rgb, label.numpy(), data.classes))
    return sheet(columns, data.classes) if columns["image"] else None


def main(args: list[str]) -> None:
    """The command: exits with 1 when there is a problem."""
    parser = ArgumentParser("segformer check", description="Read every image and label map of a config's data, before a run does.")
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(SegmentationData, "data", required=True)
    parser.add_argument("--out", type=str, default="check.png", help="a picture of samples with their labels")
    parser.add_argument("--num_workers", type=int, default=2)
    run = (
        "model",
        "trainer",
        "seed_everything",
        "one_logit",
        "checkpoint",
        "resume",
        "report",
        "ckpt_path",
        "weights",
        "weights_only",
        "protocol",
        "tta",
    )
    for other in run:  # a run's, and not looked at
        parser.add_argument(f"--{other}", type=Any, default=None)
    options = parser.instantiate_classes(parser.parse_args(args))
    findings = check(options.data, options.num_workers)
    print(findings.text(options.data.classes))
    if shown := picture(options.data):
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        shown.save(options.out)
        print(f"look at {options.out}")
    if findings.problems:
        sys.exit(1)
