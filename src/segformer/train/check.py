"""``segformer check``: read every image and label map before training, and list what is wrong."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from segformer.data.annotations.drawing import sentence_on_invalid
from segformer.data.classes import Classes
from segformer.data.complete import complete
from segformer.data.datasets import DataError, FolderDataset, count_labels, files_of
from segformer.data.images import is_transparent, read_header, read_image
from segformer.data.rasters import RasterDataset, statistics_of
from segformer.inference.pictures import GAP, beside, contact_sheet, fitted, overlay, shown
from segformer.train.data import SegmentationData
from segformer.train.parser import build_data, data_parser
from segformer.train.samples import Transformed

SPLITS = ("train", "val", "test")
SHOWN_SAMPLES = 9  # in the picture, which fits a screen
COLUMNS = 3  # of samples
SIDE = (300, 225)  # width and height in pixels of a picture of a sample
SHOWN_SIZES = 4  # of a split, in the report
SHOWN_WARNINGS = 10  # the others are counted


def main(arguments: list[str]) -> None:
    """Checks the data of a config, prints the report and writes a picture of samples.

    Raises:
        SystemExit: With code 1 if there is a problem.
    """
    options = parse(arguments)
    try:
        data, faults = readable_data(options.data)
    except (OSError, ValueError) as error:
        print(f"problem: {error}\n\n{_number_of_problems([error])}")
        sys.exit(1)
    findings = check(data, options.num_workers)
    findings.problems[:0] = faults
    print(findings.text(data.classes))
    if options.write_statistics and not findings.problems:
        write_statistics(data, options.config)
    if picture := draw(data):
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        picture.save(options.out)
        print(f"look at {options.out}")
    if findings.problems:
        sys.exit(1)


def parse(arguments: list[str]) -> Namespace:
    """Returns the options: those of the data, ``out`` and ``num_workers``.

    Raises:
        argparse.ArgumentError: If an option is unknown or its value has the wrong type.
    """
    parser = data_parser(
        "segformer check",
        description="Read every image and label map of a config, before training.",
    )
    parser.add_argument(
        "--out", type=str, default="check.png", help="picture of samples and their labels"
    )
    parser.add_argument(
        "--write-statistics",
        action="store_true",
        help="add mean, deviation and range of the bands to the config",
    )
    parser.add_argument("--num_workers", type=int, default=2, help="number of loader processes")
    return parser.parse_args(arguments)


def write_statistics(data: SegmentationData, configs: Sequence[Any] | None) -> None:
    """Adds the statistics of the training images to the last config, and prints them.

    Comments and order of the YAML file are kept.

    Raises:
        ValueError: If there is no config, or the data are photographs.
    """
    if not configs:
        raise ValueError("--write-statistics adds them to a config; give it with --config FILE")
    if not isinstance(data.train, RasterDataset):
        raise ValueError(
            "--write-statistics is for images that are read with their bands; add `bands: {}` to "
            "data.init_args: photographs are normalised as the network's weights need it"
        )
    statistics = statistics_of(data.train.bands, data.train.parts)
    path = Path(str(configs[-1]))
    _write_into(path, replace(statistics, bands=None).to_dict())
    names = data.train.bands.names or range(1, len(statistics.mean) + 1)
    for number, name in enumerate(names):
        print(f"band {name}: mean {statistics.mean[number]:.6g}, std {statistics.std[number]:.6g}")
    print(f"data.init_args.normalization is written to {path}")


def _write_into(path: Path, normalization: dict[str, Any]) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq

    yaml = YAML()  # which keeps comments
    yaml.preserve_quotes = True
    yaml.width = 100
    settings = yaml.load(path)
    if "data" not in settings:
        raise ValueError(f"{str(path)!r} has no `data`; give the config with the data last")
    plain = json.loads(json.dumps(normalization))  # lists in place of tuples
    for name, value in plain.items():
        if isinstance(value, list):
            plain[name] = CommentedSeq(value)
            plain[name].fa.set_flow_style()
    settings["data"].setdefault("init_args", {})["normalization"] = plain
    with complete(path) as partial:
        yaml.dump(settings, partial)


def readable_data(settings: Namespace) -> tuple[SegmentationData, list[str]]:
    """Returns the data module of its settings, and the faults that were found on the way.

    The files with a fault are left out; a data set may be empty without them.

    Raises:
        ValueError: If the settings are wrong.
        FileNotFoundError: If a folder is missing or empty.
    """
    try:
        return build_data(settings), []
    except DataError as error:
        return error.found, error.faults


@dataclass(frozen=True)
class Sample:
    """What one pair of an image and a label map contains, or what is wrong with it.

    Args:
        size: Height and width.
        histogram: Number of pixels (K + 1,) of each class, and of ignored pixels.
        digest: Hash of the image's pixels; none if they are all equal, as of a tile without data.
        is_transparent: Whether the image has an alpha channel, which is dropped.
        invalid: Number of invalid polygons among its annotations that are drawn.
        problems: One sentence for each fault.
    """

    size: tuple[int, int] = (0, 0)
    histogram: np.ndarray | None = None
    digest: str = ""
    is_transparent: bool = False
    invalid: int = 0
    problems: tuple[str, ...] = ()


class Samples(Dataset):
    """The :class:`Sample` of each pair of a data set, read as training reads it."""

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
        return Sample(
            (label.shape[0], label.shape[1]),
            count_labels(label, len(self.dataset.classes)),
            _digest(image.numpy()),
            is_folder and self._is_transparent(index),
            self._invalid(index) if is_folder else 0,
        )

    def _invalid(self, index: int) -> int:
        drawn = self.dataset.drawn
        return drawn.invalid(self.dataset.pairs[index][0]) if drawn else 0

    def _is_transparent(self, index: int) -> bool:
        if isinstance(self.dataset, RasterDataset):
            return False
        return is_transparent(read_header(self.dataset.pairs[index][0]))

    def name(self, index: int) -> str:
        """Returns the image file of a pair, or its index if the data set has no files."""
        pairs = getattr(self.dataset, "pairs", None)
        return str(pairs[index][0]) if pairs else f"sample {index}"


class Photographs(Dataset):
    """The digest of each image without labels, and what is wrong with it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, str]:
        try:
            return _digest(read_image(self.paths[index]).numpy()), ""
        except (ValueError, OSError) as error:
            return "", str(error)


