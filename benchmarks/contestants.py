"""The same work done by this package and by each peer, with random weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer import VARIANTS, ConvSegFormer, SegFormer
from segformer.models import SegmentationModel
from segformer.networks.all_mlp import MMSegHead
from segformer.ops import upsample_cross_entropy

Work = Callable[[], Any]
MMSEGMENTATION = "b0 under mmsegmentation's head"


def ours(variant: str, classes: int) -> SegmentationModel:
    """A variant of SegFormer, or one of the two networks whose heads use other operators."""
    if variant == "convolutional":
        return ConvSegFormer(num_classes=classes).eval()
    if variant == MMSEGMENTATION:
        backbone = SegFormer("b0").backbone
        return SegmentationModel(backbone, MMSegHead(backbone.channels, classes)).eval()
    return SegFormer(variant, num_classes=classes).eval()


def transformers(variant: str, classes: int) -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    v = VARIANTS[variant]
    config = SegformerConfig(
        num_labels=classes,
        hidden_sizes=list(v.dims),
        depths=list(v.depths),
        decoder_hidden_size=v.decoder_channels,
    )
    return SegformerForSemanticSegmentation(config).eval()


def smp(variant: str, classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    width = VARIANTS[variant].decoder_channels
    return smp.Segformer(
        f"mit_{variant}", encoder_weights=None, decoder_segmentation_channels=width, classes=classes
    ).eval()


def segformer_pytorch(variant: str, classes: int) -> nn.Module:
    import segformer_pytorch

    v = VARIANTS[variant]
    return segformer_pytorch.Segformer(
        dims=v.dims,
        heads=v.heads,
        ff_expansion=(v.mlp_ratio,) * len(v.dims),
        reduction_ratio=v.sr_ratios,
        num_layers=v.depths,
        decoder_dim=v.decoder_channels,
        num_classes=classes,
    ).eval()


class Stride4(nn.Module):
    """A model's logits before interpolation, as a graph to export."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.stride_4 = model, forward

    def forward(self, images: Tensor) -> Tensor:
        return self.stride_4(self.model, images)


def stride_4(model: nn.Module) -> Stride4:
    """A contestant from images to stride-4 logits."""
    if isinstance(model, SegmentationModel):
        return Stride4(model, lambda m, x: m.decode_head(m.backbone(x)))
    if hasattr(model, "segmentation_head"):
        return Stride4(model, lambda m, x: m.segmentation_head[0](m.decoder(m.encoder(x))))
    return Stride4(model, lambda m, x: m(pixel_values=x).logits)


def logits(variant: str, classes: int, size: tuple[int, int], peers: list[str]) -> dict[str, Work]:
    """Image tensor to stride-4 logits."""
    images = torch.randn(1, 3, *size)
    mine, theirs = stride_4(ours(variant, classes)), stride_4(transformers(variant, classes))
    works: dict[str, Work] = {
        "segformer": lambda: mine(images),
        "transformers": lambda: theirs(images),
    }
    if "bfloat16" in peers:

        def in_bfloat16() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return mine(images)

        works["segformer, bfloat16"] = in_bfloat16
    if "smp" in peers:
        third = stride_4(smp(variant, classes))
        works["smp"] = lambda: third(images)
    if "compile" in peers:
        compiled = torch.compile(theirs)
        works["transformers, torch.compile"] = lambda: compiled(images)
        compiled_ours = torch.compile(mine, fullgraph=True)
        works["segformer, torch.compile"] = lambda: compiled_ours(images)
    for engine, start in (("onnxruntime", _onnxruntime), ("openvino", openvino)):
        if engine in peers:
            works[f"{engine} on transformers' graph"] = start(theirs, images)
            works[f"{engine} on segformer's graph"] = start(mine, images)
    return works


def small(variant: str, size: tuple[int, int], batch: int, what: str) -> dict[str, Work]:
    """Small images in batches, to 19 classes' logits, the pyramid, or ImageNet's classes."""
    images = torch.randn(batch, 3, *size)
    networks = {"logits": _to_logits, "pyramid": _to_pyramid, "classes": _to_classes}
    return {name: partial(network, images) for name, network in networks[what](variant).items()}


