"""The data flow of a model: PyTorch itself says what every module takes, returns and costs."""

from __future__ import annotations

import copy
import functools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from conftest import TINY
from docs import generate
from PIL import ImageFont
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segformer import (
    SETR,
    ConvSegFormer,
    MiT,
    MLAHead,
    PUPHead,
    SegFormer,
    SegmentationModel,
    TimmBackbone,
    Variant,
)
from segformer.cli import main
from segformer.evaluation.flow import Flow, Step, draw, trace
from segformer.evaluation.multiply_adds import multiply_adds
from segformer.evaluation.names import build_named
from segformer.networks.all_mlp import MMSegHead
from segformer.ops import plain

SMALL = replace(TINY, depths=(1, 1, 1, 1))
DEEP = Variant(dims=(8, 16), depths=(3, 1), decoder_channels=8, heads=(1, 2), sr_ratios=(4, 1))


class OwnBackbone(nn.Module):
    """A backbone of a user, which no file could hold, with parameters of its own."""

    channels = (6, 12)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.stem = nn.Conv2d(3, 6, 4, 4)
        self.down = nn.Conv2d(6, 12, 2, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.shared(self.shared(self.scale * self.stem(images)))
        return [x, self.down(x)]


class OwnHead(nn.Module):
    """A head of a user that reads one map, but not the last."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x: Tensor = self.layer(features[0])
        return x.relu()


class NoHead(nn.Module):
    """A head without modules."""

    num_classes = 6

    def forward(self, features: list[Tensor]) -> Tensor:
        return features[0]


def setr(head: Any, **options: Any) -> SegmentationModel:
    """SETR's heads over one of timm's small Vision Transformers."""
    backbone = TimmBackbone("test_vit", class_token=head.CLASS_TOKEN, **options)
    return SegmentationModel(backbone, head(backbone.channels, 5, 16))


def mmseg() -> SegmentationModel:
    backbone = MiT(DEEP)
    return SegmentationModel(backbone, MMSegHead(backbone.channels, 5, 16), align_corners=True)


MODELS: dict[str, Callable[[], SegmentationModel]] = {
    "four bands": lambda: SegFormer(SMALL, num_classes=5, in_channels=4),
    "one logit": lambda: SegFormer(DEEP, num_classes=1, in_channels=1),
    "mmsegmentation": mmseg,
    "convolutional": lambda: ConvSegFormer(dims=16, heads=(1, 2, 2, 4), num_layers=1),
    "PUP": lambda: setr(PUPHead, in_channels=4),
    "MLA": lambda: setr(MLAHead),
    "resnet": lambda: SegFormer(TimmBackbone("test_resnet"), 5, decoder_channels=16),
    "vit": lambda: SegFormer(TimmBackbone("test_vit"), 5, decoder_channels=16),
    "a user's": lambda: SegFormer(OwnBackbone(), 5, decoder_channels=16),
    "a user's head": lambda: SegmentationModel(OwnBackbone(), OwnHead()),
    "no head": lambda: SegmentationModel(OwnBackbone(), NoHead()),
}
SIZE = (64, 96)


@functools.cache
def model_and_flow(name: str) -> tuple[SegmentationModel, Flow]:
    model = MODELS[name]().eval()
    return model, trace(model, *SIZE)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> SegmentationModel:
    return model_and_flow(request.param)[0]


@pytest.fixture
def flow(model: SegmentationModel, request: pytest.FixtureRequest) -> Flow:
    return model_and_flow(request.node.callspec.params["model"])[1]


def image_for(model: SegmentationModel, **options: Any) -> Tensor:
    return torch.zeros(1, len(model.normalization.mean), *SIZE, **options)


def modules(flow: Flow) -> list[Step]:
    """The steps that are calls of modules."""
    return [step for step in flow.model.walk() if step.path]


def test_the_sums_are_the_models(model: SegmentationModel, flow: Flow) -> None:
    assert flow.model.parameters == sum(p.numel() for p in model.parameters())
    with plain():
        assert flow.model.multiply_adds == multiply_adds(model, *SIZE)
    assert flow.fewest_multiply_adds == multiply_adds(model, *SIZE)


def test_every_module_costs_what_pytorch_counts(model: SegmentationModel, flow: Flow) -> None:
    """FlopCounterMode's hooks count what is computed inside each module."""
    twin = copy.deepcopy(model).to("meta")
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(image_for(model))
    expected = {
        name.partition(".")[2]: sum(counts.values()) // 2
        for name, counts in counter.get_flop_counts().items()
        if "." in name
    }
    counted: dict[str, int] = {}
    for step in modules(flow):
        counted[step.path] = counted.get(step.path, 0) + step.multiply_adds
    assert expected["backbone"] > 0
    assert {name: number for name, number in counted.items() if number} == {
        name: number for name, number in expected.items() if number
    }


def test_every_module_takes_and_returns_the_shapes_of_a_real_run(
    model: SegmentationModel, flow: Flow
) -> None:
    real: list[tuple[str, Any, Any]] = []

    def shapes(value: Any) -> tuple[Any, ...]:
        if isinstance(value, Tensor):
            return (tuple(value.shape[1:] if len(value) == 1 else value.shape),)
        return tuple(shape for item in value for shape in shapes(item))

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, out: real.append((name, shapes(args), shapes(out)))

    hooks = [x.register_forward_hook(note(name)) for name, x in model.named_modules() if name]
    with torch.no_grad():
        model(image_for(model))
    for hook in hooks:
        hook.remove()
    recorded = [(step.path, step.inputs, step.outputs) for step in modules(flow)]
    left_out = {name for name, *_ in real} - {name for name, *_ in recorded}
    assert sorted(recorded) == sorted(call for call in real if call[0] not in left_out)
    kinds = {type(model.get_submodule(name)).__name__ for name in left_out}
    assert kinds <= {"Identity", "Dropout", "Dropout2d", "DropPath", "Sequential"}


@pytest.mark.parametrize(
    ("name", "size"), [("one logit", (33, 65)), ("resnet", (100, 47)), ("PUP", (47, 33))]
)
def test_any_size_has_the_maps_of_a_real_run(name: str, size: tuple[int, int]) -> None:
    """Sizes that are no multiple of a stride, and that timm's models round up."""
    model, _ = model_and_flow(name)
    flow = trace(model, *size)
    with torch.no_grad():
        features = model.backbone(torch.zeros(1, len(model.normalization.mean), *size))
        logits = model.decode_head(features)
    encoder, head, upsampling, labels = flow.model.steps
    assert encoder.outputs == tuple(tuple(x.shape[1:]) for x in features)
    assert head.outputs == upsampling.inputs == (tuple(logits.shape[1:]),)
    assert upsampling.outputs == labels.inputs == ((model.num_classes, *size),)
    assert labels.outputs == (size,)


def test_a_model_is_left_as_it_was_and_its_hooks_are_not_called() -> None:
    model = SegFormer(DEEP, num_classes=5)
    before = copy.deepcopy(model.state_dict())
    called: list[nn.Module] = []
    model.decode_head.classifier.register_forward_hook(lambda module, *_: called.append(module))
    trace(model, 64, 64)
    assert called == []
    assert model.training
    assert sum(len(module._forward_hooks) for module in model.modules()) == 1
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_precision_of_the_weights_does_not_matter() -> None:
    model, flow = model_and_flow("one logit")
    assert trace(copy.deepcopy(model).to(torch.bfloat16), *SIZE) == flow


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (0, 64), (-3, -3)])
def test_a_size_below_the_least_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"image of -?\d+×-?\d+ is too small .* at least 32 pixels"
    ):
        trace(SegFormer(TINY), *size)