def _digest(pixels: np.ndarray) -> str:
    """Returns the hash of an image; none if its pixels are equal, as of a tile without data."""
    if np.array_equal(pixels, np.broadcast_to(pixels[:, :1, :1], pixels.shape), True):
        return ""
    content = pixels.tobytes() + str(pixels.shape).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _unchanged(image: Any, label: Any) -> tuple[Any, Any]:
    return image, label


@dataclass
class Findings:
    """The result of a check.

    Args:
        counts: Number of pairs of each split.
        sizes: Number of pairs of each size (height, width), by split.
        histograms: Number of pixels (K + 1,) of each class, and of ignored pixels, by split.
        invalid: Number of invalid polygons that are drawn on each image, by split.
        problems: Faults to correct, one sentence for each.
        warnings: What may be intended, one sentence for each.
    """

    counts: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, dict[tuple[int, int], int]] = field(default_factory=dict)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    invalid: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def text(self, classes: Classes) -> str:
        """Returns the report that is printed."""
        sections = [
            [self._sizes_of(split) for split in self.counts],
            [self._invalid_of(split) for split, count in self.invalid.items() if count],
            self._shares(classes),
            _shortened([f"warning: {sentence}" for sentence in self.warnings]),
            [f"problem: {sentence}" for sentence in self.problems],
            [_number_of_problems(self.problems)],
        ]
        return "\n\n".join("\n".join(lines) for lines in sections if lines)

    def _sizes_of(self, split: str) -> str:
        sizes = sorted(self.sizes[split].items(), key=lambda item: -item[1])
        shown = ", ".join(f"{n} of {height}×{width}" for (height, width), n in sizes[:SHOWN_SIZES])
        more = len(sizes) - SHOWN_SIZES
        rest = f" and {more} sizes more" if more > 0 else ""
        return f"{split}: {self.counts[split]} pairs; {shown}{rest}"

    def _invalid_of(self, split: str) -> str:
        counts = self.invalid[split]
        sentence = sentence_on_invalid(sum(counts.values()))
        return (
            f"{split}: {sentence}; they are on {len(counts)} images, such as {next(iter(counts))}"
        )

    def _shares(self, classes: Classes) -> list[str]:
        """Returns a table of each class's share in the pixels of each split."""
        names = [*classes.names, "ignored"]
        width = max(map(len, names)) + 4
        lines = [f"{'share of pixels, %':{width}}" + "".join(f"{s:>9}" for s in self.counts)]
        totals = {split: max(1, self.histograms[split].sum()) for split in self.counts}
        for k, name in enumerate(names):
            shares = [100 * self.histograms[split][k] / totals[split] for split in self.counts]
            lines.append(f"{name:{width}}" + "".join(f"{share:9.3f}" for share in shares))
        return lines


def _shortened(warnings: list[str]) -> list[str]:
    more = len(warnings) - SHOWN_WARNINGS
    return [*warnings[:SHOWN_WARNINGS], f"and {more} warnings more"] if more > 0 else warnings


def _number_of_problems(problems: Sequence[object]) -> str:
    if not problems:
        return "no problems"
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"


def check(data: SegmentationData, num_workers: int = 2) -> Findings:
    """Reads every pair of a data module's splits, and its images without labels.

    Progress bars show how far it is.
    """
    findings = Findings()
    images: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split in SPLITS:
        dataset = getattr(data, split)
        if dataset is not None:
            for digest, name in _check_split(findings, split, dataset, num_workers):
                if digest:
                    images[digest].append((split, name))
    _find_repeated(findings, list(images.values()))
    if data.unlabelled is not None:
        _check_unlabelled(findings, data.unlabelled.paths, images, num_workers)
    return findings