Network = Callable[[Tensor], Any]


def _to_logits(variant: str) -> dict[str, Network]:
    return {
        "segformer": stride_4(ours(variant, 19)),
        "transformers": stride_4(transformers(variant, 19)),
        "smp": stride_4(smp(variant, 19)),
        "segformer-pytorch": segformer_pytorch(variant, 19),
    }


def _to_pyramid(variant: str) -> dict[str, Network]:
    encoder = transformers(variant, 19).segformer
    return {
        "segformer": ours(variant, 19).backbone,
        "transformers": lambda x: encoder(x, output_hidden_states=True).hidden_states,
        "smp": smp(variant, 19).encoder,
        "segformer-pytorch": partial(segformer_pytorch(variant, 19).mit, return_layer_outputs=True),
        f"timm's pvt_v2_{variant}": timm.create_model(
            f"pvt_v2_{variant}", features_only=True
        ).eval(),
    }


def _to_classes(variant: str) -> dict[str, Network]:
    from transformers import SegformerForImageClassification

    other = SegformerForImageClassification(transformers(variant, 1000).config).eval()
    return {
        "segformer": timm.create_model(f"mit_{variant}").eval(),
        "transformers": lambda x: other(x).logits,
        f"timm's pvt_v2_{variant}": timm.create_model(f"pvt_v2_{variant}").eval(),
    }


def transformers_labels(model: nn.Module, images: Tensor) -> Tensor:
    """Labels of the images' size, as transformers' own post-processing makes them."""
    logits = model(pixel_values=images).logits
    return F.interpolate(
        logits, size=images.shape[-2:], mode="bilinear", align_corners=False
    ).argmax(1)


class Trained(nn.Module):
    """A head that computes its logits and returns others, like a trained model's.

    Labels of random logits would change from cell to cell.
    """

    def __init__(self, head: nn.Module, logits: Tensor) -> None:
        super().__init__()
        self.head, self.logits, self.num_classes = head, logits, logits.shape[1]

    def forward(self, *args: Any, **options: Any) -> Tensor:
        self.head(*args, **options)
        return self.logits


