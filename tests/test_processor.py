"""``segformer predict --processor``, ``--protocol`` and ``--tta``.

The judges are transformers' own image processor, network and pipeline, and ``evaluate``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quick, tiny_peer, varied
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, SegformerForSemanticSegmentation, pipeline

from segformer import Classes, SegFormer
from segformer.checkpoint import read_processor
from segformer.cli import main as command
from segformer.data.images import read_image
from segformer.data.normalization import IMAGENET
from segformer.deploy import export
from segformer.evaluation import evaluate, find_protocol
from segformer.inference import ByProcessor, label_file
from segformer.inference.processor import prepared

TYPE = {"image_processor_type": "SegformerImageProcessor"}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": TYPE,
    "one number": {**TYPE, "size": 64},
    "height and width": {**TYPE, "size": {"height": 96, "width": 64}},
    "shortest edge": {**TYPE, "size": {"shortest_edge": 72}},
    "not square": {**TYPE, "size": 72, "default_to_square": False},
    "not resized": {**TYPE, "do_resize": False, "size": {"height": 96, "width": 64}},
    "nearest": {**TYPE, "size": 64, "resample": 0},
    "lanczos": {**TYPE, "size": 64, "resample": 1},
    "bicubic": {**TYPE, "size": 160, "resample": 3},
    "other statistics": {
        **TYPE,
        "size": 64,
        "rescale_factor": 1 / 127.5,
        "image_mean": [0.5, 0.4, 0.6],
        "image_std": [0.5, 0.25, 0.3],
    },
    "not normalised": {**TYPE, "size": 64, "do_normalize": False},
    "normalisation null": {**TYPE, "size": 64, "do_normalize": None},
    "not scaled": {**TYPE, "size": 64, "do_rescale": False, "image_mean": 100, "image_std": 58},
    "of version 4.20": {
        "feature_extractor_type": "SegformerFeatureExtractor",
        "reduce_labels": True,
        "size": 64,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_normalize": True,
        "do_resize": True,
        "resample": 2,
    },
    "of the PIL back end": {"image_processor_type": "SegformerImageProcessorPil", "size": 64},
}
SIZES = [(97, 131), (131, 97), (64, 64), (40, 300)]


def settings(folder: Path, **content: Any) -> Path:
    """Writes a ``preprocessor_config.json``; returns its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


