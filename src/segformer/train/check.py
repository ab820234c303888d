"""``segformer check --config …``: read every pair before a run does, and say what is there and what is wrong."""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from segformer.data.classes import Classes
from segformer.data.datasets import DataError, FolderDataset, count_labels
from segformer.data.images import is_transparent, read_header
from segformer.inference.pictures import colored, overlay, sheet
from segformer.train.data import SegmentationData, Transformed

SPLITS = ("train", "val", "test")
RUN = (  # a run's options, which are not looked at
    *("model", "trainer", "seed_everything", "one_logit", "checkpoint", "resume", "report"),
    *("ckpt_path", "weights", "weights_only", "protocol", "tta"),
)
SHOWN = 6  # samples of a split in the picture
NAMED = 10  # warnings that are printed, before the rest is counted


@dataclass(frozen=True)
class Sample:
    """What one pair holds, or what is wrong with it.

    Args:
        size: Height and width.
        histogram: Pixels (K + 1,) of each class, and of none.
        digest: Equal for equal images alone.
        is_transparent: Whether the image has an alpha channel, which is dropped.
        problems: A sentence a fault.
    """

    size: tuple[int, int] = (0, 0)
    histogram: np.ndarray | None = None
    digest: str = ""
    is_transparent: bool = False
    problems: tuple[str, ...] = ()


class Samples(Dataset):
    """A data set's pairs, read as training reads them, each summed up."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.pairs = Transformed(dataset, _unchanged)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        is_folder = isinstance(self.dataset, FolderDataset)
        try:
            image, label = self.pairs[index]
        except (ValueError, OSError) as error:
            faults = self.dataset.faults_of(index) if is_folder else []
            return Sample(problems=tuple(faults or [str(error)]))
        pixels = image.numpy()
        return Sample(
            (label.shape[0], label.shape[1]),
            count_labels(label, len(self.dataset.classes)),
            hashlib.blake2b(
                pixels.tobytes() + str(pixels.shape).encode(), digest_size=16
            ).hexdigest(),
            is_folder and is_transparent(read_header(self.dataset.pairs[index][0])),
        )


def _unchanged(image: Any, label: Any) -> tuple[Any, Any]:
    return image, label


@dataclass
class Findings:
    """What was found in all splits.

    Args:
        counts: pairs of each split.
        sizes: how many pairs have which size, by split.
        histograms: pixels (K + 1,) of each class, and of none, by split.
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
            shown = ", ".join(
                f"{number} of {height}×{width}" for (height, width), number in sizes[:4]
            )
            lines.append(
                f"{split}: {count} pairs; {shown}"
                + (f" and {len(sizes) - 4} sizes more" if len(sizes) > 4 else "")
            )
        width = max(map(len, [*classes.names, "ignored"]))
        lines += [
            "",
            f"{'share of pixels, %':{width + 4}}" + "".join(f"{split:>9}" for split in self.counts),
        ]
        for k, name in enumerate([*classes.names, "ignored"]):
            shares = [
                100 * self.histograms[split][k] / max(1, self.histograms[split].sum())
                for split in self.counts
            ]
            lines.append(f"{name:{width + 4}}" + "".join(f"{share:9.3f}" for share in shares))
        warnings = [f"warning: {sentence}" for sentence in self.warnings[:NAMED]]
        if len(self.warnings) > NAMED:
            warnings.append(f"and {len(self.warnings) - NAMED} warnings more")
        problems = [f"problem: {sentence}" for sentence in self.problems]
        for sentences in filter(None, (warnings, problems)):
            lines += ["", *sentences]
        return "\n".join(
            [*lines, "", f"{len(self.problems)} problems" if self.problems else "no problems"]
        )


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
        histogram = findings.histograms[split] = np.zeros(len(data.classes) + 1, np.int64)
        transparent = []
        samples = DataLoader(Samples(dataset), batch_size=None, num_workers=num_workers)
        for index, sample in enumerate(tqdm(samples, f"check {split}", unit="pair")):
            findings.problems += sample.problems
            if sample.histogram is None:
                continue
            findings.sizes[split][sample.size] += 1
            histogram += sample.histogram
            pairs = getattr(dataset, "pairs", None)
            name = str(pairs[index][0]) if pairs else f"sample {index}"
            seen[sample.digest].append((split, name))
            transparent += [name] if sample.is_transparent else []
            if sample.histogram[-1] == sample.histogram.sum():
                findings.warnings.append(f"{name} has no labelled pixel")
        absent = [name for k, name in enumerate(data.classes.names) if not histogram[k]]
        if absent:
            more = f" and {len(absent) - NAMED} classes more" if len(absent) > NAMED else ""
            findings.warnings.append(f"{split} has no pixel of {', '.join(absent[:NAMED])}{more}")
        if transparent:
            findings.warnings.append(
                f"{len(transparent)} images of {split} have transparency, which is dropped: {transparent[0]}, …"
            )
        if isinstance(dataset, FolderDataset) and findings.sizes[split]:
            findings.problems += dataset.lone_class(histogram)
    for places in seen.values():
        if len({split for split, _ in places}) > 1:
            findings.problems.append(
                "one image is in two splits: "
                + ", ".join(f"{name} ({split})" for split, name in places)
            )
        elif len(places) > 1:
            findings.warnings.append(
                f"one image is in {places[0][0]} more than once: "
                + ", ".join(name for _, name in places)
            )
    return findings