def our_labels(variant: str, classes: int, size: tuple[int, int]) -> Work:
    """Image tensor to label map of the image's size, by this package."""
    images, model = torch.randn(1, 3, *size), ours(variant, classes)
    logits = like_a_trained_models(classes, size[0] // 4, size[1] // 4)
    model.decode_head = Trained(model.decode_head, logits)
    return lambda: model.predict(images)


def labels(variant: str, classes: int, size: tuple[int, int], peers: list[str]) -> dict[str, Work]:
    """Image tensor to label map of the image's size, each with its own post-processing."""
    images, theirs = torch.randn(1, 3, *size), transformers(variant, classes)
    logits = like_a_trained_models(classes, size[0] // 4, size[1] // 4).contiguous()
    theirs.decode_head = Trained(theirs.decode_head, logits)
    works: dict[str, Work] = {
        "segformer": our_labels(variant, classes, size),
        "transformers": lambda: transformers_labels(theirs, images),
    }
    if "smp" in peers:
        third = smp(variant, classes)
        works["smp"] = lambda: third(images).argmax(1)
    return works


def exported(
    variant: str, classes: int, size: tuple[int, int], peers: list[str]
) -> dict[str, Work]:
    """Image tensor to label map of the image's size, by exported files and by transformers."""
    from segformer import deploy

    images = torch.randn(1, 3, *size)
    mine, theirs = ours(variant, classes), transformers(variant, classes)
    folder = Path(tempfile.mkdtemp())
    works: dict[str, Work] = {}
    for name, file in (("OpenVINO", "model.xml"), ("ONNX Runtime", "model.onnx")):
        deploy.export(mine, folder / file)
        works[f"segformer in {name}"] = partial(deploy.load(folder / file).predict, images)
    works["transformers"] = lambda: transformers_labels(theirs, images)
    labelled = Labelled(theirs)
    for engine, start in (("onnxruntime", _onnxruntime), ("openvino", openvino)):
        if engine in peers:
            works[f"{engine} on transformers' graph"] = start(labelled, images)
    return works


class Labelled(nn.Module):
    """A model of transformers with its post-processing, as a graph to export."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return transformers_labels(self.model, images)


def like_a_trained_models(classes: int, height: int, width: int) -> Tensor:
    """Smooth logits in patches: about 14 % of the cells lie on a boundary, as when trained."""
    generator = torch.Generator("cpu").manual_seed(0)
    patch = 34 if classes > 100 else 48
    low = torch.randn(
        1, classes, height // patch + 2, width // patch + 2, generator=generator, device="cpu"
    ).to(torch.get_default_device())
    return (4 * F.interpolate(low, size=(height, width), mode="bicubic")).contiguous(
        memory_format=torch.channels_last
    )


def boundary_share(logits: Tensor) -> float:
    """The share of quads of neighbouring cells whose greatest classes differ."""
    cells = logits.argmax(1)
    corner = cells[:, :-1, :-1]
    return (
        (
            (corner != cells[:, 1:, :-1])
            | (corner != cells[:, :-1, 1:])
            | (corner != cells[:, 1:, 1:])
        )
        .float()
        .mean()
        .item()
    )


def argmax(classes: int, size: tuple[int, int]) -> dict[str, Work]:
    """Stride-4 logits to labels."""
    from segformer.ops import upsample_argmax

    logits = like_a_trained_models(classes, size[0] // 4, size[1] // 4)
    contiguous = logits.contiguous()  # as transformers' head returns them
    return {
        "segformer": lambda: upsample_argmax(logits, size),
        "interpolate + argmax": lambda: F.interpolate(
            contiguous, size=size, mode="bilinear", align_corners=False
        ).argmax(1),
        "interpolate + argmax, channels-last": lambda: F.interpolate(
            logits, size=size, mode="bilinear", align_corners=False
        ).argmax(1),
    }


def step(variant: str, classes: int, size: tuple[int, int], batch: int = 2) -> dict[str, Work]:
    """A training step: forward, loss at full size, backward, AdamW."""
    images, target = _training_batch(classes, size, batch)
    theirs = transformers(variant, classes).train()
    return {
        "segformer": our_step(variant, classes, size, batch),
        "transformers": _train(theirs, lambda: theirs(pixel_values=images, labels=target).loss),
    }


def our_step(variant: str, classes: int, size: tuple[int, int], batch: int = 2) -> Work:
    """A training step of this package."""
    images, target = _training_batch(classes, size, batch)
    model = ours(variant, classes).train()
    return _train(
        model, lambda: upsample_cross_entropy(model.decode_head(model.backbone(images)), target)
    )


def _training_batch(classes: int, size: tuple[int, int], batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, *size), torch.randint(classes, (batch, *size))


def _train(model: nn.Module, loss: Callable[[], Tensor]) -> Work:
    optimizer = torch.optim.AdamW(model.parameters(), 6e-5)

    def work() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return work


def _exported(model: nn.Module, images: Tensor) -> Path:
    path = Path(tempfile.mkdtemp()) / "model.onnx"
    with torch.no_grad():
        torch.onnx.export(
            model,
            (images,),
            path,
            input_names=["images"],
            dynamo=True,
            verbose=False,
            external_data=False,
        )
    return path


def _onnxruntime(model: nn.Module, images: Tensor) -> Work:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        _exported(model, images), options, providers=["CPUExecutionProvider"]
    )
    feed = {"images": np.asarray(images)}
    return lambda: session.run(None, feed)


def openvino(model: nn.Module, images: Tensor) -> Work:
    """A network as a graph that OpenVINO runs in float32."""
    from openvino import Core

    core = Core()
    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(_exported(model, images)), "CPU", config)
    feed = np.asarray(images)
    return lambda: compiled(feed)
