"""Files without plain weights of a SegFormer are refused with their kind and the cure."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segformer import SegFormer


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"")


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("segformer.pth", b"x")


# By their format's first bytes: HDF5's signature, protobuf's ir_version and producer, flatbuffers'.
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(64)
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.14.0"
TFLITE = b"\x1c\0\0\0TFL3" + bytes(64)
GZIP = b"\x1f\x8b\x08" + bytes(64)

FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "TorchScript": ("m.pt", torchscript, "a TorchScript archive; save torch.jit.load"),
    "export": ("m.pt2", exported, "a program of torch.export; save torch.export.load"),
    "ONNX": ("m.onnx", lambda path: path.write_bytes(ONNX), "an ONNX graph; it was made from"),
    "ONNX by content": ("m.pth", lambda path: path.write_bytes(ONNX), "an ONNX graph"),
    "HDF5": ("m.h5", lambda path: path.write_bytes(HDF5), "an HDF5 file, as Keras writes it"),
    "Keras": ("m.keras", keras, "a Keras model"),
    "TensorFlow Lite": ("m.tflite", lambda path: path.write_bytes(TFLITE), "TensorFlow Lite model"),
    "NumPy": ("m.npz", lambda path: np.savez(path, a=np.zeros(3)), "an archive of NumPy arrays"),
    "array": ("m.npy", lambda path: np.save(path, np.zeros(3)), "a NumPy array"),
    "gzip": ("m.pth.gz", lambda path: path.write_bytes(GZIP), "compressed with gzip; unpack it"),
    "zip": ("m.zip", zipped, "a zip archive; unpack it"),
    "TensorRT": ("m.engine", lambda path: path.write_bytes(b"ftrt"), "a TensorRT engine"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "write", "message"), FILES.values(), ids=FILES)
def test_files_of_other_kinds_are_refused(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}' is .*{message}"):
        SegFormer.from_pretrained(tmp_path / name)


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_checkpoint_is_refused(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"weight": torch.zeros(3)}, checkpoint_id=tmp_path / "dcp")
    with pytest.raises(ValueError, match=r"dcp' is a torch.distributed checkpoint; .*dcp_to_torch"):
        SegFormer.from_pretrained(tmp_path / "dcp")
    shard = next((tmp_path / "dcp").glob("*.distcp"))
    with pytest.raises(ValueError, match=r"distcp' is a shard of a torch.distributed"):
        SegFormer.from_pretrained(shard)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_peft_is_refused(tmp_path: Path, tiny: SegFormer) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny, LoraConfig(r=2, target_modules=["q"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a PEFT adapter without its base model; merge them"):
        SegFormer.from_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    for file in ("adapter_model.safetensors", "whole.pth"):
        with pytest.raises(
            ValueError, match=r"a PEFT adapter, or a model with adapters; call merge_and_unload\(\)"
        ):
            SegFormer.from_pretrained(tmp_path / file)


def unet() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, classes=2)


def fpn() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.FPN("resnet18", encoder_weights=None, classes=2)


def deeplab() -> nn.Module:
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)


def resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18()


def vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224")


def swin() -> nn.Module:
    import timm

    return timm.create_model("swin_tiny_patch4_window7_224")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unet, "a segmentation_models_pytorch U-Net"),
        (fpn, "a segmentation_models_pytorch model with another decoder"),
        (deeplab, "torchvision's DeepLabV3"),
        (resnet, "a ResNet"),
        (vit, "a Vision Transformer"),
        (swin, "a Swin Transformer"),
    ],
)
def test_other_models_are_refused(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    with torch.device("meta"):
        names = list(make().state_dict())
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=f"none of the known layouts: .*it looks like {message}; the"
    ):
        SegFormer.from_pretrained(tmp_path / "other.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_is_neither_written_nor_read(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.decode_head.projections[0] = nn.Linear(8, 16)
    model = torch.ao.quantization.quantize_dynamic(tiny)
    with pytest.raises(ValueError, match="save a quantised model before you quantise it"):
        model.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
    torch.save(model.state_dict(), tmp_path / "quantised.pth")
    with pytest.raises(ValueError, match=r"quantised.pth'.*(is quantised|quantised tensor)"):
        SegFormer.from_pretrained(tmp_path / "quantised.pth")