def test_a_size_that_timms_model_does_not_take_is_refused() -> None:
    with torch.device("meta"):
        model = SegFormer(TimmBackbone("beit_base_patch16_224"))
    with pytest.raises(ValueError, match="does not take an image of 64×96: Input height"):
        trace(model, 64, 96)


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


@functools.cache
def flow_of_b0() -> Flow:
    with torch.device("meta"):
        return trace(SegFormer("b0"), 512, 512)


def test_the_documentation_shows_the_picture_of_b0() -> None:
    """`python -c "from docs import generate; generate.flow()"` draws it again."""
    path = Path(generate.ROOT, "docs", generate.PICTURES["b0"])
    assert path.read_text(encoding="utf-8") == draw(flow_of_b0())


def test_the_table_shows_the_papers_figure() -> None:
    table = flow_of_b0().table()
    rows = [cells(line) for line in table.splitlines()]
    for row in (
        ["stages.0", "3×512×512", "32×128×128", "stage of 2 blocks", "164,096", "1.02 G"],
        ["blocks.0–1 × 2", "64×64×64", "64×64×64", "transformer block", "236,544", "661 M"],
        ["proj", "3×512×512", "32×128×128", "7×7 convolution, stride 4", "4,736", "77.1 M"],
        ["1×16384×32", "1×16384×32", "softmax(q kᵀ / √d) v", "537 M"],
        ["256×16×16", "256×128×128", "bilinear upsampling"],
        ["4 maps", "1024×128×128", "concatenation"],
        ["150×128×128", "150×512×512", "bilinear upsampling"],
        ["150×512×512", "512×512", "argmax over the classes"],
        ["total", "3,752,694", "8.39 G"],
    ):
        assert row in rows, row
    operations = {row[3] for row in rows if len(row) == 6}
    assert {"attention, 1 head, keys reduced 8×8", "attention, 8 heads"} <= operations
    assert {"3×3 depthwise convolution", "Mix-FFN 32 → 128 → 32"} <= operations
    assert max(map(len, table.splitlines())) < 112


