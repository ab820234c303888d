"""int8: NNCF's quantisation, judged by mIoU; and halves, judged by the graph that they leave."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segformer import SegFormer, deploy
from segformer.data.classes import Classes
from segformer.evaluation import evaluate
from segformer.networks.mit import Variant

SIZES = [(1, 96, 128), (3, 65, 97), (2, 333, 500)]


class Scenes:
    """Images of coloured boxes on grey noise, with the labels of the boxes."""

    COLOURS = torch.tensor([[110, 110, 110], [200, 60, 60], [60, 60, 200]])
    classes = Classes(("ground", "red", "blue"))

    def __init__(self, count: int, size: tuple[int, int] = (96, 128), seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.samples = [self.scene(*size, generator) for _ in range(count)]

    def scene(self, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        label = torch.zeros(height, width, dtype=torch.uint8)
        for kind in (1, 2, 1, 2):
            top, left = (int(torch.randint(n - 24, (), generator=generator)) for n in label.shape)
            label[top : top + 24, left : left + 24] = kind
        noise = 20 * torch.randn(height, width, 3, generator=generator)
        image = (self.COLOURS[label.int()] + noise).clamp(0, 255).to(torch.uint8)
        return image.permute(2, 0, 1).contiguous(), label

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.samples[index]

    def images(self) -> list[Tensor]:
        return [image for image, _ in self.samples]


@pytest.fixture(scope="module")
def model() -> SegFormer:
    """A tiny network that tells the boxes from the ground."""
    torch.manual_seed(0)
    variant = Variant(dims=(8, 16, 40, 64), depths=(1, 1, 1, 1), decoder_channels=16)
    network = SegFormer(variant, num_classes=3, classes=Scenes.classes)
    scenes = Scenes(8, seed=1)
    images = network.normalization(torch.stack(scenes.images()))
    labels = torch.stack([label for _, label in scenes]).long()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(60):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def outlier(model: SegFormer) -> SegFormer:
    """The same function, with one channel of the finest features 300 times greater."""
    network = deepcopy(model)
    with torch.no_grad():
        network.backbone.stages[0].norm.weight[0] *= 300
        network.backbone.stages[0].norm.bias[0] *= 300
        network.backbone.stages[1].embed.proj.weight[:, 0] /= 300
        network.decode_head.projections[0].weight[:, 0] /= 300
    return network


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def int8(
    request: pytest.FixtureRequest, model: SegFormer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, deploy.Comparison]:
    """A file of logits in int8, and its comparison with the model."""
    pytest.importorskip(request.param)
    path = tmp_path_factory.mktemp("int8") / f"model{deploy.FORMATS[request.param].suffix}"
    return path, deploy.export(
        model,
        path,
        output="logits",
        precision="int8",
        calibration=iter(Scenes(6, seed=2).images()),
        dataset=Scenes(6),
    )


@pytest.mark.extras
def test_int8_keeps_the_miou_of_the_model(
    int8: tuple[Path, deploy.Comparison], model: SegFormer
) -> None:
    path, comparison = int8
    before, after = (
        100 * evaluate(network, Scenes(6)).miou for network in (model, deploy.load(path))
    )
    assert comparison.miou == pytest.approx((before, after))
    assert before > 85
    assert after > before - 0.5


@pytest.mark.extras
def test_int8_takes_every_batch_and_size_in_either_order(
    int8: tuple[Path, deploy.Comparison], model: SegFormer
) -> None:
    exported = deploy.load(int8[0])
    for count, height, width in [*SIZES, *SIZES[::-1]]:
        scenes = Scenes(count, (height, width), seed=3)
        images = model.normalization(torch.stack(scenes.images()))
        equal = exported.predict(images) == model.predict(images)
        assert equal.double().mean() > 0.97, (count, height, width)


@pytest.mark.extras
def test_int8_holds_weights_of_8_bits_and_leaves_norms_and_interpolations_in_float(
    int8: tuple[Path, deploy.Comparison],
) -> None:
    path, _ = int8
    weights, floats = onnx_inputs(path) if path.suffix == ".onnx" else openvino_inputs(path)
    assert set(weights) == {"int8"}
    assert len(weights) == 16  # 4 embeddings, 3 reductions, 4 depthwise, 4 levels, 1 classifier
    assert floats
    assert not {"DequantizeLinear", "FakeQuantize"} & set(floats)


def onnx_inputs(path: Path) -> tuple[list[str], list[str]]:
    """Returns the types of convolutions' weights, and what precedes norms and interpolations."""
    import onnx

    graph = onnx.load(path).graph
    made_by = {name: node for node in graph.node for name in node.output}
    stored = {value.name: onnx.numpy_helper.to_array(value).dtype for value in graph.initializer}
    weights = [
        str(stored[made_by[node.input[1]].input[0]])
        for node in graph.node
        if node.op_type == "Conv"
    ]
    kept = [node for node in graph.node if node.op_type in ("LayerNormalization", "Resize")]
    return weights, [made_by[node.input[0]].op_type for node in kept]