def photograph(path: Path, height: int, width: int) -> Path:
    """Writes smooth colours with some noise, so that labels vary and interpolation shows."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels = (smooth + generator.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("content", SETTINGS.values(), ids=SETTINGS)
def test_images_are_prepared_as_by_transformers_bit_by_bit(
    content: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    settings(tmp_path, **content)
    path = photograph(tmp_path / "a.png", *size)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    with Image.open(path) as image:
        expected = theirs(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(prepared(read_processor(tmp_path), read_image(path)), expected)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers', with a small network whose labels vary."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = tiny_peer(id2label=dict(enumerate("abcde")))
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    torch.nn.init.zeros_(model.decode_head.classifier.bias)
    image = read_image(photograph(folder / "a.png", 128, 160))
    varied(model, model.decode_head.batch_norm, IMAGENET(image)[None]).save_pretrained(folder)
    return folder


def predict(weights: Path, image: Path, out: Path, *options: str) -> np.ndarray:
    """Returns the labels that the command writes."""
    command(["predict", str(weights), str(image), "--out", str(out), *options])
    with Image.open(out / f"{image.stem}.png") as labels:
        return np.array(labels)


@torch.inference_mode()
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["defaults", "one number", "shortest edge", "not resized"])
def test_labels_equal_those_of_transformers(
    name: str, size: tuple[int, int], checkpoint: Path, tmp_path: Path
) -> None:
    settings(checkpoint, **SETTINGS[name])
    path = photograph(tmp_path / "a.png", *size)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    with Image.open(path) as image:
        outputs = SegformerForSemanticSegmentation.from_pretrained(checkpoint)(
            **processor(image, return_tensors="pt")
        )
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
    labels = predict(checkpoint, path, tmp_path / "out", "--processor")
    assert np.array_equal(labels, expected.numpy())
    assert len(np.unique(labels)) > 1
    # A file of weights has the processor of its folder.
    again = predict(checkpoint / "model.safetensors", path, tmp_path / "again", "--processor")
    assert np.array_equal(again, labels)


@pytest.mark.filterwarnings("ignore")
def test_labels_equal_those_of_the_pipeline(checkpoint: Path, tmp_path: Path) -> None:
    settings(checkpoint, **SETTINGS["height and width"])
    path = photograph(tmp_path / "a.png", 97, 131)
    segments = pipeline("image-segmentation", str(checkpoint))(str(path), subtask="semantic")
    labels = predict(checkpoint, path, tmp_path / "out", "--processor")
    assert len(segments) == len(np.unique(labels)) > 1
    for segment in segments:
        assert np.array_equal(
            labels == "abcde".index(segment["label"]), np.array(segment["mask"]) == 255
        )


def test_a_written_folder_is_read_as_transformers_reads_it(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model", "huggingface")
    path = photograph(tmp_path / "a.png", 97, 131)
    processor = read_processor(tmp_path / "model")
    assert processor.size == (512, 512)
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "model")
    with Image.open(path) as image:
        expected = theirs(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(prepared(processor, read_image(path)), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type is 'ViTImageProc"),
        ({"feature_extractor_type": "DeiTFeatureExtractor"}, "feature_extractor_type is 'DeiT"),
        ({"auto_map": {"AutoImageProcessor": "x.Y"}}, "auto_map=.*names code of its own"),
        ({"do_center_crop": True}, "do_center_crop=True is no step"),
        ({"do_pad": True, "size_divisor": 32}, "do_pad=True is no step"),
        ({"size": {"longest_edge": 64}}, r"size=\{'longest_edge': 64\} is none of"),
        ({"size": {"shortest_edge": 64, "longest_edge": 99}}, "'longest_edge': 99.* is none of"),
        ({"size": {"height": 64}}, r"size=\{'height': 64\} is none of"),
        ({"size": [64, 80]}, r"size=\[64, 80\] is none of"),
        ({"size": None}, "size=None is none of"),
        ({"size": {"height": 64.5, "width": 64}}, r"size=\(64.5, 64\) must have lengths"),
        ({"size": 0}, r"size=\(0, 0\) must have lengths"),
        ({"size": {"shortest_edge": -3}}, "size=-3 must have lengths"),
        ({"resample": 4}, "resample=4 must be one of 0 .nearest., 1 .Lanczos."),
        ({"resample": None}, "resample=None must be one of"),
        ({"image_std": [0.0, 1, 1]}, "must be greater than 0"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_known_is_refused_by_name(
    content: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    settings(tmp_path / "copy", **{**TYPE, **content})
    path = photograph(tmp_path / "a.png", 40, 50)
    with pytest.raises(
        SystemExit, match=rf"preprocessor_config.json' cannot be obeyed: .*{message}"
    ):
        predict(tmp_path / "copy", path, tmp_path / "out", "--processor")
    assert not (tmp_path / "out").exists()


def test_steps_that_are_off_and_those_of_label_maps_change_nothing(tmp_path: Path) -> None:
    plain = read_processor(settings(tmp_path / "a", **TYPE, size=64))
    more = {"do_center_crop": False, "do_pad": None, "do_reduce_labels": True, "crop_size": 32}
    assert read_processor(settings(tmp_path / "b", **TYPE, size=64, **more)) == plain


def test_a_checkpoint_without_a_processor_is_refused_with_the_cure(
    tiny: SegFormer, tmp_path: Path
) -> None:
    path = photograph(tmp_path / "a.png", 40, 50)
    tiny.save(tmp_path / "tiny.safetensors")
    with pytest.raises(SystemExit, match=r"no preprocessor_config.json in .*copy the checkpoint's"):
        predict(tmp_path / "tiny.safetensors", path, tmp_path / "out", "--processor")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(SystemExit, match=r"preprocessor_config.json' is not valid JSON"):
        predict(tmp_path / "tiny.safetensors", path, tmp_path / "out", "--processor")


@pytest.mark.parametrize("output", ["labels", "logits"])
def test_an_exported_file_with_a_size_input_has_the_labels_of_its_model(
    output: str, tmp_path: Path
) -> None:
    settings(tmp_path, **SETTINGS["height and width"])
    path = photograph(tmp_path / "a.png", 97, 131)
    model = quick(5)
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    torch.nn.init.zeros_(model.decode_head.classifier.bias)
    varied(model, model.decode_head.norm, IMAGENET(read_image(path))[None])
    expected = ByProcessor(read_processor(tmp_path)).labels(model, read_image(path))
    export(model, tmp_path / "model.pt2", output=output, takes_size=True)
    labels = predict(tmp_path / "model.pt2", path, tmp_path / "exported", "--processor")
    assert np.array_equal(labels, expected)
    assert len(np.unique(labels)) > 1


@pytest.mark.parametrize(
    ("size", "takes_size", "message"),
    [
        (None, False, "cannot interpolate its stride-4 logits .*--size-input"),
        ((64, 64), True, "of 96×64 pixels, and this file takes 64×64 only"),
    ],
)
def test_an_exported_file_that_does_not_fit_the_processor_is_refused(
    size: tuple[int, int] | None, takes_size: bool, message: str, tmp_path: Path
) -> None:
    settings(tmp_path, **SETTINGS["height and width"])
    file = SimpleNamespace(normalization=IMAGENET, min_size=32, size=size, takes_size=takes_size)
    with pytest.raises(ValueError, match=message):
        ByProcessor(read_processor(tmp_path)).check(file)


def test_a_processor_of_another_normalization_is_refused(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.save(tmp_path / "tiny.safetensors")
    settings(tmp_path, **SETTINGS["other statistics"])
    path = photograph(tmp_path / "a.png", 40, 50)
    with pytest.raises(SystemExit, match=r"the processor's normalization is .*, the model's"):
        predict(tmp_path / "tiny.safetensors", path, tmp_path / "out", "--processor")


def test_images_below_the_networks_smallest_size_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    settings(checkpoint, **TYPE, do_resize=False)
    path = photograph(tmp_path / "a.png", 20, 50)
    with pytest.raises(SystemExit, match="images of 20×50 pixels, and the model takes 32×32"):
        predict(checkpoint, path, tmp_path / "out", "--processor")


def test_label_file_takes_a_labeller(checkpoint: Path, tmp_path: Path) -> None:
    settings(checkpoint, **SETTINGS["one number"])
    path = photograph(tmp_path / "a.png", 97, 131)
    labeller = ByProcessor(read_processor(checkpoint))
    _, labels = label_file(SegFormer.from_pretrained(checkpoint), path, labeller)
    assert np.array_equal(labels, predict(checkpoint, path, tmp_path / "out", "--processor"))


class One(list[tuple[Tensor, Tensor]]):
    classes = Classes.of_logits(5)


@pytest.mark.parametrize(("name", "tta"), [("whole", True), ("ade20k", False)])
def test_the_labels_of_a_protocol_are_those_that_evaluate_measures(
    name: str, tta: bool, checkpoint: Path, tmp_path: Path
) -> None:
    path = photograph(tmp_path / "a.png", 60, 90)
    options = ["--protocol", name, *(["--tta"] if tta else [])]
    labels = predict(checkpoint, path, tmp_path / "out", *options)
    assert len(np.unique(labels)) > 1
    pair = (read_image(path), torch.from_numpy(labels))
    model = SegFormer.from_pretrained(checkpoint)
    assert evaluate(model, One([pair]), find_protocol(name, tta)).pixel_accuracy == 1
    assert evaluate(model, One([pair])).pixel_accuracy < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slide", "64", "48", "--protocol", "whole"], "--slide and --protocol each say how"),
        (["--slide", "64", "48", "--processor"], "--slide and --processor each say how"),
        (["--protocol", "whole", "--processor"], "--protocol and --processor each say how"),
        (["--tta"], "--tta needs a --protocol, which has its ratios"),
        (["--protocol", "ade"], "unknown protocol 'ade'; choose one of whole, aligned, slide"),
    ],
    ids=str,
)
def test_contradictions_are_refused_before_anything_is_read(
    options: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        predict(tmp_path / "none", tmp_path / "none.png", tmp_path / "out", *options)


@pytest.mark.parametrize("options", [["--protocol", "ade20k"], ["--processor"]], ids=str)
def test_an_array_is_labelled_in_windows_only(
    options: list[str], checkpoint: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((40, 50, 3), np.uint8))
    settings(checkpoint, **TYPE)
    with pytest.raises(SystemExit, match=r"a.npy' is labelled in windows.* label it by itself"):
        predict(checkpoint, tmp_path / "a.npy", tmp_path / "out", *options)