def test_repeated_blocks_are_one_row_and_the_column_adds_up() -> None:
    model, flow = model_and_flow("one logit")
    lines = flow.table().splitlines()
    first, end = (lines[2].index(word) for word in ("input", "multiply-adds"))
    names = [line[:first].rstrip() for line in lines]
    assert "    blocks.0–2 × 3" in names
    rows = [(name, line[:end]) for name, line in zip(names, lines, strict=True) if name][2:]
    rows = rows[: [name for name, _ in rows].index("total")]
    indents = [len(name) - len(name.lstrip()) for name, _ in rows]
    sums = 0
    for (_, row), indent, following in zip(rows, indents, [*indents[1:], 0], strict=True):
        number = re.search(r" ([\d,]+)\s*$", row)
        if following <= indent and number:
            sums += int(number[1].replace(",", ""))
    assert sums == sum(p.numel() for p in model.parameters())


def test_depth_leaves_out_the_rows_below() -> None:
    _, flow = model_and_flow("one logit")
    shown, whole = flow.table(2).splitlines(), flow.table().splitlines()
    assert len(shown) < len(whole)
    names = {cells(line)[0] for line in shown}
    assert "stages.0" in names
    assert "embed" not in names
    assert names & {"total"}


# The picture


def svg(flow: Flow) -> ET.Element:
    return ET.fromstring(draw(flow))


