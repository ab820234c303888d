"""The papers' protocols equal brute force and their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, randomized
from halves import Halves
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segformer import Classes, SegFormer
from segformer.data.normalization import Normalization
from segformer.data.transforms import Normalize
from segformer.evaluation import (
    PROTOCOLS,
    TTA_RATIOS,
    Protocol,
    Slide,
    Whole,
    evaluate,
    find_protocol,
    label_large,
)
from segformer.evaluation.metrics import Scores
from segformer.train.data import SegmentationData


def position_dependent(images: Tensor) -> Tensor:
    """Its logits of a pixel depend on the window, so that a wrong average differs."""
    height, width = images.shape[-2:]
    rows, columns = (
        torch.linspace(0, 1, height, dtype=images.dtype)[:, None],
        torch.linspace(0, 1, width, dtype=images.dtype),
    )
    return torch.stack(
        [images.mean(1) * rows, images[:, 0] + columns, images[:, 1] * rows * columns], 1
    )


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 23)] * 2), st.tuples(*[st.integers(1, 9)] * 2), st.data())
def test_sliding_is_the_mean_over_all_windows(
    size: tuple[int, int], crop: tuple[int, int], data: Any
) -> None:
    stride = tuple(data.draw(st.integers(1, side)) for side in crop)
    images = torch.randn(2, 3, *size, dtype=torch.double)
    expected, count = torch.zeros(2, 3, *size, dtype=torch.double), torch.zeros(size)
    rows, columns = (
        max(side - c + s - 1, 0) // s + 1 for side, c, s in zip(size, crop, stride, strict=True)
    )
    for i in range(rows):  # as in mmsegmentation
        for j in range(columns):
            bottom, right = (
                min(i * stride[0] + crop[0], size[0]),
                min(j * stride[1] + crop[1], size[1]),
            )
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            expected[:, :, top:bottom, left:right] += position_dependent(
                images[:, :, top:bottom, left:right]
            )
            count[top:bottom, left:right] += 1
    assert count.min() > 0
    torch.testing.assert_close(
        Slide(crop, stride).logits(position_dependent, images), expected / count, rtol=0, atol=1e-12
    )  # type: ignore[arg-type]


def test_augmentation_at_test_time_is_its_definition() -> None:
    """The mean of the softmax over ratios and mirrored images, at the image's own size."""
    images = torch.randn(1, 3, 24, 40, dtype=torch.double)
    expected = []
    for ratio in (0.5, 1.0, 1.5):
        scaled = (
            F.interpolate(images, size=(int(24 * ratio), int(40 * ratio)), mode="bilinear")
            if ratio != 1
            else images
        )
        for mirrored in (False, True):
            logits = position_dependent(scaled.flip(-1) if mirrored else scaled)
            logits = logits.flip(-1) if mirrored else logits
            expected.append(F.interpolate(logits, size=(24, 40), mode="bilinear").softmax(1))
    protocol = Protocol(ratios=(0.5, 1.0, 1.5), flip=True)
    torch.testing.assert_close(
        protocol.probabilities(position_dependent, images),
        torch.stack(expected).mean(0),
        rtol=0,
        atol=1e-12,
    )
    assert torch.equal(
        protocol.predict(position_dependent, images), torch.stack(expected).mean(0).argmax(1)
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 683), (512, 704)),
        ((364, 500), (512, 704)),
        ((300, 2000), (320, 2048)),
        ((1000, 400), (1280, 512)),
    ],
    ids=str,
)
def test_ade20k_is_fitted_into_2048_by_512_and_rounded_up_to_32(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert find_protocol("ade20k").sizes(*size) == [expected]


def test_protocols_have_the_papers_settings() -> None:
    assert find_protocol("cityscapes").mode == Slide((1024, 1024), (768, 768))
    assert find_protocol("cityscapes").sizes(1024, 2048) == [(1024, 2048)]
    assert find_protocol("cityscapes", tta=True).sizes(1024, 2048)[0] == (512, 1024)
    assert find_protocol("cityscapes", tta=True).ratios == (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2)
    assert find_protocol("aligned").sizes(360, 480) == [(384, 480)]
    assert find_protocol("ade20k", tta=True).ratios == (0.75, 0.875, 1, 1.125, 1.25)
    assert all(find_protocol(name, tta=True).flip for name in PROTOCOLS)
    assert TTA_RATIOS.keys() == PROTOCOLS.keys()
    with pytest.raises(ValueError, match="unknown protocol 'crop'; choose one of whole, aligned"):
        find_protocol("crop")
    with pytest.raises(ValueError, match="windows get no label"):
        Slide((8, 8), (9, 8))


def test_any_module_can_be_evaluated() -> None:
    model = SegFormer(TINY, num_classes=2)
    dataset = Halves(3)
    whole = evaluate(model, dataset)
    direct = torch.zeros(2, 2, dtype=torch.long)
    for image, label in (dataset[k] for k in range(3)):
        predicted = model.predict(Normalize()(image)[None])[0]
        for truth in (0, 1):
            direct[truth] += torch.bincount(predicted[label == truth], minlength=2)
    assert torch.equal(whole.confusion.long(), direct)
    assert model.training
    by_function = evaluate(
        lambda images: model.eval()(images)[:, :, ::2, ::2], dataset, Protocol(Whole(), flip=True)
    )
    assert 0 <= by_function.miou <= 1


def test_other_classes_than_those_of_the_data_are_refused() -> None:
    model = SegFormer(TINY, num_classes=3)
    with pytest.raises(ValueError, match="the model has 3 classes, and the data 2"):
        evaluate(model, Halves(1))

    def third(images: Tensor) -> Tensor:
        return torch.eye(3)[2].view(1, 3, 1, 1).expand(1, 3, *images.shape[-2:])

    with pytest.raises(ValueError, match="predicts class 2, and the data have 2 classes"):
        evaluate(third, Halves(1))


def test_a_class_alone_is_label_1_beside_the_background() -> None:
    class Leaves(list[Any]):
        classes = Classes(["leaf"])

    label = torch.zeros(64, 64, dtype=torch.uint8)
    label[:, :16] = 1

    def left_half(images: Tensor) -> Tensor:  # one logit
        column = torch.arange(images.shape[3]).expand(1, 1, *images.shape[2:])
        return 32.0 - 0.5 - column

    data = Leaves([(torch.zeros(3, 64, 64, dtype=torch.uint8), label)])
    scores = evaluate(left_half, data)
    assert scores.to_dict(data.classes)["iou"] == {"background": 32 / 48, "leaf": 16 / 32}
    with pytest.raises(ValueError, match=r"the data have one class, leaf, and a network needs at"):
        SegmentationData(data, None, Normalize())


def test_means_of_half_precision_are_taken_in_single_precision() -> None:
    model = randomized(SegFormer(TINY, num_classes=5)).bfloat16().eval()
    images = torch.randn(1, 3, 96, 130).bfloat16()
    with torch.no_grad():
        probabilities = Protocol(Slide((64, 64), (32, 33)), flip=True).probabilities(model, images)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 96, 130))


