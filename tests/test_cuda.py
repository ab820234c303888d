"""What only a CUDA device can show: `pytest -m cuda`."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, randomized

from segformer import SegFormer
from segformer.ops import upsample_cross_entropy
from segformer.ops.triton import runs_on

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="reason: this machine has no CUDA device"
    ),
]
CLASSES = 19


@pytest.fixture
def model() -> SegFormer:
    return randomized(SegFormer(TINY, num_classes=CLASSES)).cuda()


def images(height: int = 96, width: int = 128, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, device="cuda")


def test_the_device_takes_the_kernels() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runs_on(torch.empty(1, device="cuda"))


def test_logits_and_gradients_are_the_cpus(model: SegFormer) -> None:
    twin = copy.deepcopy(model).cpu().double()
    model, x = model.double(), images().double()
    target = torch.randint(0, CLASSES, (2, 96, 128), device="cuda")
    losses = []
    for network, inputs, labels in ((model, x, target), (twin, x.cpu(), target.cpu())):
        loss = upsample_cross_entropy(network.decode_head(network.backbone(inputs)), labels)
        loss.backward()
        losses.append(loss.cpu())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(model(x).cpu(), twin(x.cpu()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_labels_are_the_argmax_of_the_logits(model: SegFormer, dtype: torch.dtype | None) -> None:
    x = images()
    logits = model(x)
    labels = model.predict(x, dtype=dtype)
    top = logits.topk(2, dim=1).values
    sure = (top[:, 0] - top[:, 1]) > (1e-4 if dtype is None else 0.05 * logits.abs().max())
    assert sure.float().mean() > 0.2
    assert torch.equal(labels[sure], logits.argmax(1)[sure])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_a_graph_labels_as_the_model_does(model: SegFormer, dtype: torch.dtype | None) -> None:
    for shape in ((96, 128, 1), (64, 64, 2), (96, 128, 1)):
        x = images(*shape)
        assert torch.equal(
            model.predict(x, dtype=dtype, cuda_graph=True), model.predict(x, dtype=dtype)
        )
    first = model.predict(x, dtype=dtype, cuda_graph=True)
    kept = first.clone()
    model.predict(images(*shape), dtype=dtype, cuda_graph=True)
    assert torch.equal(first, kept)  # an earlier result stays


def test_a_graph_sees_weights_that_change(model: SegFormer) -> None:
    x = images()
    model.predict(x, cuda_graph=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    assert torch.equal(model.predict(x, cuda_graph=True), model.predict(x))
    model.load_state_dict(
        {name: 0.8 * tensor for name, tensor in model.state_dict().items()}, assign=True
    )
    assert torch.equal(model.predict(x, cuda_graph=True), model.predict(x))
    model.bfloat16()
    assert torch.equal(model.predict(x.bfloat16(), cuda_graph=True), model.predict(x.bfloat16()))


def test_graphs_recorded_in_inference_mode_serve_outside_of_it(model: SegFormer) -> None:
    x = images()
    with torch.inference_mode():
        model.predict(x, cuda_graph=True)
    assert torch.equal(model.predict(x, cuda_graph=True), model.predict(x))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # a prototype, it says
def test_nothing_waits_for_the_device(model: SegFormer) -> None:
    x, target = images(), torch.randint(0, CLASSES, (2, 96, 128), device="cuda")

    def work() -> None:
        model.predict(x)
        model.predict(x, dtype=torch.bfloat16)
        loss = upsample_cross_entropy(model.decode_head(model.backbone(x)), target)
        loss.backward()

    work()  # libraries and kernels start
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_loss_takes_the_memory_of_its_stride_4_maps() -> None:
    logits = (
        torch.randn(2, 150, 128, 128, device="cuda")
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    )
    target = torch.randint(0, 150, (2, 512, 512), device="cuda")

    def peak(loss: torch.Tensor) -> int:
        loss.backward()
        return torch.cuda.max_memory_allocated()

    upsample_cross_entropy(logits, target).backward()
    torch.cuda.reset_peak_memory_stats()
    ours = peak(upsample_cross_entropy(logits, target))
    torch.cuda.reset_peak_memory_stats()
    plain = peak(F.cross_entropy(F.interpolate(logits, size=(512, 512), mode="bilinear"), target))
    assert ours < plain / 4