def texts(picture: ET.Element) -> list[tuple[str, float, float, float, float]]:
    """Each text with its left, upper, right and lower end, in the widest usual font."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = []
    for element in picture.iter("{http://www.w3.org/2000/svg}text"):
        size = float(element.get("font-size", 12))
        face = "DejaVuSans-Bold.ttf" if element.get("font-weight") else "DejaVuSans.ttf"
        width = ImageFont.truetype(fonts / face, 100).getlength(element.text or "") * size / 100
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        left = x if element.get("text-anchor") == "start" else x - width / 2
        found.append((element.text or "", left, y - 0.75 * size, left + width, y + 0.2 * size))
    return found


def test_no_text_of_the_picture_covers_another_or_leaves_it(flow: Flow) -> None:
    check_texts(svg(flow))


@pytest.mark.parametrize("size", [(64, 512), (512, 64)], ids=str)
def test_pictures_of_long_images_have_room_for_their_text(size: tuple[int, int]) -> None:
    check_texts(svg(trace(model_and_flow("one logit")[0], *size)))


def check_texts(picture: ET.Element) -> None:
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    found = texts(picture)
    for text, left, top, right, bottom in found:
        assert left >= 0, text
        assert top >= 0, text
        assert right <= width, text
        assert bottom <= height, text
    for a, b in combinations(found, 2):
        across = min(a[3], b[3]) - max(a[1], b[1])
        down = min(a[4], b[4]) - max(a[2], b[2])
        assert min(across, down) <= 0, (a[0], b[0])


def test_the_picture_says_what_the_model_costs(flow: Flow) -> None:
    """The parameters of all boxes are those of the model."""
    words = [text for text, *_ in texts(svg(flow))]
    assert any(f"{flow.model.parameters:,} parameters, " in text for text in words)
    numbers = [re.fullmatch(r"([\d,]+) parameters", text) for text in words]
    in_boxes = sum(int(number[1].replace(",", "")) for number in numbers if number)
    assert in_boxes == flow.model.parameters
    for feature in flow.model.steps[0].outputs:
        assert " × ".join(map(str, feature)) in words


def test_sides_of_maps_are_roots_of_their_cells() -> None:
    picture = svg(trace(model_and_flow("four bands")[0], 64, 64))
    squares = []
    for element in picture.iter("{http://www.w3.org/2000/svg}polygon"):
        points = [tuple(map(float, p.split(","))) for p in element.attrib["points"].split()]
        (left, top), (right, _), _, (_, bottom) = points[:4]
        if element.get("fill") == "#c9dcfa":  # the front of the encoder's maps
            squares.append((right - left, bottom - top))
    assert len(squares) == 5
    assert all(math.isclose(width, height, abs_tol=0.2) for width, height in squares)
    ratios = [squares[0][0] / width for width, _ in squares]
    roots = [math.sqrt(64 / side) for side in (64, 16, 8, 4, 2)]
    assert ratios == pytest.approx(roots, rel=0.02)


# The command, and models by name


def inspect(*words: str) -> None:
    main(["inspect", *words])


def refused(*words: str) -> str:
    """The sentence with which the command refuses its arguments."""
    with pytest.raises(SystemExit) as stop:
        inspect(*words)
    assert stop.value.code == 2
    assert len(str(stop.value).splitlines()) == 1
    return str(stop.value)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("b1", lambda: SegFormer("b1", 7)),
        ("setr-tiny-mla", lambda: SETR("tiny", 7, MLAHead)),
        ("conv-segformer", lambda: ConvSegFormer(num_classes=7)),
        ("test_resnet", lambda: SegFormer(TimmBackbone("test_resnet"), 7)),
    ],
)
def test_a_name_builds_what_its_constructor_does(
    name: str, build: Callable[[], SegmentationModel]
) -> None:
    with torch.device("meta"):
        named, built = build_named(name, 7), build()
    assert type(named) is type(built)
    shapes = [{key: x.shape for key, x in m.state_dict().items()} for m in (named, built)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("name", "nearest"), [("b7", "b5"), ("setr-larg", "setr-large"), ("resnet5", "resnet50")]
)
def test_a_wrong_name_names_the_nearest(name: str, nearest: str) -> None:
    sentence = refused(name)
    assert f"no file, folder or model {name!r}; did you mean" in sentence
    assert nearest[:2] in sentence.partition("did you mean")[2]


def test_inspect_summarizes_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    inspect("b0", "--num-classes", "19", "--in-channels", "4")
    shown = " ".join(capsys.readouterr().out.split())
    assert "variant b0 decode head AllMLPHead, 256 channels image channels 4 classes 19:" in shown


def test_a_file_wins_over_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    SegFormer(SMALL, num_classes=3).save("model.safetensors")
    Path("model.safetensors").rename("b0")
    inspect("b0")
    assert "layout         native" in capsys.readouterr().out


def test_the_command_prints_the_table_and_writes_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "flow.svg"
    words = ["test_resnet", "--flow", "64", "96", "--depth", "2", "--draw", str(path)]
    inspect(*words)
    flow = trace(build_named("test_resnet"), 64, 96)
    assert capsys.readouterr().out == f"{flow.table(2)}\nwrote {path}\n"
    assert path.read_text(encoding="utf-8") == draw(flow)
    assert "exists already" in refused(*words)
    inspect(*words, "--overwrite")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["b0", "--flow", "16", "64"], "an image of 16×64 is too small"),
        (["b0", "--draw", "flow.png"], "'flow.png' is an SVG file; let its name end in .svg"),
        (["b0", "--draw", "gone/flow.svg"], "no folder 'gone' to write 'flow.svg' into"),
        (["b0", "--depth", "2"], "--depth 2 is for the table of --flow; add --flow H W"),
        (["b0", "--flow", "64", "64", "--depth", "0"], "--depth 0 shows nothing; give 1 or more"),
        (["b0", "--revision", "main"], "'b0' is the name of a model; remove revision"),
        (["b0", "--num-classes", "0"], "num_classes must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(*words)
    assert list(tmp_path.iterdir()) == []
