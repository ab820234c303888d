"""CamVid's labels in annotation files, with planted faults, and some of them at a time.

    python -m benchmarks.annotations maps --camvid path/to/camvid
    python -m benchmarks.annotations faults --camvid path/to/camvid --weights model.safetensors
    python -m benchmarks.annotations suggest --camvid path/to/camvid --seeds 0 1 2

``maps`` writes the label maps as COCO polygons (rasterio) and run-lengths (pycocotools), and
compares what is read, and the first losses of a run. ``faults`` exchanges two classes in a box of
ten label maps of the training set, and says where ``segformer explain`` ranks these. ``suggest``
trains a network on 60 images, and goes on with 60 more: those that it suggests, or random ones.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from tqdm import tqdm

from benchmarks.accuracy import CONFIG
from segformer import SegmentationModel
from segformer.data.classes import Classes
from segformer.data.datasets import FolderDataset
from segformer.evaluation import evaluate
from segformer.inference.explanation import examine
from segformer.inference.suggestions import suggest
from segformer.ops.memory import keep_large_blocks
from segformer.train.lightning_cli import SegmentationCLI

NAMES = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
]
VOID = 11
SPLITS = ("train", "val", "test")
CLASS_MAPS = {"polygons": {"void": "ignore"}, "rle": None}
SIDE, FAULTS = 120, 10  # pixels of a box with a fault, and number of label maps that have one
HALF = (240, 180)  # width and height of the images of ``suggest``
FIRST, MORE = 500, 300  # steps on the first images, and with 60 more of them


def maps(root: Path) -> None:
    """Prints how many label maps are the same from each kind of file, and whether losses are."""
    with tempfile.TemporaryDirectory() as folder:
        for split in SPLITS:
            stated = FolderDataset(*_folders(root, split), Classes(NAMES), ignore_index=VOID)
            for kind, path in _annotations(root, split, Path(folder)).items():
                same = sum(
                    torch.equal(own[1], read[1])
                    for own, read in tqdm(
                        zip(stated, _drawn(root, split, kind, path), strict=True),
                        f"{split}, {kind}",
                        len(stated),
                    )
                )
                print(f"{split}, {kind}: {same} of {len(stated)} label maps are the same")
        losses = _losses({"root": root})
        for kind, class_map in CLASS_MAPS.items():
            labels = Path(folder) / f"{{split}}_{kind}.json"
            drawn = {"unlabelled": "ignore", "class_map": class_map, "ignore_index": None}
            found = _losses({"root": root, "labels": labels, **drawn})
            print(f"{kind}: {sum(map(eq, found, losses))} of {len(losses)} losses are the same")


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    return root / "images" / split, root / "labels" / split


def _drawn(root: Path, split: str, kind: str, path: Path) -> FolderDataset:
    options = {"unlabelled": "ignore", "class_map": CLASS_MAPS[kind]}
    return FolderDataset(root / "images" / split, path, Classes(NAMES), **options)


def _annotations(root: Path, split: str, folder: Path) -> dict[str, Path]:
    """Writes a split as two COCO files, and returns their paths.

    COCO's polygons have no holes: larger areas are drawn first, and what is void has a category.
    """
    import pycocotools.mask
    from rasterio.features import shapes

    images, polygons, runs = [], [], []
    for number, path in enumerate(sorted((root / "labels" / split).glob("*.png"))):
        label = np.array(Image.open(path))
        height, width = label.shape
        images.append(
            {"id": number, "file_name": f"{path.stem}.jpg", "height": height, "width": width}
        )
        rings = [
            (int(value), np.array(geometry["coordinates"][0][:-1]))
            for geometry, value in shapes(label, connectivity=4)
        ]
        for value, ring in sorted(rings, key=lambda found: -_area(found[1])):
            polygons.append(_annotation(polygons, number, value, [ring.ravel().tolist()]))
        for value in np.unique(label[label != VOID]).tolist():
            run = pycocotools.mask.encode(np.asfortranarray(label == value))
            run["counts"] = run["counts"].decode()
            runs.append(_annotation(runs, number, value, run))
    names = {"polygons": [*NAMES, "void"], "rle": NAMES}
    paths = {kind: folder / f"{split}_{kind}.json" for kind in names}
    for kind, areas in (("polygons", polygons), ("rle", runs)):
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(names[kind])]
        content = {"images": images, "annotations": areas, "categories": categories}
        paths[kind].write_text(json.dumps(content))
    return paths


def _annotation(others: Sequence[Any], image: int, value: int, segmentation: Any) -> dict[str, Any]:
    return {
        "id": len(others),
        "image_id": image,
        "category_id": value + 1,
        "segmentation": segmentation,
        "iscrowd": int(isinstance(segmentation, dict)),
    }


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


class Losses(Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def _losses(data: dict[str, Any]) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(Path(folder), 20, {f"data.{key}": data[key] for key in data})
        recipe.trainer.callbacks.append(losses := Losses())
        recipe.trainer.fit(recipe.model, recipe.datamodule)
    return losses.values


def _recipe(folder: Path, steps: int, options: dict[str, Any]) -> SegmentationCLI:
    """The recipe of present.yaml for some steps, without validation."""
    stated = {
        "config": CONFIG,
        "trainer.max_steps": steps,
        "trainer.limit_val_batches": 0,
        "trainer.num_sanity_val_steps": 0,
        "trainer.logger.init_args.save_dir": folder / "runs",
        **options,
    }
    return SegmentationCLI(
        [f"--{name}={_yaml(value)}" for name, value in stated.items()], run=False
    )


def _yaml(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def faults(root: Path, weights: Path, seeds: Sequence[int]) -> None:
    """Prints the ranks of planted faults among the label maps that a network doubts."""
    model = SegmentationModel.from_pretrained(weights)
    own = FolderDataset(*_folders(root, "train"), Classes(NAMES), ignore_index=VOID)
    for seed in seeds:
        planted = dict(_planted(own, np.random.default_rng(seed)))
        found = examine(model, {"train": Planted(own, planted)}).doubts
        ranks = [k for k, (doubt, *_) in enumerate(found, 1) if doubt.image.index in planted]
        among = sum(rank <= 20 for rank in ranks)
        print(f"seed {seed}: {among} of {FAULTS} are among the first 20; ranks {ranks}")


class Planted:
    """A data set with other label maps for some images.

    Args:
        dataset: The data set.
        planted: Label maps (H, W) by index.
    """

    def __init__(self, dataset: FolderDataset, planted: dict[int, torch.Tensor]) -> None:
        self.dataset, self.planted, self.classes = dataset, planted, dataset.classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = self.dataset[index]
        return image, self.planted.get(index, label)


def _planted(
    dataset: FolderDataset, chance: np.random.Generator
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields label maps with two classes exchanged in a box of which each has a tenth."""
    left = FAULTS
    for index in chance.permutation(len(dataset)).tolist():
        label = torch.as_tensor(dataset[index][1]).clone()
        for _ in range(200):
            top, start = (int(chance.integers(0, n - SIDE + 1)) for n in label.shape)
            box = label[top : top + SIDE, start : start + SIDE]
            counts = box.flatten().bincount(minlength=256)[: len(NAMES)]
            large = (counts >= 0.1 * box.numel()).nonzero()[:, 0].tolist()
            if len(large) >= 2:
                one, other = chance.choice(large, 2, replace=False).tolist()
                was_one, was_other = box == one, box == other
                box[was_one], box[was_other] = other, one
                yield index, label
                left -= 1
                break
        if not left:
            return


