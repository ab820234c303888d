"""The licence that timm states for pretrained weights goes with what is made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)

from segformer import Pretrained, SegFormer, TimmBackbone
from segformer.checkpoint import NVIDIA_LICENCE, metadata_of
from segformer.deploy.description import LICENCE, Description
from segformer.evaluation.summary import summarize
from segformer.timm_models import TimmClassifier

NAME = "mobilenetv3_small_050"


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch) -> SegFormer:
    """A network with weights of timm's, whose download is left out."""
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **options: None)
    backbone = TimmBackbone(NAME, pretrained=True)
    return SegFormer(backbone, num_classes=2, decoder_channels=8)


def test_it_is_carried_from_timm_through_a_fine_tuned_file_to_an_export(
    downloaded: SegFormer, tmp_path: Path
) -> None:
    stated: Any = timm.get_pretrained_cfg(NAME)
    expected = f"{stated.license} (timm's {NAME}.{stated.tag})"
    assert stated.license == "apache-2.0"
    downloaded.save(tmp_path / "first.safetensors")
    tuned = Pretrained(str(tmp_path / "first.safetensors"), num_classes=3)  # as in a YAML
    tuned.save(tmp_path / "second.safetensors")
    with safe_open(tmp_path / "second.safetensors", "pt") as file:
        assert json.loads(file.metadata()["segformer"])["licence"] == expected
    again = SegFormer.from_pretrained(tmp_path / "second.safetensors")
    assert again.licence == expected
    assert Description.of(again).licence == expected
    assert f"licence        {expected}" in summarize(tmp_path / "second.safetensors")


def test_other_layouts_keep_it_where_they_have_a_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = SegFormer("b0", num_classes=2)
    model.licence = "of this test"
    for layout, name in (
        ("huggingface", "folder"),
        ("nvidia", "nvidia.pth"),
        ("nvidia", "nvidia.safetensors"),
        ("smp", "smp.safetensors"),
    ):
        model.save(tmp_path / name, layout)
        assert SegFormer.from_pretrained(tmp_path / name).licence == "of this test", name
    assert "licence" not in caplog.text
    SegformerForSemanticSegmentation.from_pretrained(tmp_path / "folder")  # their own reader
    model.save(tmp_path / "smp.pth", "smp")
    assert "no place for the licence 'of this test' in a .pth file" in caplog.text


def test_a_pretrained_classifier_passes_it_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **options: None)
    classifier = TimmClassifier("mit_b0", num_classes=2, pretrained=True)
    assert classifier.licence == TimmBackbone("mit_b0", pretrained=True).licence is not None
    assert TimmClassifier("mit_b0", num_classes=2).licence is None
    path = tmp_path / "model.safetensors"
    save_file(classifier.model.state_dict(), path, metadata_of(classifier))
    assert SegFormer.from_pretrained(path, num_classes=3).licence == classifier.licence


def test_it_is_not_invented(tmp_path: Path) -> None:
    """For random weights, and for a file of somebody's own."""
    model = SegFormer(TimmBackbone(NAME), num_classes=2, decoder_channels=8)
    assert model.licence is None
    model.save(tmp_path / "random.safetensors")
    assert SegFormer.from_pretrained(tmp_path / "random.safetensors").licence is None
    assert Description.of(model).licence == LICENCE
    assert "licence        not stated" in summarize(tmp_path / "random.safetensors")
    torch.save(timm.create_model(NAME).state_dict(), tmp_path / "own.pth")
    overlay = {"file": str(tmp_path / "own.pth")}
    assert TimmBackbone(NAME, pretrained=True, pretrained_cfg_overlay=overlay).licence is None
    overlay["license"] = "cc0-1.0"
    own = TimmBackbone(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
    assert own.licence == "cc0-1.0"


@pytest.mark.parametrize(
    ("options", "licence"),
    [
        ({"pretrained_cfg_overlay": {"hf_hub_id": "somebody/weights"}}, None),
        ({"pretrained_cfg_overlay": {"url": "https://example.org/weights.pth"}}, None),
        ({"pretrained_cfg_overlay": {"hf_hub_id": "a/b", "license": "mit"}}, "mit"),
        ({"pretrained_cfg": {"url": "https://example.org/weights.pth"}}, None),
        ({"pretrained_cfg": {"url": "https://example.org/a.pth", "license": "mit"}}, "mit"),
        ({"checkpoint_path": "own.pth"}, None),
        ({"pretrained_cfg": "lamb_in1k"}, f"apache-2.0 (timm's {NAME}.lamb_in1k)"),
    ],
)
def test_weights_of_others_do_not_get_timms(
    options: dict[str, Any], licence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **options: None)
    monkeypatch.setattr("timm.models._factory.load_checkpoint", lambda *args: None)
    assert TimmBackbone(NAME, pretrained=True, **options).licence == licence


@pytest.mark.parametrize("has_head", [True, False])
def test_nvidias_is_stated_for_weights_from_its_repositories(
    has_head: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the same files on the disk states nothing."""
    config = SegformerConfig(num_labels=3)
    kind = SegformerForSemanticSegmentation if has_head else SegformerForImageClassification
    kind(config).save_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: tmp_path)
    tuned = Pretrained("nvidia/mit-b0", num_classes=2)
    assert tuned.licence == NVIDIA_LICENCE
    tuned.save(tmp_path / "tuned.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "tuned.safetensors")
    assert again.licence == NVIDIA_LICENCE
    assert f"licence        {NVIDIA_LICENCE}" in summarize("nvidia/mit-b0")
    assert Pretrained("somebody/mit-b0", num_classes=2).licence is None
    assert Pretrained(str(tmp_path / "model.safetensors"), num_classes=2).licence is None
    assert "licence        not stated" in summarize(tmp_path / "model.safetensors")


def test_weights_that_a_model_loads_bring_theirs(downloaded: SegFormer, tmp_path: Path) -> None:
    downloaded.save(tmp_path / "model.safetensors")
    model = SegFormer(TimmBackbone(NAME), num_classes=2, decoder_channels=8)
    model.load_weights(tmp_path / "model.safetensors")
    assert model.licence == downloaded.licence is not None
    SegFormer(TimmBackbone(NAME), num_classes=2, decoder_channels=8).save(
        tmp_path / "own.safetensors"
    )
    downloaded.load_weights(tmp_path / "own.safetensors")
    assert downloaded.licence is None
