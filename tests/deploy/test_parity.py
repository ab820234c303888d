"""Exported files against the networks that they were exported from, family by family.

The small networks run by default; `pytest -m slow tests/deploy` takes the ones of the papers, which
need minutes each to export, and `pytest -m extras tests/deploy` the compiled formats.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, quick, randomized
from torch import Tensor

from segformer import SETR, ConvSegFormer, PUPHead, SegFormer, TimmBackbone, deploy
from segformer.deploy.comparison import compare
from segformer.deploy.program import bicubic_antialiased

SIZES = ((1, 3, 512, 512), (2, 3, 333, 500), (3, 3, 65, 97), (1, 3, 32, 32))


def setr(**options: Any) -> SETR:
    """SETR-tiny with position embeddings that matter, as trained ones do."""
    model = SETR("tiny", **options)
    torch.nn.init.normal_(model.backbone.model.model.pos_embed)
    return model


PAPERS: dict[str, Callable[[], Any]] = {
    "b0": lambda: SegFormer("b0", num_classes=19),
    "b2": lambda: SegFormer("b2", num_classes=150),
    "setr": lambda: setr(num_classes=19),
    "resnet": lambda: SegFormer(TimmBackbone("resnet50"), num_classes=19),
    "convolutional": lambda: ConvSegFormer(num_classes=19),
}


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for size in SIZES]


def check(model: Any, path: Path, **options: Any) -> None:
    """Logits within 1e-4 of the largest, and labels equal, at all sizes and in both orders."""
    deploy.export(model, path, output="logits", **options)
    exported = deploy.load(path)
    for order in (batches(), batches()[::-1]):
        comparison = compare(exported, model, order)
        assert comparison.difference is not None
        assert comparison.difference < 1e-4
        assert comparison.equal >= 0.9999


@pytest.mark.slow
def test_an_openvino_file_computes_what_the_network_computes(tmp_path: Path) -> None:
    """By way of an ONNX file, so that this tests the exporter to ONNX, too."""
    check(randomized(SegFormer(TINY, num_classes=5)), tmp_path / "model.xml")


@pytest.mark.slow
def test_setrs_position_embeddings_are_resampled_by_matrix_products(tmp_path: Path) -> None:
    """No other runtime has the antialiased resampling, by whichever name the exporter calls it."""
    path = tmp_path / "model.pt2"
    model = randomized(setr(num_classes=5, head=PUPHead, channels=16, img_size=64))
    comparison = deploy.export(model, path, output="logits")  # at several sizes
    assert comparison.difference is not None
    assert comparison.difference < 1e-4
    assert not [
        node for node in torch.export.load(path).graph.nodes if "bicubic" in str(node.target)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
@pytest.mark.parametrize("family", PAPERS)
def test_the_networks_of_the_papers(family: str, suffix: str, tmp_path: Path) -> None:
    check(randomized(PAPERS[family]()), tmp_path / f"model{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("family", PAPERS)
def test_the_networks_of_the_papers_compiled(family: str, tmp_path: Path) -> None:
    check(randomized(PAPERS[family]()), tmp_path / "model.pt2", format="aoti")


@pytest.mark.extras
@pytest.mark.parametrize("family", PAPERS)
def test_the_networks_of_the_papers_in_executorch(family: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    model = randomized(PAPERS[family]())
    size = (256, 256)
    comparison = deploy.export(model, tmp_path / "model.pte", output="logits", size=size)
    assert comparison.difference is not None
    assert comparison.difference < 1e-4


def test_an_exported_network_is_not_changed(tmp_path: Path) -> None:
    model = quick(5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deploy.export(model, tmp_path / "model.pt2")
    assert model.training
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_one_logit_is_labelled_by_its_threshold(suffix: str, tmp_path: Path) -> None:
    model, images = quick(1), torch.randn(2, 3, 65, 97)
    with torch.no_grad():  # half of the pixels above the threshold, and none that rounding moves
        middle = model(images).flatten().sort().values[6000:6600]
        below = middle.diff().argmax()
        model.decode_head.classifier.bias -= middle[below : below + 2].mean()
    deploy.export(model, tmp_path / f"model{suffix}")
    labels = deploy.load(tmp_path / f"model{suffix}").predict(images)
    assert torch.equal(labels, model.predict(images))
    assert labels.unique().tolist() == [0, 1]


@pytest.mark.slow
def test_more_than_255_classes_are_16_bit_labels(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = quick(300)
    with torch.no_grad():  # so that some pixels have these classes
        model.decode_head.classifier.bias[256:] += 1
    deploy.export(model, tmp_path / "model.onnx", input="uint8", takes_size=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    pixels = torch.randint(0, 256, (2, 3, 65, 97), dtype=torch.uint8)
    feed = {"images": pixels.permute(0, 2, 3, 1).numpy(), "size": torch.tensor([70, 50]).numpy()}
    (labels,) = session.run(None, feed)
    assert labels.dtype == "uint16"
    expected = model.predict(model.normalization(pixels), (70, 50))
    assert (torch.from_numpy(labels.astype("int64")) == expected).float().mean() > 0.9999
    assert labels.max() > 255


def test_corners_are_aligned_where_the_model_aligns_them(tmp_path: Path) -> None:
    model = quick(5)
    model.align_corners = True
    comparison = deploy.export(model, tmp_path / "model.pt2", output="logits")
    assert comparison.difference is not None
    assert comparison.difference < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (21, 32), (24, 24), (40, 30), (10, 30)])
def test_the_antialiased_resampling_is_pytorchs(size: tuple[int, int]) -> None:
    x = torch.randn(1, 4, 24, 24, dtype=torch.double)
    expected = torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True)
    torch.testing.assert_close(bicubic_antialiased(x, size, False), expected, rtol=0, atol=1e-12)


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that forgets the normalisation of its pixels."""
    from segformer.deploy.graph import FromPixels

    monkeypatch.setattr(FromPixels, "forward", lambda self, x: x.permute(0, 3, 1, 2).float())
    with pytest.raises(ValueError, match="differs too much from the model: .* nothing was written"):
        deploy.export(quick(5), tmp_path / "model.pt2", input="uint8")
    assert list(tmp_path.iterdir()) == []


