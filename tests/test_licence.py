"""The licence that timm states for pretrained weights goes with what is made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open

from segformer import Pretrained, SegFormer, TimmBackbone
from segformer.deploy.description import LICENCE, Description
from segformer.evaluation.summary import summarize

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