def _check_unlabelled(
    findings: Findings,
    paths: Sequence[Path],
    images: Mapping[str, list[tuple[str, str]]],
    num_workers: int,
) -> None:
    """Adds what is wrong with images without labels, and which of them measure the network.

    Args:
        findings: The result of the check.
        paths: Files of these images.
        images: Splits and names of the images of each digest.
    """
    loader = DataLoader(Photographs(paths), batch_size=None, num_workers=num_workers)
    measuring = []
    for path, (digest, problem) in zip(paths, tqdm(loader, "check unlabelled"), strict=True):
        findings.problems += [problem] if problem else []
        splits = {split for split, _ in images.get(digest, ())} - {"train"}
        measuring += [f"{path} ({', '.join(sorted(splits))})"] if splits else []
    if measuring:
        findings.warnings.append(
            f"{len(measuring)} images of other splits are among the images without labels: "
            f"{measuring[0]}, …; scores on them say little about other images"
        )


def _check_split(
    findings: Findings, split: str, dataset: Any, num_workers: int
) -> Iterator[tuple[str, str]]:
    """Adds what a split contains to the findings; yields the digest and name of each image."""
    findings.counts[split] = len(dataset)
    findings.sizes[split] = defaultdict(int)
    invalid = findings.invalid[split] = {}
    histogram = findings.histograms[split] = np.zeros(len(dataset.classes) + 1, np.int64)
    transparent = []
    samples = Samples(dataset)
    loader = DataLoader(samples, batch_size=None, num_workers=num_workers)
    for index, sample in enumerate(tqdm(loader, f"check {split}", unit="pair")):
        findings.problems += sample.problems
        if sample.histogram is None:
            continue
        name = samples.name(index)
        place, _ = files_of(dataset, index) or (name, name)
        findings.sizes[split][sample.size] += 1
        histogram += sample.histogram
        transparent += [name] if sample.is_transparent else []
        if sample.invalid:
            invalid[name] = sample.invalid  # once for all tiles of an image
        if sample.histogram[-1] == sample.histogram.sum():
            findings.warnings.append(f"{place} has no labelled pixel")
        yield sample.digest, place
    findings.warnings += _absent_classes(split, histogram, dataset.classes)
    if transparent:
        findings.warnings.append(
            f"{len(transparent)} images of {split} have transparency, which is dropped: "
            f"{transparent[0]}, …"
        )
    if isinstance(dataset, FolderDataset) and findings.sizes[split]:
        findings.problems += dataset.problems_of_one_class(histogram, range(len(dataset)))


def _absent_classes(split: str, histogram: np.ndarray, classes: Classes) -> list[str]:
    """Returns a warning that lists the classes without a pixel, if there are any."""
    absent = [name for k, name in enumerate(classes.names) if not histogram[k]]
    more = len(absent) - SHOWN_WARNINGS
    rest = f" and {more} classes more" if more > 0 else ""
    shown = ", ".join(absent[:SHOWN_WARNINGS])
    return [f"{split} has no pixel of {shown}{rest}"] if absent else []


def _find_repeated(findings: Findings, images: list[list[tuple[str, str]]]) -> None:
    """Adds images that occur more than once, each a list of its splits and names."""
    for places in images:
        if len({split for split, _ in places}) > 1:
            files = ", ".join(f"{name} ({split})" for split, name in places)
            findings.problems.append(f"one image is in two splits: {files}")
        elif len(places) > 1:
            files = ", ".join(name for _, name in places)
            findings.warnings.append(f"one image is in {places[0][0]} more than once: {files}")


def draw(data: SegmentationData) -> Image.Image | None:
    """Returns a contact sheet of the splits: images beside themselves under their labels.

    None if none can be read.
    """
    samples = {split: Samples(getattr(data, split)) for split in SPLITS if getattr(data, split)}
    places = [(split, k) for split, each in samples.items() for k in range(len(each))]
    pictures, found = [], set()
    for number in np.linspace(0, len(places) - 1, min(SHOWN_SAMPLES, len(places))).astype(int):
        split, index = places[number]
        try:
            image, label = samples[split].pairs[index]
        except (ValueError, OSError):
            continue
        labels, rgb = label.numpy(), shown(image)
        pair = [fitted(picture, SIDE) for picture in (rgb, overlay(rgb, labels, data.classes))]
        pictures.append((f"{split}: {Path(samples[split].name(index)).name}", beside(pair)))
        found |= set(np.unique(labels).tolist())
    classes = sorted(found & set(range(len(data.classes))))
    cell = (2 * SIDE[0] + GAP, SIDE[1])
    return contact_sheet(pictures, data.classes, classes, COLUMNS, cell) if pictures else None