@pytest.mark.parametrize("mode", [Whole(), Slide((32, 32), (24, 24))], ids=str)
def test_a_model_of_another_precision_is_evaluated_in_it(mode: Whole | Slide) -> None:
    model, dataset = randomized(SegFormer(TINY, num_classes=2)), Halves(3)
    exact = evaluate(model, dataset, Protocol(mode, scale=(64, 64), flip=True))
    rounded = evaluate(model.bfloat16(), dataset, Protocol(mode, scale=(64, 64), flip=True))
    assert rounded.confusion.sum() == exact.confusion.sum()
    assert rounded.pixel_accuracy == pytest.approx(exact.pixel_accuracy, abs=0.05)


@pytest.mark.parametrize(
    ("size", "mode"),
    [((70, 95), Slide((40, 40), (30, 24))), ((20, 30), Slide((40, 40), (40, 40)))],
    ids=str,
)
def test_a_large_image_is_labelled_by_rows_of_windows(
    size: tuple[int, int], mode: Slide, tmp_path: Path
) -> None:
    def model(images: Tensor) -> Tensor:
        return position_dependent(images.double())

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    np.save(tmp_path / "image.npy", pixels)
    out = np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", "uint8", size)
    label_large(model, np.load(tmp_path / "image.npy", mmap_mode="r"), out, mode)
    images = Normalize()(torch.from_numpy(pixels).permute(2, 0, 1))[None]
    assert np.array_equal(out, mode.logits(model, images).argmax(1)[0].numpy())
    with pytest.raises(ValueError, match=r"\(H, W, 3\) and \(H, W\) are needed"):
        label_large(model, pixels, out[:-1], mode)


