"""The convolutional Segformer against the segformer-pytorch package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segformer_pytorch
import torch
from conftest import randomized
from torch import Tensor, nn

import segformer
from segformer import ConvSegFormer, checkpoint
from segformer.networks.convolutional import LinearHead

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {
        "dims": (8, 16, 24, 40),
        "heads": (1, 2, 4, 8),
        "ff_expansion": (2, 3, 4, 2),
        "num_layers": (1, 2, 1, 3),
        "decoder_dim": 24,
    },
    "of one value": {
        "dims": 16,
        "heads": 2,
        "ff_expansion": 3,
        "reduction_ratio": 2,
        "num_layers": 1,
        "channels": 1,
        "num_classes": 7,
    },
}


def pair(name: str) -> tuple[nn.Module, ConvSegFormer]:
    """The oracle and ours with its weights, in float64."""
    torch.manual_seed(0)
    options = {"dims": (32, 64, 160, 256), **CONFIGURATIONS[name]}
    oracle = segformer_pytorch.Segformer(**options)
    with torch.no_grad():
        for parameter_name, parameter in oracle.named_parameters():
            if parameter_name.endswith((".g", ".b")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    ours = ConvSegFormer(**options)
    load(ours, oracle)
    return oracle.double(), ours.double()


def load(ours: ConvSegFormer, oracle: nn.Module, folder: Path | None = None) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        torch.save(oracle.state_dict(), Path(place) / "segformer.pt")
        ours.load_weights(Path(place) / "segformer.pt")


def images(name: str, *size: int) -> Tensor:
    return torch.randn(2, CONFIGURATIONS[name].get("channels", 3), *size, dtype=torch.double)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_features_and_logits_are_the_oracles(name: str) -> None:
    oracle, ours = pair(name)
    x = images(name, 64, 128)
    expected: Any = oracle.mit(x, return_layer_outputs=True)  # type: ignore[operator]
    torch.testing.assert_close(ours.backbone(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.decode_head(ours.backbone(x)), oracle(x), rtol=0, atol=1e-10)
    oracle, ours = oracle.float(), ours.float()
    torch.testing.assert_close(
        ours.decode_head(ours.backbone(x.float())), oracle(x.float()), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_one_step_of_training_has_the_oracles_gradients(name: str) -> None:
    oracle, ours = pair(name)
    x = images(name, 64, 64)
    d = torch.randn_like(oracle(x))
    oracle(x).backward(d)
    ours.decode_head(ours.backbone(x)).backward(d)
    gradients = {key: parameter.grad for key, parameter in oracle.named_parameters()}
    layout = checkpoint.LAYOUTS["lucidrains"]
    layout.fold(gradients)  # type: ignore[arg-type]
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None
        expected: Any = gradients[layout.their_key(key)]
        torch.testing.assert_close(
            parameter.grad, expected.reshape(parameter.shape), rtol=1e-9, atol=1e-9
        )


def test_the_old_name_warns_and_is_the_same_class() -> None:
    with pytest.warns(DeprecationWarning, match="is now called segformer.ConvSegFormer"):
        assert segformer.Segformer is ConvSegFormer
    assert "Segformer" not in segformer.__all__
    with pytest.raises(AttributeError, match="has no attribute 'SegForme'"):
        _ = segformer.SegForme


def test_the_parameters_are_the_oracles() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(ConvSegFormer()) == count(segformer_pytorch.Segformer(dims=(32, 64, 160, 256)))
    assert count(ConvSegFormer(num_classes=150)) / 1e6 == pytest.approx(7.72, abs=0.05)


@pytest.mark.parametrize("size", [(65, 97), (32, 32), (100, 36)], ids=str)
def test_sizes_on_which_the_original_raises_work(size: tuple[int, int]) -> None:
    model = ConvSegFormer(dims=8, heads=2, num_layers=1).eval()
    x = torch.randn(1, 3, *size)
    if size != (32, 32):
        with pytest.raises(Exception, match=r".*"):
            segformer_pytorch.Segformer(dims=(8, 8, 8, 8), heads=2, num_layers=1)(x)
    assert model(x).shape == (1, 4, *size)
    assert model.predict(x).shape == (1, *size)


def test_the_head_is_its_plain_form() -> None:
    head = randomized(LinearHead([4, 6], 5, 8)).double()
    maps = [
        torch.randn(1, 4, 6, 6, dtype=torch.double),
        torch.randn(1, 6, 3, 3, dtype=torch.double),
    ]
    upsampled = [
        nn.functional.interpolate(proj(x), size=(6, 6))
        for proj, x in zip(head.projections, maps, strict=True)
    ]
    torch.testing.assert_close(
        head(maps), head.classifier(head.fuse(torch.cat(upsampled, 1))), rtol=0, atol=1e-12
    )


def test_a_file_of_the_originals_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    oracle = segformer_pytorch.Segformer(
        dims=(32, 64, 160, 256), num_classes=9, decoder_dim=32
    ).eval()
    torch.save(oracle.state_dict(), tmp_path / "model.pt")
    model = ConvSegFormer.from_pretrained(tmp_path / "model.pt")
    assert "heads" in caplog.text
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.decode_head(model.backbone(x)), oracle(x), rtol=0, atol=1e-5)
    model.save(tmp_path / "ours.safetensors")
    again = ConvSegFormer.from_pretrained(tmp_path / "ours.safetensors")
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (8, 16, 24)}, r"dims=\(8, 16, 24\) is neither one positive integer nor four"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"heads": 3}, "a stage of 32 channels cannot be split into 3 heads"),
        ({"num_classes": 0}, "at least 1, got 0"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvSegFormer(**options)


def test_a_file_that_does_not_tell_its_heads(tmp_path: Path) -> None:
    oracle = segformer_pytorch.Segformer(dims=(9, 9, 9, 9), heads=3, num_layers=1)
    torch.save(oracle.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="does not tell its attention heads.*load_weights"):
        ConvSegFormer.from_pretrained(tmp_path / "model.pt")
    model = ConvSegFormer(dims=9, heads=3, num_layers=1)
    model.load_weights(tmp_path / "model.pt")
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.decode_head(model.backbone(x)), oracle(x), rtol=0, atol=1e-5)