def picture(data: SegmentationData) -> Image.Image | None:
    """Samples of the first split with their labels beside and over them; none where none could be read."""
    columns: dict[str, list[Image.Image]] = {"image": [], "labels": [], "both": []}
    for index in (
        np.linspace(0, len(data.train) - 1, min(SHOWN, len(data.train))).astype(int).tolist()
    ):
        try:
            image, label = data.train[index]
        except (ValueError, OSError):
            continue
        rgb = Image.fromarray(image.permute(1, 2, 0).numpy())
        columns["image"].append(rgb)
        columns["labels"].append(colored(label.numpy(), data.classes))
        columns["both"].append(overlay(rgb, label.numpy(), data.classes))
    return sheet(columns, data.classes) if columns["image"] else None


def load(args: list[str]) -> tuple[Namespace, SegmentationData, list[str]]:
    """The command's options, its data, and what is wrong with them before a file is read.

    Raises:
        ValueError: If there are no data to read.
        FileNotFoundError: If a folder is missing or empty.
    """
    parser = ArgumentParser(
        "segformer check",
        description="Read every image and label map of a config's data, before a run does.",
    )
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(SegmentationData, "data", required=True)
    parser.add_argument(
        "--out", type=str, default="check.png", help="a picture of samples with their labels"
    )
    parser.add_argument("--num_workers", type=int, default=2)
    for other in RUN:
        parser.add_argument(f"--{other}", type=Any, default=None)
    options = parser.parse_args(args)
    # jsonargparse makes the parts of the data; the data themselves are made here, as it would put
    # the whole config into what they raise.
    module, _, name = options.data.class_path.rpartition(".")
    kind: Any = getattr(import_module(module), name)
    parts = ArgumentParser()
    parts.add_class_arguments(kind, "data", instantiate=False)
    given = Namespace(data=options.data.get("init_args", Namespace()))
    arguments = parts.instantiate_classes(given).data
    try:
        return options, kind(**arguments), []
    except DataError as error:
        return options, error.found, error.faults


def main(args: list[str]) -> None:
    """The command: exits with 1 when there is a problem."""
    try:
        options, data, faults = load(args)
    except (OSError, ValueError) as error:
        print(f"problem: {error}\n\n1 problems")
        sys.exit(1)
    findings = check(data, options.num_workers)
    findings.problems[:0] = faults
    print(findings.text(data.classes))
    if shown := picture(data):
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        shown.save(options.out)
        print(f"look at {options.out}")
    if findings.problems:
        sys.exit(1)