@pytest.mark.parametrize("classes", [2, 7, 19])
def test_scores_are_torchmetrics_and_mmsegmentations(classes: int) -> None:
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

    generator = torch.Generator().manual_seed(classes)
    target = torch.randint(
        classes - 1, (3, 20, 30), generator=generator
    )  # the last class is absent
    predicted = torch.where(
        torch.rand(target.shape, generator=generator) < 0.6,
        target,
        torch.randint(classes - 1, target.shape),
    )
    target[torch.rand(target.shape, generator=generator) < 0.1] = 255
    confusion = MulticlassConfusionMatrix(classes, ignore_index=255)
    confusion.update(predicted, target)
    scores = Scores.of(confusion.compute())
    valid = target != 255
    intersect, of_label, of_prediction = (
        torch.histc(values[valid].float(), classes, 0, classes - 1)
        for values in (torch.where(predicted == target, predicted, -1), target, predicted)
    )
    intersect = torch.stack(
        [((predicted == k) & (target == k)).sum() for k in range(classes)]
    ).float()
    iou, accuracy = intersect / (of_label + of_prediction - intersect), intersect / of_label
    assert scores.iou == pytest.approx(iou.tolist(), nan_ok=True)
    assert scores.accuracy == pytest.approx(accuracy.tolist(), nan_ok=True)
    assert scores.miou == pytest.approx(float(iou.nanmean()))
    assert scores.mean_accuracy == pytest.approx(float(accuracy.nanmean()))
    assert scores.pixel_accuracy == pytest.approx(
        float((predicted == target)[valid].float().mean())
    )
    if classes > 2:
        jaccard = MulticlassJaccardIndex(classes, average="none", ignore_index=255)
        assert scores.iou[:-1] == pytest.approx(jaccard(predicted, target).tolist()[:-1])


def test_a_large_image_of_one_logit_has_two_labels() -> None:
    def model(images: Tensor) -> Tensor:
        return position_dependent(images.double())[:, :1]

    pixels = np.random.default_rng(0).integers(0, 256, (70, 95, 3), np.uint8)
    out, mode = np.zeros((70, 95), np.uint8), Slide((40, 40), (30, 24))
    label_large(model, pixels, out, mode)
    images = Normalize()(torch.from_numpy(pixels).permute(2, 0, 1))[None]
    assert np.array_equal(out, (mode.logits(model, images)[0, 0] > 0).numpy())
    assert 0 < out.mean() < 1


def test_an_array_that_cannot_hold_the_labels_is_refused() -> None:
    def model(images: Tensor) -> Tensor:
        return images.new_zeros(1, 300, *images.shape[-2:])

    pixels = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(
        ValueError, match="up to 255 cannot hold 300 classes; give an array of uint16"
    ):
        label_large(model, pixels, np.zeros((8, 8), np.uint8), Slide((8, 8), (8, 8)))
    label_large(model, pixels, np.zeros((8, 8), np.uint16), Slide((8, 8), (8, 8)))


def test_a_label_map_on_its_side_is_refused() -> None:
    class Turned(list[Any]):
        classes = Classes(["left", "right"])

    image, label = torch.zeros(3, 64, 96, dtype=torch.uint8), torch.zeros(96, 64).byte()
    model = SegFormer(TINY, num_classes=2)
    with pytest.raises(ValueError, match="image 0 has 64×96 pixels, and its label map 96×64"):
        evaluate(model, Turned([(image, label)]))
    assert evaluate(model, Turned([(image, label[:32, :48])])).confusion.sum() == 32 * 48


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel])
def test_wrappers_keep_the_models_normalization(wrap: Any) -> None:
    class Bright(nn.Module):
        normalization = Normalization((0.1, 0.1, 0.1), (0.01, 0.01, 0.01))

        def forward(self, images: Tensor) -> Tensor:
            level = images.mean(1, keepdim=True)
            return torch.cat([-level, level], 1)

    confusion = evaluate(Bright(), Halves(2)).confusion
    assert torch.equal(evaluate(wrap(Bright()), Halves(2)).confusion, confusion)
    assert not torch.equal(evaluate(Bright().forward, Halves(2)).confusion, confusion)
