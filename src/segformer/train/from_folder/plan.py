"""From a folder of images and label maps to the config of a run."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from segformer.data.bands import SPLIT, Bands
from segformer.data.classes import Classes
from segformer.data.complete import complete
from segformer.data.datasets import FolderDataset, refuse_options
from segformer.data.rasters import RasterDataset, parts_of, statistics_of
from segformer.train.data import SPLIT_NAMES
from segformer.train.folders import CSV
from segformer.train.from_folder import recipe
from segformer.train.from_folder.annotated import find_annotated, survey_annotations
from segformer.train.from_folder.arrangement import Arrangement, Pair, find
from segformer.train.from_folder.class_names import find_named_classes
from segformer.train.from_folder.kinds import Images, survey_images
from segformer.train.from_folder.label_values import read_label_maps
from segformer.train.from_folder.labelling import Labelling, labelling
from segformer.train.from_folder.options import Options, with_option
from segformer.train.from_folder.splits import divided

RUNS = "runs"  # folder of all runs
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".h5", ".npz")
OF_MAPS = ("ignore_index", "label_map")  # settings of the data that belong to label maps
CONSUMED = tuple(f"data.{key}" for key in (*OF_MAPS, "class_map"))  # by the labelling


@dataclass(frozen=True)
class Plan:
    """The config of a run, and what was found in its folder.

    Args:
        settings: The content of the YAML file.
        lists: Pairs of each split that are written beside it, for a folder without splits.
        decisions: One sentence for each decision.
    """

    settings: dict[str, Any]
    lists: dict[str, list[Pair]]
    decisions: list[str]

    def write(self, path: Path) -> None:
        """Writes the YAML file, and the lists of its splits beside it.

        Raises:
            FileExistsError: If a file exists with another content.
        """
        settings, texts = self.settings, {}
        for split, pairs in self.lists.items():
            name = path.with_name(f"{path.stem}_{split}.csv").absolute()
            settings = with_option(settings, f"data.{split}", str(name))
            texts[name] = _table(pairs)
        lines = ["What segformer fit found in the folder, and chose:", *self.decisions]
        header = "".join(f"{_comment(line)}\n" for line in lines)
        body = yaml.safe_dump(
            settings, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
        )
        texts[path] = f"{header}{body}"
        for name, text in texts.items():
            if name.exists() and name.read_text(encoding="utf-8") != text:
                raise FileExistsError(f"{str(name)!r} exists; give another --out, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with complete(name) as partial:
                partial.write_text(text, encoding="utf-8")


def _comment(sentence: str) -> str:
    return textwrap.fill(sentence, 98, initial_indent="# ", subsequent_indent="#   ")


def _table(pairs: Sequence[Pair]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("image", "label"), *((pair.image, pair.label) for pair in pairs)])
    return text.getvalue()


def make_plan(options: Options) -> Plan:
    """Returns the config of a run on a folder.

    Raises:
        FileNotFoundError: If there is no such folder, no image in it, or no file of weights.
        ValueError: If the folder can be read in more than one way.
    """
    _check_weights(options.weights)
    found = _found(options.folder)
    pairs, decisions = divided(found, options)
    files = [
        (options.folder / pair.image, options.folder / pair.label)
        for split in pairs.values()
        for pair in split
    ]
    classes, images, sizes = _surveyed(found, files, options)
    situation = _situation(options, classes, images, pairs["train"], sizes)
    sentences = [
        *found.decisions,
        *decisions,
        *classes.decisions,
        f"{images.summary}; {_sizes(sizes)}",
    ]
    data, lists = _data(found, pairs, classes, images)
    data["init_args"].update(recipe.data_settings(situation))
    if images.bands is not None:
        bands, more = _band_settings(options, images.bands, pairs["train"])
        data["init_args"].update(bands)
        sentences += more
    sentences += recipe.decisions(situation)
    settings = {"seed_everything": 0, "data": data, **recipe.settings(situation)}
    settings["trainer"]["logger"] = {
        "class_path": CSV,
        "init_args": {"save_dir": RUNS, "name": options.folder.resolve().name or "folder"},
    }
    for key, value in options.settings.items():
        if key not in CONSUMED:
            settings = with_option(settings, key, value)
    return Plan(settings, lists, sentences)


def _found(folder: Path) -> Arrangement:
    """Returns the images of a folder and their label maps, or else their annotations."""
    try:
        return find(folder)
    except ValueError:
        annotated = find_annotated(folder)
        if annotated is None:
            raise
        return annotated


def _surveyed(
    found: Arrangement, files: list[tuple[Path, Path]], options: Options
) -> tuple[Labelling, Images, Counter[tuple[int, int]]]:
    """Returns the classes, the kind of the images, and the number of images of each size."""
    settings = options.settings
    bands = _given_bands(settings)
    of_maps = {key: settings.get(f"data.{key}") for key in OF_MAPS}
    if found.is_annotated:
        refuse_options("annotations", **of_maps)
        classes, of_image = survey_annotations(
            found,
            files,
            settings.get("data.unlabelled"),
            settings.get("data.invalid_polygons", "refuse"),
            settings.get("data.class_map"),
        )
        images = survey_images([(image, image) for image, _ in files], of_image, bands)
        return classes, images, Counter(of_image.values())
    refuse_options("label maps", class_map=settings.get("data.class_map"))
    maps = read_label_maps([label for _, label in files])
    images = survey_images(files, maps.sizes, bands)
    classes = labelling(
        maps,
        find_named_classes(options.folder),
        **of_maps,
    )
    return classes, images, Counter(maps.sizes.values())


def _check_weights(weights: str | None) -> None:
    """Raises FileNotFoundError if weights that look like a file do not exist."""
    if weights and Path(weights).suffix in WEIGHTS_SUFFIXES and not Path(weights).exists():
        raise FileNotFoundError(f"--weights {weights}: there is no such file")


def _situation(
    options: Options,
    classes: Labelling,
    images: Images,
    train: Sequence[Pair],
    sizes: Counter[tuple[int, int]],
) -> recipe.Situation:
    every = list(sizes.elements())
    situation = recipe.Situation(
        images=len(train),
        size=(int(median(height for height, _ in every)), int(median(width for _, width in every))),
        longest=max(max(size) for size in every),
        classes=classes.classes,
        pixels=classes.pixels,
        on_gpu=torch.cuda.is_available() and options.settings.get("trainer.accelerator") != "cpu",
        cores=torch.get_num_threads(),
        weights=options.weights,
        variant=options.variant or "b0",
        augmentation=images.augmentation if images.bands else None,
        given=options.settings,
    )
    if images.bands is None or situation.tile is None:
        return situation
    paths = (options.folder / pair.image for pair in train)
    parts = [part for path in paths for part in parts_of(images.bands, path, situation.tile)]
    return replace(situation, images=len(parts))


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    """Returns the most frequent sizes of the images."""
    of_sizes = [f"{count} of {height}×{width}" for (height, width), count in sizes.most_common(3)]
    more = f", … ({len(sizes)} sizes)" if len(sizes) > 3 else ""
    return f"{', '.join(of_sizes)}{more}"


def _given_bands(given: Mapping[str, Any]) -> Bands | None:
    """Returns the bands that the user chose, None without a choice."""
    settings: dict[str, Any] = {}
    for key, value in given.items():
        if key.startswith("data.bands"):
            settings = with_option(settings, key.removeprefix("data."), value)
    return Bands(**settings["bands"]) if settings.get("bands") is not None else None


def _band_settings(
    options: Options, bands: Bands, train: Sequence[Pair]
) -> tuple[dict[str, Any], list[str]]:
    """Returns the settings of images of any bands, and one sentence for each decision."""
    chosen = {k: v for k, v in asdict(bands).items() if v != getattr(Bands(), k)}
    settings: dict[str, Any] = {"bands": chosen}
    if any(key.startswith("data.normalization") for key in options.settings):
        return settings, []
    paths = (options.folder / pair.image for pair in train)
    parts = [part for path in paths for part in parts_of(bands, path, recipe.TILE)]
    statistics = statistics_of(bands, parts)
    shown = "; ".join(
        f"{bands.names[k] if bands.names else k + 1}: {mean:.6g} ± {std:.6g}"
        for k, (mean, std) in enumerate(zip(statistics.mean, statistics.std, strict=True))
    )
    settings["normalization"] = replace(statistics, bands=None).to_dict()
    with_lists = json.loads(json.dumps(settings))  # YAML has no tuples
    return with_lists, [f"mean and deviation of band {shown}"]


def _data(
    found: Arrangement, pairs: Mapping[str, list[Pair]], classes: Labelling, images: Images
) -> tuple[dict[str, Any], dict[str, list[Pair]]]:
    """Returns the settings of the data, and the lists that they need beside them.

    The patterns of :class:`~segformer.train.data.FolderData` are used if they read the same pairs.
    """
    root = str(found.root.absolute())
    named: dict[str, Any] = {"names": list(classes.classes.names)}
    if classes.classes != Classes(classes.classes.names):
        named["colors"] = [list(color) for color in classes.classes.colors]
    by_pattern = found.patterns is not None and _reads_the_same(found, pairs, classes, images)
    kind = "FolderData" if by_pattern else "ListedData"
    patterns = found.patterns or {} if by_pattern else {}
    options = {"root": root, "classes": named, **classes.options}
    options |= {key: value for key, value in patterns.items() if value}
    lists = {} if by_pattern else dict(pairs)
    return {"class_path": f"segformer.train.data.{kind}", "init_args": options}, lists


def _reads_the_same(
    found: Arrangement, pairs: Mapping[str, list[Pair]], classes: Labelling, images: Images
) -> bool:
    """Returns whether FolderData reads the pairs of the splits by the arrangement's patterns."""
    patterns = dict(found.patterns or {})
    dataset = RasterDataset if images.bands else FolderDataset
    if pairs.keys() != found.pairs.keys() or pairs != found.pairs:
        return False
    for split, words in SPLIT_NAMES.items():
        folders = [word for word in words if _folder(found, "images", word).is_dir()]
        if len(folders) != (split in pairs):
            return False
        if not folders:
            continue
        try:
            read = dataset(
                _folder(found, "images", folders[0]),
                _folder(found, "labels", folders[0]),
                classes.classes,
                image_suffix=patterns["image_suffix"],
                label_suffix=patterns["label_suffix"],
            )
        except (OSError, ValueError):
            return False
        own = {(found.root / pair.image, found.root / pair.label) for pair in pairs[split]}
        if set(read.pairs) != own:
            return False
    return True


def _folder(found: Arrangement, kind: str, word: str) -> Path:
    assert found.patterns is not None
    return found.root / found.patterns[kind].replace(SPLIT, word)