def openvino_inputs(path: Path) -> tuple[list[str], list[str]]:
    """Returns the types of convolutions' weights, and what precedes norms and interpolations."""
    import openvino

    def before(node: Any, port: int) -> Any:
        return node.input_value(port).get_node()

    nodes = openvino.Core().read_model(path).get_ops()
    weights = []
    for node in nodes:
        if node.get_type_name() in ("Convolution", "GroupConvolution"):
            weight = before(node, 1)
            while weight.get_type_name() != "Constant":
                weight = before(weight, 0)
            weights.append(weight.get_element_type().to_dtype().name)
    kept = [node for node in nodes if node.get_type_name() in ("MVN", "Interpolate")]
    return weights, [before(node, 0).get_type_name() for node in kept]


@pytest.mark.extras
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_layers_return_to_float_until_the_miou_is_near_enough(
    format: str, outlier: SegFormer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(format)
    caplog.set_level("INFO", "segformer.deploy.quantization")
    comparison = deploy.export(
        outlier,
        tmp_path / f"model{deploy.FORMATS[format].suffix}",
        precision="int8",
        calibration=Scenes(6, seed=2).images(),
        dataset=Scenes(6),
        max_drop=1.0,
    )
    float32, int8, *later = (float(record.args[0]) for record in caplog.records)
    assert float32 - int8 > 5  # in int8 the outlier leaves the other channels no precision
    assert later
    before, after = comparison.miou
    assert before - after <= 1.0


def test_int8_without_images_to_calibrate_on_is_refused(model: SegFormer, tmp_path: Path) -> None:
    for package in ("nncf", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    for images, message in [
        (None, "int8 needs images to calibrate on; pass --data CONFIG"),
        ([], "int8 needs at least 1 image to calibrate on, got 0"),
        ([torch.zeros(4, 64, 64, dtype=torch.uint8)], "image 0 has 4 channels, .* takes 3"),
        ([torch.zeros(3, 64, 64)], r"image 0 is float32 \(3, 64, 64\); uint8 \(3, H, W\)"),
        (Scenes(1), r"image 0 is a tuple; uint8 \(3, H, W\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            deploy.export(model, tmp_path / "m.onnx", precision="int8", calibration=images)
    with pytest.raises(ValueError, match="loss of mIoU of -1 points"):
        deploy.export(model, tmp_path / "m.onnx", max_drop=-1)
    assert not list(tmp_path.iterdir())


@pytest.mark.extras
def test_fp16_in_onnx_keeps_norms_and_classifier_in_float32(
    model: SegFormer, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"
    deploy.export(model, path, precision="fp16", dataset=Scenes(6))
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {value.name: value.data_type for value in graph.initializer}
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert norms
    for node in [*norms, convolutions[-1]]:
        assert {types[name] for name in (*node.input, *node.output)} == {onnx.TensorProto.FLOAT}
    for node in convolutions[:-1]:
        assert {types[name] for name in node.input} == {onnx.TensorProto.FLOAT16}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_halves_in_pt2_keep_the_labels(precision: str, model: SegFormer, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    comparison = deploy.export(model, path, precision=precision, dataset=Scenes(6))
    before, after = comparison.miou
    assert abs(before - after) < 0.5
    dtypes = Counter(x.dtype for x in torch.export.load(path).state_dict.values())
    assert dtypes[torch.float16 if precision == "fp16" else torch.bfloat16] > dtypes[torch.float32]
