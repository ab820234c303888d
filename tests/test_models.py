import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import TINY, randomized
from torch import nn

from segformer import AllMLPHead, Classes, MiT, SegFormer, SegmentationModel

# The released checkpoints' parameters with 150 classes
PARAMETERS = {
    "b0": 3_752_694,
    "b1": 13_715_798,
    "b2": 27_461_974,
    "b3": 47_337_814,
    "b4": 64_108_374,
    "b5": 84_708_694,
}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_count_is_the_papers(variant: str) -> None:
    with torch.device("meta"):
        model = SegFormer(variant, num_classes=150)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize(
    "size",
    [
        (2, 3, 32, 32),
        (1, 3, 65, 97),
        (1, 3, 333, 500),
        pytest.param((1, 3, 1024, 2048), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_logits_have_the_images_size_and_predict_is_their_argmax(
    size: tuple[int, ...], device: torch.device
) -> None:
    model = randomized(SegFormer("b0", num_classes=4)).to(device)
    images = torch.randn(size, device=device)
    with torch.inference_mode():
        logits = model(images)
    assert logits.shape == (size[0], 4, *size[2:])
    labels = model.predict(images)
    assert labels.dtype == torch.int64
    if device.type == "cpu":
        assert torch.equal(labels, logits.argmax(1))
    else:  # two ways of interpolation, which may round otherwise where two classes tie
        torch.testing.assert_close(
            logits.gather(1, labels[:, None])[:, 0], logits.amax(1), rtol=0, atol=1e-5
        )
    assert labels.unique().numel() > 1


def test_predict_gives_labels_of_any_size(tiny: SegFormer) -> None:
    images = torch.randn(1, 3, 64, 96)
    coarse = tiny.decode_head(tiny.backbone(images))
    expected = nn.functional.interpolate(coarse, size=(50, 200), mode="bilinear").argmax(1)
    assert torch.equal(tiny.predict(images, size=(50, 200)), expected)


def test_predict_measures_in_evaluation_mode_and_leaves_every_mode_as_it_was(
    tiny: SegFormer,
) -> None:
    images = torch.randn(2, 3, 64, 64)
    expected = tiny.predict(images)
    tiny.train()
    tiny.backbone.stages[0].eval()
    state = copy.deepcopy(tiny.state_dict())
    assert torch.equal(tiny.predict(images), expected)
    assert tiny.training
    assert tiny.decode_head.norm.training
    assert not tiny.backbone.stages[0].training
    torch.testing.assert_close(tiny.state_dict(), state, rtol=0, atol=0)


def test_threads_that_predict_at_once_get_what_each_gets_alone(tiny: SegFormer) -> None:
    """Of a model in training mode: none leaves evaluation mode while another still needs it."""
    batches = [torch.randn(1, 3, 64, 64) for _ in range(40)]
    expected = [tiny.predict(images) for images in batches]
    tiny.train()
    state = copy.deepcopy(tiny.state_dict())
    with ThreadPoolExecutor(4) as threads:
        labels = list(threads.map(tiny.predict, batches))
    torch.testing.assert_close(labels, expected, rtol=0, atol=0)
    torch.testing.assert_close(tiny.state_dict(), state, rtol=0, atol=0)
    assert all(module.training for module in tiny.modules())


def test_an_interrupted_prediction_gives_the_modes_back(tiny: SegFormer) -> None:
    tiny.train()
    tiny.decode_head.dropout.eval()
    for _ in range(2):
        with pytest.raises(ValueError, match="too small"):
            tiny.predict(torch.randn(1, 3, 8, 8))
    assert [name for name, module in tiny.named_modules() if not module.training] == [
        "decode_head.dropout"
    ]


def test_predict_keeps_an_outer_autocast(tiny: SegFormer) -> None:
    seen = []
    tiny.decode_head.norm.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].dtype)
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        labels = tiny.predict(images)
        tiny.predict(images, dtype=torch.float16)
    tiny.predict(images)
    assert seen == [torch.bfloat16, torch.float16, torch.float32]
    assert torch.equal(labels, tiny.predict(images, dtype=torch.bfloat16))


def test_a_changed_epsilon_counts_at_once(tiny: SegFormer) -> None:
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = tiny(images)
        tiny.decode_head.norm.eps = 1.0
        after = tiny(images)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(
        after, tiny(images).detach(), rtol=1e-5, atol=1e-5
    )  # with gradients: BatchNorm's own


def test_every_parameter_receives_a_gradient() -> None:
    model = SegFormer(TINY, num_classes=3)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


def test_other_channels_and_one_class() -> None:
    assert SegFormer(TINY, num_classes=1, in_channels=5)(torch.randn(2, 5, 40, 50)).shape == (
        2,
        1,
        40,
        50,
    )


@pytest.mark.parametrize("recorded", [True, False], ids=["with gradients", "without"])
def test_an_empty_batch_gives_empty_logits_and_labels(tiny: SegFormer, recorded: bool) -> None:
    images = torch.randn(0, 3, 64, 96)
    with torch.set_grad_enabled(recorded):
        assert tiny(images).shape == (0, 5, 64, 96)
        assert tiny.predict(images).shape == (0, 64, 96)


def test_parts_compose_freely() -> None:
    class Pool(nn.Module):
        channels = (3, 3)

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [nn.functional.avg_pool2d(images, 4), nn.functional.avg_pool2d(images, 8)]

    images = torch.randn(2, 3, 32, 48)
    assert SegFormer(backbone=Pool(), num_classes=6)(images).shape == (2, 6, 32, 48)
    assert SegmentationModel(MiT(TINY), AllMLPHead(TINY.dims, 6, 16))(images).shape == (
        2,
        6,
        32,
        48,
    )


def test_builds_on_the_meta_device_without_a_byte() -> None:
    with torch.device("meta"):
        model = SegFormer("b5")
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_deepcopy_and_pickle_keep_function_and_names(tiny: SegFormer) -> None:
    tiny.classes = Classes(["a", "b", "c", "d", "e"])
    images = torch.randn(1, 3, 64, 64)
    for twin in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
        torch.testing.assert_close(twin(images), tiny(images), rtol=0, atol=0)
        assert twin.classes == tiny.classes


def test_half_precision_runs_and_stays_near(tiny: SegFormer, device: torch.device) -> None:
    images = torch.randn(1, 3, 64, 64, device=device)
    expected = tiny.to(device)(images)
    half = copy.deepcopy(tiny).half()(images.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.02)
    with torch.autocast(device.type, torch.bfloat16):
        autocast = tiny(images)
    torch.testing.assert_close(autocast.float(), expected, rtol=0, atol=0.1)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
# None compiles for the first size, and for any size at the second, as True does at once.
@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(
    tiny: SegFormer, device: torch.device, dynamic: bool | None
) -> None:
    tiny.to(device)
    compiled = torch.compile(
        tiny,
        fullgraph=True,
        dynamic=dynamic,
        backend="eager" if device.type == "cpu" else "inductor",
    )
    for size in ((64, 96), (80, 70)):
        images = torch.randn(1, 3, *size, device=device)
        torch.testing.assert_close(compiled(images), tiny(images), rtol=0, atol=1e-4)


def test_exports_with_dynamic_batch_and_size(tiny: SegFormer) -> None:
    dynamic = {
        0: torch.export.Dim("batch", min=1, max=8),
        2: torch.export.Dim("height", min=64),
        3: torch.export.Dim("width", min=64),
    }
    program = torch.export.export(tiny, (torch.randn(2, 3, 96, 128),), dynamic_shapes=(dynamic,))
    images = torch.randn(3, 3, 77, 130)
    torch.testing.assert_close(program.module()(images), tiny(images), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
def test_scripting_is_refused_with_the_cure_and_tracing_works(tiny: SegFormer) -> None:
    for module in (tiny, tiny.backbone, nn.Sequential(tiny)):
        with pytest.raises(
            NotImplementedError,
            match=r"cannot compile (SegFormer|MiT); .* use torch\.export\.export, or "
            r"torch\.jit\.trace",
        ):
            torch.jit.script(module)
    images = torch.randn(1, 3, 64, 96)
    traced = torch.jit.trace(tiny, images)
    torch.testing.assert_close(traced(images), tiny(images))


def test_as_many_names_as_classes() -> None:
    with pytest.raises(ValueError, match="2 class names .* for a model of 3 classes"):
        SegFormer(TINY, num_classes=3, classes=Classes(["road", "sky"]))
    assert SegFormer(TINY, classes=Classes(["road", "sky"])).num_classes == 2


def test_prediction_in_bfloat16_differs_between_classes_that_nearly_tie_only() -> None:
    model = randomized(SegFormer("b0", num_classes=5))
    images = torch.randn(2, 3, 64, 96)
    labels, low = model.predict(images), model.predict(images, dtype=torch.bfloat16)
    logits = model(images).detach()
    lost = (logits.gather(1, labels[:, None]) - logits.gather(1, low[:, None]))[:, 0]
    assert lost.max() < 0.03 * logits.abs().max()
    assert (labels == low).float().mean() > 0.9
