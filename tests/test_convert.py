from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import randomized
from torch.utils.flop_counter import FlopCounterMode

from segformer import VARIANTS, Classes, SegFormer
from segformer.cli import main
from segformer.evaluation.multiply_adds import multiply_adds


def segformer(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr("sys.argv", ["segformer", *args])
    main()


# Billions at 512² (B5: 640²) with 150 classes, if the head composes F_i W_i at every level; the
# model computes slightly less.
@pytest.mark.parametrize(
    ("variant", "billions"), list(zip(VARIANTS, (4.1, 11.7, 24.3, 40.9, 57.5, 123.3), strict=True))
)
def test_multiply_adds(variant: str, billions: float) -> None:
    size = 640 if variant == "b5" else 512
    with torch.device("meta"):
        model = SegFormer(variant, num_classes=150)
    assert multiply_adds(model, size, size) / 1e9 == pytest.approx(billions, abs=0.2)


# Billions in the paper's table 1 (b0 to b5). Modules with hooks compute the head as the paper does.
@pytest.mark.parametrize(
    ("variant", "billions"), list(zip(VARIANTS, (8.4, 15.9, 62.4, 79.0, 95.7, 183.3), strict=True))
)
def test_with_hooks_the_count_is_the_papers(variant: str, billions: float) -> None:
    size = 640 if variant == "b5" else 512
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        SegFormer(variant, num_classes=150).eval()(torch.empty(1, 3, size, size))
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, abs=0.2)


def test_inspect_prints_the_content_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = SegFormer("b0", classes=Classes(["road", "sky"]))
    model.save(tmp_path / "b0.pth", "nvidia")
    content = torch.load(tmp_path / "b0.pth", weights_only=True)
    content["state_dict"]["decode_head.conv_seg.weight"] = torch.zeros(2, 128, 1, 1)
    torch.save(content, tmp_path / "b0.pth")
    segformer(monkeypatch, "inspect", str(tmp_path / "b0.pth"))
    message = " ".join(capsys.readouterr().out.split())
    parameters = sum(p.numel() for p in model.parameters())
    for row in (
        "layout nvidia variant b0 decode head AllMLPHead, 256 channels image channels 3 "
        "classes 2: road, sky",
        f"parameters {parameters:,} (torch.float32) multiply-adds 7.8 G at 512×512, "
        "3.5 G by the faster implementations",
        "numerics norm_eps=1e-06, embed_norm_eps=1e-05, act=gelu, batch_norm_eps=1e-05, "
        "align_corners=False",
        "dropped decode_head.conv_seg.weight: mmsegmentation's default classifier",
    ):
        assert row in message


def test_inspect_prints_the_content_of_a_backbone_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(SegFormer("b0").backbone.state_dict(), tmp_path / "mit_b0.pth")
    segformer(monkeypatch, "inspect", str(tmp_path / "mit_b0.pth"))
    message = capsys.readouterr().out
    assert "decode head    none" in message
    assert "3,319,392" in message  # the published count of the encoder


def test_convert_writes_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = randomized(SegFormer("b0", num_classes=3))
    model.save(tmp_path / "b0.safetensors")
    paths = [
        str(tmp_path / name)
        for name in ("b0.safetensors", "b0.pth", "b0_smp.pth", "b0_hf", "back.safetensors")
    ]
    for source, target, layout in zip(
        paths[:-1], paths[1:], ("nvidia", "smp", "huggingface", "native"), strict=True
    ):
        segformer(monkeypatch, "convert", source, target, "--layout", layout)
    assert "back.safetensors: native layout" in capsys.readouterr().out
    torch.testing.assert_close(
        SegFormer.from_pretrained(paths[-1]).state_dict(), model.state_dict(), rtol=0, atol=0
    )


def test_convert_adapts_sizes_and_takes_the_source_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SegFormer("b0", num_classes=3).save(tmp_path / "b0.pth", "nvidia")
    source, target = str(tmp_path / "b0.pth"), str(tmp_path / "b0.safetensors")
    segformer(
        monkeypatch,
        "convert",
        source,
        target,
        "--source-layout",
        "bubbliiiing",
        "--num-classes",
        "7",
        "--in-channels",
        "4",
    )
    model = SegFormer.from_pretrained(target)
    assert model.align_corners
    assert (model.num_classes, model.backbone.in_channels) == (7, 4)
    assert model.backbone.config["act"] == "gelu_tanh"


def test_convert_keeps_a_file_unless_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = str(tmp_path / "b0.pth"), str(tmp_path / "b0.safetensors")
    SegFormer("b0", num_classes=3).save(source, "nvidia")
    SegFormer("b0", num_classes=5).save(target)
    with pytest.raises(SystemExit, match=r"b0\.safetensors' exists already.*--overwrite"):
        segformer(monkeypatch, "convert", source, target)
    assert SegFormer.from_pretrained(target).num_classes == 5
    segformer(monkeypatch, "convert", source, target, "--overwrite")
    assert SegFormer.from_pretrained(target).num_classes == 3


@pytest.mark.parametrize(
    "args", [("inspect", "nowhere.pth"), ("convert", "nowhere.pth", "x.safetensors")]
)
def test_a_missing_file_raises_one_line(
    args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        SystemExit,
        match=f"^segformer {args[0]}: no file or folder 'nowhere.pth'; a Hugging Face id has",
    ):
        segformer(monkeypatch, *args)
