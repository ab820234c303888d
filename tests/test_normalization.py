"""The normalization of images is saved with the weights, and every command uses it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, randomized, tiny_peer, varied
from halves import Halves, halves, quiet_trainer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2
from transformers import (
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from segformer import SETR, SegFormer, TimmBackbone
from segformer.data.normalization import IMAGENET, Normalization
from segformer.data.transforms import Normalize, normalizers
from segformer.evaluation import Slide, evaluate
from segformer.inference import InWindows, WholeImages, label_file
from segformer.train.last_steps import LastSteps

OTHER = Normalization((0.5, 0.4, 0.6), (0.5, 0.25, 0.3), 1 / 127.5)
PROCESSORS: dict[str, dict[str, Any]] = {
    "mean and std": {"image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.25, 0.3]},
    "one number for all": {"image_mean": 0.5, "image_std": 0.25},
    "another scale": {"rescale_factor": 1 / 127.5},
    "no normalisation": {"do_normalize": False},
    "no scale": {"do_rescale": False, "image_mean": [124, 116, 104], "image_std": [58, 57, 57]},
}


def peer() -> SegformerForSemanticSegmentation:
    model = tiny_peer(num_labels=5)
    torch.nn.init.normal_(model.decode_head.classifier.weight)  # so that several classes occur
    torch.nn.init.zeros_(model.decode_head.classifier.bias)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("settings", PROCESSORS.values(), ids=PROCESSORS)
def test_labels_equal_those_of_transformers(
    settings: dict[str, Any],
    nested: bool,
    tmp_path: Path,
) -> None:
    model, processor = peer(), SegformerImageProcessor(do_resize=False, **settings)
    processor.save_pretrained(tmp_path)
    if nested:  # as transformers 5 writes it
        own = tmp_path / "preprocessor_config.json"
        content = {"image_processor": json.loads(own.read_text())}
        (tmp_path / "processor_config.json").write_text(json.dumps(content))
        own.write_text("{}")
    blocks = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    pixels = blocks.repeat(16, 0).repeat(16, 1)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    inputs = processor(pixels, return_tensors="pt")
    varied(model, model.decode_head.batch_norm, inputs.pixel_values)
    model.save_pretrained(tmp_path)
    outputs = model(**inputs)
    expected = processor.post_process_semantic_segmentation(outputs, [(80, 96)])[0]
    _, labels = label_file(SegFormer.from_pretrained(tmp_path), tmp_path / "image.png")
    assert (labels == expected.numpy()).all()
    assert expected.unique().numel() > 1


def test_a_folder_without_a_preprocessor_has_imagenets_normalization(tmp_path: Path) -> None:
    peer().save_pretrained(tmp_path)
    assert SegFormer.from_pretrained(tmp_path).normalization == IMAGENET


@torch.inference_mode()
def test_transformers_uses_the_normalization_of_a_written_folder(tmp_path: Path) -> None:
    model = SegFormer(TINY, num_classes=5, normalization=OTHER)
    model.save(tmp_path / "model", "huggingface")
    image = torch.randint(0, 256, (3, 512, 512), dtype=torch.uint8)
    theirs = SegformerImageProcessor.from_pretrained(tmp_path / "model")(image, return_tensors="pt")
    torch.testing.assert_close(theirs.pixel_values[0], OTHER(image), rtol=0, atol=1e-5)
    assert SegFormer.from_pretrained(tmp_path / "model").normalization == OTHER


def test_it_is_saved_and_files_of_version_0_1_0_have_imagenets(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    SegFormer(TINY, num_classes=5, normalization=OTHER).save(path)
    assert SegFormer.from_pretrained(path).normalization == OTHER
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["segformer"])
    del description["normalization"]
    save_file(load_file(path), path, {"segformer": json.dumps(description)})
    assert SegFormer.from_pretrained(path).normalization == IMAGENET


def test_additional_channels_have_the_mean_of_all_channels_as_in_timm(tmp_path: Path) -> None:
    from timm.data.loader import adapt_to_chs

    path = tmp_path / "model.safetensors"
    SegFormer(TINY, num_classes=5, normalization=OTHER).save(path)
    for channels in (1, 4):
        normalization = SegFormer.from_pretrained(path, in_channels=channels).normalization
        assert normalization.mean == pytest.approx(adapt_to_chs(OTHER.mean, channels))
        assert normalization.std == pytest.approx(adapt_to_chs(OTHER.std, channels))
        assert normalization.scale == OTHER.scale


def test_a_layout_without_place_for_it_warns(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = SegFormer("b0", num_classes=2)
    model.save(tmp_path / "b0.pth", "nvidia")
    assert "normalization" not in caplog.text
    model.normalization = OTHER
    model.save(tmp_path / "b0.pth", "nvidia")
    assert "the nvidia layout has no place for the normalization" in caplog.text


@torch.inference_mode()
def test_prediction_windows_and_evaluation_use_the_models_normalization(tmp_path: Path) -> None:
    data = Halves(2)
    image, label = data[0]
    model = randomized(SegFormer(TINY, num_classes=2, normalization=OTHER))
    images = torch.stack([OTHER(image), IMAGENET(image)])
    varied(model, model.decode_head.norm, images)
    expected = model.predict(OTHER(image)[None])[0]
    assert not torch.equal(expected, model.predict(IMAGENET(image)[None])[0])
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    for slide in (None, Slide((40, 47), (40, 47))):
        wide = (
            model(OTHER(image)[None]) if slide is None else slide.logits(model, OTHER(image)[None])
        )
        labeller = WholeImages() if slide is None else InWindows(slide)
        _, labels = label_file(model, tmp_path / "image.png", labeller)
        assert (labels == wide[0].argmax(0).numpy()).all()
    one = [(image, label)]
    scores = evaluate(model, type("Data", (list,), {"classes": data.classes})(one))
    right = (expected == label)[label != 255].double().mean()
    assert float(scores.pixel_accuracy) == pytest.approx(float(right), abs=1e-6)


def test_fit_uses_the_networks_normalization(tmp_path: Path) -> None:
    from segformer.train.task import SegmentationTask

    data = halves()
    task = SegmentationTask(SegFormer(TINY, num_classes=2, normalization=OTHER))
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=1, num_sanity_val_steps=0).fit(
        task, data
    )
    assert [part.normalization for part in normalizers(data.train_transform)] == [OTHER]
    ((images, _),) = next(iter(data.val_dataloader()))  # one pair for each size
    torch.testing.assert_close(images[0], OTHER(data.val[0][0]), rtol=0, atol=0)


def test_a_training_transform_without_normalize_warns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = halves()
    data.train_transform = v2.Identity()
    data.normalize_as(IMAGENET)
    assert not caplog.text
    data.normalize_as(OTHER)
    assert "has no segformer.data.transforms.Normalize;" in caplog.text
    data.train_transform = v2.Compose([v2.RandomApply([Normalize()])])
    data.normalize_as(OTHER)
    assert next(normalizers(data.train_transform)).normalization == OTHER
    caplog.clear()
    data.last_steps = LastSteps(v2.Identity())
    data.normalize_as(OTHER)
    assert "but data.last_steps.transform has no segf" in caplog.text
    assert "data.train_transform" not in caplog.text


def test_timms_pretrained_weights_have_timms_mean_and_std(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_384").state_dict(), tmp_path / "vit.pth")
    overlay = {"file": str(tmp_path / "vit.pth")}
    backbone = TimmBackbone("vit_tiny_patch16_384", pretrained=True, pretrained_cfg_overlay=overlay)
    config = timm.get_pretrained_cfg("vit_tiny_patch16_384")
    expected = Normalization(config.mean, config.std)
    assert expected != IMAGENET
    model = SegFormer(backbone, num_classes=2, decoder_channels=8)
    assert model.normalization == expected
    model.save(tmp_path / "model.safetensors")
    assert SegFormer.from_pretrained(tmp_path / "model.safetensors").normalization == expected
    assert SETR("tiny", 2).normalization == IMAGENET


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_std": [0.0, 1, 1]}, "must be greater than 0"),
        ({"image_mean": [0.5, 0.5]}, "must have one value for each channel"),
        ({"image_mean": ["a", "b", "c"]}, "could not convert string to float"),
        ({"rescale_factor": float("nan")}, "must be finite"),
    ],
)
def test_a_broken_preprocessor_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    peer().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(change))
    with pytest.raises(ValueError, match=f"configuration beside .* is wrong: .*{message}"):
        SegFormer.from_pretrained(tmp_path)


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="a normalization of 3 channels for a model that takes 4"):
        SegFormer(TINY, num_classes=2, in_channels=4, normalization=OTHER)
    with pytest.raises(ValueError, match="an image of 4 channels, to be normalised"):
        OTHER(torch.zeros(4, 8, 8, dtype=torch.uint8))


def test_loading_weights_of_another_normalization_warns(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    SegFormer(TINY, num_classes=2, normalization=OTHER).save(tmp_path / "model.safetensors")
    model = SegFormer(TINY, num_classes=2)
    with caplog.at_level(logging.WARNING, "segformer"):
        model.load_weights(tmp_path / "model.safetensors")
    assert "normalization=Normalization(mean=(0.5, 0.4, 0.6)" in caplog.text
    model.normalization = OTHER
    caplog.clear()
    model.load_weights(tmp_path / "model.safetensors")
    assert not caplog.text
