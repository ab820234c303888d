"""Models of a Triton repository, read by Triton's own schema: `pip install tritonclient[grpc]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import randomized

from segformer import Classes, SegFormer, Variant, deploy

VARIANT = Variant(dims=(8, 16, 40, 64), depths=(1, 1, 1, 1), decoder_channels=16)

pytestmark = pytest.mark.extras


def config_of(folder: Path) -> Any:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", exc_type=ImportError)
    from google.protobuf import text_format

    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, schema.ModelConfig())


def export(folder: Path, **options: Any) -> Any:
    model = randomized(SegFormer(VARIANT, num_classes=3))
    model.classes = Classes(["road", "sky", "tall tree"])
    deploy.export(model, folder, "triton", **options)
    return config_of(folder)


def ports(folder: Path) -> dict[str, tuple[str, list[Any]]]:
    """Type and shape of the inputs and outputs of the ONNX file, as ONNX says."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(folder / "1" / "model.onnx").graph
    return {
        port.name: (
            onnx.TensorProto.DataType.Name(port.type.tensor_type.elem_type),
            [side.dim_value or -1 for side in port.type.tensor_type.shape.dim],
        )
        for port in (*graph.input, *graph.output)
    }


def test_a_model_with_open_axes_joins_requests(tmp_path: Path) -> None:
    config = export(tmp_path / "streets")
    assert config.name == "streets"
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 8
    assert config.HasField("dynamic_batching")
    images, labels = config.input[0], config.output[0]
    assert (images.name, images.data_type, list(images.dims)) == ("images", 11, [3, -1, -1])
    assert (labels.name, labels.data_type, list(labels.dims)) == ("labels", 2, [-1, -1])
    assert labels.label_filename == ""  # its names would be those of pixels
    assert json.loads(config.parameters["classes"].string_value) == ["road", "sky", "tall tree"]
    names = (tmp_path / "streets" / "labels.txt").read_text(encoding="utf-8")
    assert names.splitlines() == ["road", "sky", "tall tree"]
    found = ports(tmp_path / "streets")
    assert found == {"images": ("FLOAT", [-1, 3, -1, -1]), "labels": ("UINT8", [-1, -1, -1])}
    assert deploy.load(tmp_path / "streets").classes.names == ("road", "sky", "tall tree")


def test_a_model_with_a_size_takes_whole_shapes(tmp_path: Path) -> None:
    config = export(tmp_path / "streets", takes_size=True, input="uint8")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(port.dims) for port in config.input] == [[-1, -1, -1, 3], [2]]
    assert [port.data_type for port in config.input] == [2, 9]


def test_a_repository_is_replaced_whole_if_asked(tmp_path: Path) -> None:
    export(tmp_path / "streets")
    with pytest.raises(FileExistsError, match="exists already"):
        export(tmp_path / "streets")
    of_the_user = tmp_path / "streets" / "2" / "model.onnx"
    of_the_user.parent.mkdir()
    of_the_user.write_bytes(b"another version")
    export(tmp_path / "streets", overwrite=True, size=(64, 96))
    assert list(config_of(tmp_path / "streets").output[0].dims) == [64, 96]
    assert [path.name for path in tmp_path.iterdir()] == ["streets"]
    assert of_the_user.read_bytes() == b"another version"
    with pytest.raises(FileExistsError, match="holds no exported model that could be replaced"):
        export(tmp_path, overwrite=True)  # the repository, not a model in it


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_halves_have_floats_at_their_ends(output: str, tmp_path: Path) -> None:
    config = export(tmp_path / "streets", output=output, precision="fp16")
    assert (config.output[0].data_type, list(config.output[0].dims)) == (11, [3, -1, -1])


def test_a_fixed_batch_is_part_of_the_shapes(tmp_path: Path) -> None:
    config = export(tmp_path / "streets", batch=2)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [2, 3, -1, -1]
    assert list(config.output[0].dims) == [2, -1, -1]


def test_a_name_that_no_address_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'my streets' is no name of a Triton model; use letters"):
        export(tmp_path / "my streets")
    assert list(tmp_path.iterdir()) == []


def test_names_of_classes_are_kept_whole(tmp_path: Path) -> None:
    names = ['a "quoted" one', "back\\slash", "Straße"]
    model = randomized(SegFormer(VARIANT, num_classes=3))
    model.classes = Classes(names)
    deploy.export(model, tmp_path / "streets", "triton")
    assert json.loads(config_of(tmp_path / "streets").parameters["classes"].string_value) == names
