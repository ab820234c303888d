"""Other people's implementations as judges.

The same weights give the same numbers, read here and written back.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from conftest import randomized
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)

from segformer import SegFormer
from segformer.checkpoint import LAYOUTS, state_dict_as

SIZES = {
    "b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "b2": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
LABELS = {k: f"thing {k}" for k in range(19)}


def transformers_peer(
    variant: str, dtype: torch.dtype = torch.float32
) -> SegformerForSemanticSegmentation:
    return randomized(
        SegformerForSemanticSegmentation(SegformerConfig(id2label=LABELS, **SIZES[variant]))
    ).to(dtype)


def smp_peer(variant: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    width = SIZES[variant]["decoder_hidden_size"]
    peer = smp.Segformer(
        f"mit_{variant}", encoder_weights=None, decoder_segmentation_channels=width, classes=19
    )
    return randomized(peer).to(dtype)


def save_as_transformers_does(peer: SegformerForSemanticSegmentation, place: Path) -> Path:
    peer.save_pretrained(place)
    return place


def save_in_shards(peer: SegformerForSemanticSegmentation, place: Path) -> Path:
    peer.save_pretrained(place, max_shard_size="4MB")
    assert len(list(place.glob("model-*.safetensors"))) > 1
    return place


def save_as_older_versions_did(peer: SegformerForSemanticSegmentation, place: Path) -> Path:
    peer.save_pretrained(place)
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    return place


def save_the_state_dict(peer: nn.Module, place: Path) -> Path:
    torch.save(peer.state_dict(), place.with_suffix(".pth"))
    return place.with_suffix(".pth")


def save_with_lightning_and_an_average(peer: nn.Module, place: Path) -> Path:
    state = {f"net.{key}": torch.full_like(tensor, 7) for key, tensor in peer.state_dict().items()}
    state |= {f"net_ema.module.{key}": tensor for key, tensor in peer.state_dict().items()}
    torch.save(
        {"epoch": 3, "state_dict": state | {"loss.weight": torch.ones(19)}},
        place.with_suffix(".ckpt"),
    )
    return place.with_suffix(".ckpt")


def stride_4_logits(model: SegFormer, images: Tensor) -> Tensor:
    return model.decode_head(model.backbone(images))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("save", "variant", "dtype"),
    [
        *((save_as_transformers_does, *case) for case in product(SIZES, TOLERANCE)),
        (save_in_shards, "b2", torch.float32),
        (save_as_older_versions_did, "b0", torch.float64),
        (save_the_state_dict, "b0", torch.float32),
        (save_with_lightning_and_an_average, "b0", torch.float32),
    ],
)
def test_logits_equal_transformers(
    save: object, variant: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    peer = transformers_peer(variant, dtype)
    images = torch.randn(1, 3, 97, 160, dtype=dtype)
    expected = peer(pixel_values=images).logits
    place = save(peer, tmp_path / "peer")
    ours = SegFormer.from_pretrained(place)
    torch.testing.assert_close(
        stride_4_logits(ours, images), expected, rtol=0, atol=TOLERANCE[dtype]
    )
    assert expected.std() > 0.05
    assert ours.backbone.config["variant"] == variant
    assert ours.classes.names == (
        tuple(LABELS.values()) if place.is_dir() else tuple(f"class {k}" for k in range(19))
    )


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("variant", SIZES)
def test_transformers_opens_what_we_write(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    transformers_peer(variant, dtype).save_pretrained(tmp_path / "theirs")
    ours = SegFormer.from_pretrained(tmp_path / "theirs")
    ours.save(tmp_path / "ours", "huggingface")
    written, original = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("ours", "theirs")
    )
    assert written.keys() == original.keys()
    assert all(torch.equal(written[key], original[key]) for key in original)

    peer, info = SegformerForSemanticSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values())
    assert peer.dtype == dtype
    assert peer.config.id2label == LABELS
    images = torch.randn(1, 3, 97, 160, dtype=dtype)
    torch.testing.assert_close(
        peer(pixel_values=images).logits,
        stride_4_logits(ours, images),
        rtol=0,
        atol=TOLERANCE[dtype],
    )


@torch.inference_mode()
def test_transformers_prepares_images_as_we_do(tiny: SegFormer, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    from segformer.data.transforms import Normalize

    tiny.save(tmp_path / "model", "huggingface")
    image = torch.randint(0, 256, (3, 512, 512), dtype=torch.uint8)
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "model")(
        image, return_tensors="pt"
    ).pixel_values[0]
    torch.testing.assert_close(theirs, Normalize()(image), rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        ("b0", torch.float64),
        ("b2", torch.float32),
        pytest.param("b2", torch.float64, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_full_size_logits_equal_smps(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """smp interpolates to pixels with align_corners=True, and so does the model of its file.

    The same model saved and read again does so, too.
    """
    peer = smp_peer(variant, dtype)
    images = torch.randn(1, 3, 96, 160, dtype=dtype)  # smp takes multiples of 32 only
    ours = SegFormer.from_pretrained(save_the_state_dict(peer, tmp_path / "smp"))
    ours.save(tmp_path / "native.safetensors")
    for model in (ours, SegFormer.from_pretrained(tmp_path / "native.safetensors")):
        torch.testing.assert_close(model(images), peer(images), rtol=0, atol=TOLERANCE[dtype])
        assert torch.equal(model.predict(images), model(images).argmax(1))

    ours.save(tmp_path / "back.safetensors", "smp")
    twin = smp_peer(variant, dtype)
    twin.load_state_dict(load_file(tmp_path / "back.safetensors"))
    torch.testing.assert_close(twin(images), peer(images), rtol=0, atol=0)


@torch.inference_mode()
def test_smps_folder_is_read(tmp_path: Path) -> None:
    peer = smp_peer("b0")
    peer.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        SegFormer.from_pretrained(tmp_path)(images), peer(images), rtol=0, atol=1e-5
    )


@torch.inference_mode()
@pytest.mark.parametrize(
    ("prefix", "variant", "dtype"),
    [
        *(("", *case) for case in product(SIZES, TOLERANCE)),
        ("encoder.", "b0", torch.float32),
        ("backbone.", "b0", torch.float64),
    ],
)
def test_smps_encoder_alone_is_a_backbone(
    prefix: str, variant: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """It bears NVIDIA's own names, so that it judges that layout too."""
    peer = randomized(smp.encoders.get_encoder(f"mit_{variant}", weights=None)).to(dtype)
    images = torch.randn(1, 3, 96, 160, dtype=dtype)
    torch.save(
        {prefix + key: tensor for key, tensor in peer.state_dict().items()},
        tmp_path / "encoder.pth",
    )
    model = SegFormer.from_pretrained(tmp_path / "encoder.pth", num_classes=2)
    torch.testing.assert_close(
        model.backbone(images), peer(images)[2:], rtol=0, atol=TOLERANCE[dtype] * 10
    )
    assert model(images).dtype == dtype


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("in_memory", [False, True])
def test_image_classifiers_of_transformers(
    in_memory: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    """As a classifier through timm, and as a backbone under a new head."""
    config = SegformerConfig(num_labels=1000, reshape_last_stage=False, **SIZES["b0"])
    peer = randomized(SegformerForImageClassification(config)).to(dtype)
    peer.save_pretrained(tmp_path)
    torch.save(peer.state_dict(), tmp_path / "memory.pth")
    file = tmp_path / ("memory.pth" if in_memory else "model.safetensors")

    classifier = (
        timm.create_model("mit_b0", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
        .to(dtype)
        .eval()
    )
    classifier.load_state_dict(peer_state_as_timm(peer))  # in full precision
    images = torch.randn(1, 3, 97, 160, dtype=dtype)
    torch.testing.assert_close(
        classifier(images), peer(pixel_values=images).logits, rtol=0, atol=TOLERANCE[dtype]
    )

    model = SegFormer.from_pretrained(file, num_classes=2)
    expected = peer.segformer(images, output_hidden_states=True).hidden_states[
        :3
    ]  # the last comes as tokens
    torch.testing.assert_close(
        model.backbone(images)[:3], list(expected), rtol=0, atol=10 * TOLERANCE[dtype]
    )


def peer_state_as_timm(peer: nn.Module) -> dict[str, Tensor]:
    from segformer.checkpoint import translate_encoder

    return translate_encoder(peer.state_dict())[0]


@pytest.mark.parametrize("layout", ["nvidia", "smp"])
def test_the_written_names_are_smps_encoders(layout: str) -> None:
    written = state_dict_as(SegFormer("b0", num_classes=3), LAYOUTS[layout])
    prefix = LAYOUTS[layout].prefix
    names = {key.removeprefix(prefix) for key in written if key.startswith(prefix)}
    assert names == set(smp.encoders.get_encoder("mit_b0", weights=None).state_dict())