class Scripted(torch.nn.Module):
    """A backbone of a user, whose work depends on the values of the images."""

    channels = (8,)

    def forward(self, images: Tensor) -> list[Tensor]:
        if images.sum() > 0:
            images = -images
        return [images[:, :1].expand(-1, 8, -1, -1)]


def test_parts_that_cannot_be_captured_are_named(tmp_path: Path) -> None:
    model = SegFormer(Scripted(), num_classes=5)
    with pytest.raises(ValueError, match=r"cannot capture .*Scripted"):
        deploy.export(model, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.trt", {}, "call it model.onnx"),
        ("model.onnx", {"format": "tensorrt"}, "unknown format 'tensorrt'"),
        ("model.onnx", {"precision": "int4"}, "unknown precision 'int4'"),
        ("model.onnx", {"precision": "bf16"}, "choose one of fp32, fp16, int8"),
        ("model.onnx", {"output": "masks"}, "unknown output 'masks'"),
        ("model.onnx", {"size": (16, 512)}, "16×512 is too small .* at least 32×32"),
        ("model.pte", {}, "needs a fixed size|needs executorch"),
        ("nowhere/model.onnx", {}, "no folder"),
        ("there.onnx", {}, "exists already"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    (tmp_path / "there.onnx").write_bytes(b"kept")
    model = SegFormer(TINY, num_classes=5)
    with pytest.raises((ValueError, OSError), match=message):
        deploy.export(model, tmp_path / name, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert (tmp_path / "there.onnx").read_bytes() == b"kept"