def suggestions(root: Path, seeds: Sequence[int]) -> None:
    """Prints the mIoU on val after 60 suggested and after 60 random images more."""
    keep_large_blocks()  # as `segformer fit` does
    gains = []
    with tempfile.TemporaryDirectory() as folder:
        half = Path(folder) / "camvid"
        for split in ("train", "val"):
            _halve(root, half, split)
        images = sorted((half / "images" / "train").iterdir())
        for seed in seeds:
            chance = random.Random(seed)
            known = chance.sample(images, 60)
            others = [image for image in images if image not in known]
            at_random = chance.sample(others, 60)
            start = Path(folder) / f"{seed}.safetensors"
            miou = [_trained(half, known, FIRST, seed, save=start)]
            chosen = suggest(SegmentationModel.from_pretrained(start), others, 60, known)
            added = at_random, [suggestion.path for suggestion in chosen]
            miou += [_trained(half, known + more, MORE, seed, start=start) for more in added]
            gains.append(100 * (miou[2] - miou[1]))
            first, drawn, suggested = (f"{100 * value:.2f}" for value in miou)
            print(f"seed {seed}: 60 images {first}, 60 random more {drawn}, suggested {suggested}")
    least, most = min(gains), max(gains)
    print(f"suggested - random: {statistics.mean(gains):+.2f}, from {least:+.2f} to {most:+.2f}")


def _halve(root: Path, half: Path, split: str) -> None:
    kinds = {"images": Image.Resampling.BILINEAR, "labels": Image.Resampling.NEAREST}
    for kind, method in kinds.items():
        (half / kind / split).mkdir(parents=True)
        for path in tqdm(sorted((root / kind / split).iterdir()), f"{kind} of {split}"):
            Image.open(path).resize(HALF, method).save(half / kind / split / f"{path.stem}.png")


def _trained(
    root: Path,
    images: Sequence[Path],
    steps: int,
    seed: int,
    start: Path | None = None,
    save: Path | None = None,
) -> float:
    """Returns the mIoU on val of a network after some steps on some images.

    Args:
        root: Folder of the data set.
        images: The images to train on.
        steps: Number of steps.
        seed: The seed of the run.
        start: Weights to start from, by default random ones.
        save: File for the weights.
    """
    options: dict[str, Any] = {"seed_everything": seed}
    options["data.train_transform.init_args.crop_size"] = [128, 128]
    if start:
        network = {"class_path": "segformer.Pretrained", "init_args": {"source": str(start)}}
        options["model.network"] = network
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("images", "labels"):  # a root whose training folder has these images only
            (Path(folder) / kind / "train").mkdir(parents=True)
            (Path(folder) / kind / "val").symlink_to(root / kind / "val")
            for image in images:
                target = Path(folder) / kind / "train" / image.name
                target.symlink_to(root / kind / "train" / image.name)
        recipe = _recipe(Path(folder), steps, {**options, "data.root": folder})
        recipe.trainer.fit(recipe.model, recipe.datamodule)
        model: SegmentationModel = recipe.model.network.eval()  # with the averaged weights
        if save:
            model.save(save)
        return evaluate(model, recipe.datamodule.val).miou


def main() -> None:
    parts: dict[str, Callable[[Any], None]] = {
        "maps": lambda options: maps(options.camvid),
        "faults": lambda options: faults(options.camvid, options.weights, options.seeds),
        "suggest": lambda options: suggestions(options.camvid, options.seeds),
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=parts)
    parser.add_argument("--camvid", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--weights", type=Path, help="network that examines the label maps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.part == "faults" and options.weights is None:
        parser.error("faults needs --weights, a network trained on CamVid")
    parts[options.part](options)


if __name__ == "__main__":
    main()
