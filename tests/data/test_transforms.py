from __future__ import annotations

import colorsys

import pytest
import torch
from torchvision import tv_tensors

from segformer.data.normalization import IMAGENET
from segformer.data.transforms import (
    Normalize,
    PadTo,
    PhotometricDistortion,
    RandomScaledCrop,
    TrainTransform,
)


def sample(height: int, width: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Returns an image and a label map of the same numbers, so that a shift of one shows."""
    label = torch.arange(height * width).reshape(height, width).remainder(7).to(torch.uint8)
    return tv_tensors.Image(label.expand(3, -1, -1).clone()), tv_tensors.Mask(label)


def test_scale_is_within_bounds_and_keeps_the_aspect() -> None:
    sizes = [RandomScaledCrop((9999, 9999))(*sample(100, 200))[1].shape for _ in range(200)]
    heights = torch.tensor([float(h) for h, _ in sizes])
    assert all(abs(w - 2 * h) <= 2 for h, w in sizes)
    assert heights.min() >= 50
    assert heights.max() <= 200
    # The factor is uniform: a third of the factors are below 1.
    assert (heights < 100).float().mean().item() == pytest.approx(1 / 3, abs=0.12)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((300, 400), (512, 683)), ((400, 300), (683, 512)), ((100, 1000), (205, 2048))],
)
def test_base_fits_the_image_into_2048_by_512(
    size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    image, label = RandomScaledCrop((9999, 9999), (1.0, 1.0), base=(2048, 512))(*sample(*size))
    assert tuple(image.shape[-2:]) == tuple(label.shape) == fitted


def test_label_maps_are_never_interpolated() -> None:
    _, label = sample(50, 60)
    label[label == 3] = 255
    image = tv_tensors.Image(torch.zeros(3, 50, 60, dtype=torch.uint8))
    for _ in range(20):
        scaled = RandomScaledCrop((40, 40), (0.7, 1.7), cat_max_ratio=2.0)(image, label)[1]
        assert set(scaled.unique().tolist()) <= {0, 1, 2, 4, 5, 6, 255}


def test_image_and_label_map_are_cropped_to_the_same_window() -> None:
    image, label = RandomScaledCrop((20, 30), (1.0, 1.0))(*sample(50, 61))
    assert label.shape == (20, 30)
    assert torch.equal(image[0], label)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.9])
def test_a_resized_window_equals_the_window_of_the_resized_image(factor: float) -> None:
    """In an image whose colours are its coordinates, they show a window's position and scale."""
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(240), indexing="ij")
    image = tv_tensors.Image(torch.stack([rows, columns, rows]).to(torch.uint8))
    label = tv_tensors.Mask(rows.to(torch.uint8))
    tops = []
    for _ in range(300):
        window, labels = RandomScaledCrop((64, 96), (factor, factor))(image, label)
        assert window.shape[-2:] == labels.shape == (64, 96)
        step = (window[0, -4].float() - window[0, 4].float()) / (64 - 8)
        assert (step - 1 / factor).abs().max() < 0.05
        assert (
            window[0].float() - labels.float()
        ).abs().max() <= 1 / factor + 1  # the same position in both
        tops.append(window[0, 0, 0].item())
    last = 200 - 64 / factor
    assert min(tops) < 0.05 * last + 2
    assert max(tops) > 0.95 * last - 2
    assert sum(tops) / len(tops) == pytest.approx(last / 2, abs=0.1 * last)


def test_crop_avoids_windows_of_one_class() -> None:
    """One class fills 90 % of the map.

    A window with this class alone is returned only if ten attempts find no other.
    """
    label = tv_tensors.Mask(torch.zeros(20, 200, dtype=torch.uint8))
    label[:, 180:] = 1
    image = tv_tensors.Image(torch.zeros(3, 20, 200, dtype=torch.uint8))

    def share_varied(crop: RandomScaledCrop) -> float:
        crops = [crop(image, label)[1] for _ in range(300)]
        return (
            sum(
                float(c.bincount().max() < 0.75 * c.numel())
                for c in (crop.flatten() for crop in crops)
            )
            / 300
        )

    p = 10 / 161  # ten of 161 windows hold more than ten columns of the other class
    once = share_varied(RandomScaledCrop((20, 40), (1.0, 1.0), cat_max_ratio=1.0))
    ten = share_varied(RandomScaledCrop((20, 40), (1.0, 1.0), cat_max_ratio=0.75))
    assert once == pytest.approx(p, abs=0.05)
    assert ten == pytest.approx(1 - (1 - p) ** 10, abs=0.1)


def test_crop_ignores_unlabelled_pixels() -> None:
    label = torch.full((10, 10), 255, dtype=torch.uint8)
    label[0, :4] = torch.tensor([0, 1, 2, 3])
    assert RandomScaledCrop((10, 10))._is_varied(label)
    label[:] = 255
    assert not RandomScaledCrop((10, 10))._is_varied(label)


def distorted(color: tuple[int, int, int], **changes: float) -> torch.Tensor:
    """Returns one pixel after only the given changes."""
    params = (
        dict.fromkeys(("brightness", "contrast", "saturation", "hue"))
        | {"contrast_first": True}
        | changes
    )
    image = tv_tensors.Image(torch.tensor(color, dtype=torch.uint8)[:, None, None])
    return PhotometricDistortion().transform(image, params).flatten()


def test_brightness_is_added_and_contrast_is_multiplied() -> None:
    assert distorted((10, 100, 250), brightness=20.0).tolist() == [30, 120, 255]
    assert distorted((10, 100, 250), brightness=-20.0).tolist() == [0, 80, 230]
    assert distorted((10, 100, 250), contrast=1.5).tolist() == [15, 150, 255]
    assert distorted((10, 100, 200), brightness=20.0, contrast=0.5).tolist() == [15, 60, 110]


def test_contrast_comes_before_or_after_saturation() -> None:
    """Contrast first clips red at 255; saturation moves the others halfway to the greatest."""
    assert distorted((200, 100, 50), contrast=1.5, saturation=0.5).tolist() == [255, 202, 165]
    assert distorted(
        (200, 100, 50), contrast=1.5, saturation=0.5, contrast_first=False
    ).tolist() == [255, 225, 188]


@pytest.mark.parametrize("color", [(200, 100, 50), (20, 180, 90), (90, 91, 250), (77, 77, 77)])
def test_saturation_and_hue_are_those_of_hsv(color: tuple[int, int, int]) -> None:
    """Compared with Python's colorsys."""
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in color))
    for factor in (0.5, 1.4):
        expected = torch.tensor(colorsys.hsv_to_rgb(h, min(1.0, s * factor), v)) * 255
        assert (distorted(color, saturation=factor) - expected).abs().max() <= 0.51
    grey = torch.tensor([max(color)] * 3)
    assert torch.equal(
        distorted(color, saturation=0.0, hue=30.0), grey.to(torch.uint8)
    )  # grey has no hue
    for degrees in (-30.0, 36.0):
        expected = torch.tensor(colorsys.hsv_to_rgb((h + degrees / 360) % 1, s, v)) * 255
        assert (distorted(color, hue=degrees) - expected).abs().max() <= 0.51


def test_large_images_are_distorted_in_pieces_like_small_images() -> None:
    image = tv_tensors.Image(torch.randint(256, (3, 300, 500), dtype=torch.uint8))
    params = dict.fromkeys(PhotometricDistortion.CHANGES, 1.2) | {"contrast_first": False}
    whole = PhotometricDistortion().transform(image, params)
    columns = [
        PhotometricDistortion().transform(tv_tensors.Image(column), params)
        for column in image.split(3, -1)
    ]
    assert torch.equal(whole, torch.cat(columns, -1))


def test_each_distortion_has_a_probability_of_one_half_and_is_within_its_bounds() -> None:
    draws = [PhotometricDistortion().make_params([]) for _ in range(400)]
    for name, low, high in (
        ("brightness", -32, 32),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
        ("hue", -36, 36),
    ):
        values = [draw[name] for draw in draws if draw[name] is not None]
        assert 150 <= len(values) <= 250
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high
    assert 150 <= sum(draw["contrast_first"] for draw in draws) <= 250


def test_samples_stay_on_their_device(device: torch.device) -> None:
    image, label = sample(40, 50)
    image, label = tv_tensors.Image(image.to(device)), tv_tensors.Mask(label.to(device))
    for _ in range(5):
        assert {tensor.device.type for tensor in TrainTransform((32, 32))(image, label)} == {
            device.type
        }


def test_distortion_does_not_change_labels() -> None:
    image, label = sample(20, 20)
    for _ in range(10):
        assert torch.equal(PhotometricDistortion()(image, label)[1], label)


def test_padding_is_0_for_images_and_255_for_labels() -> None:
    image, label = PadTo((40, 50))(
        tv_tensors.Image(torch.ones(3, 30, 60)),
        tv_tensors.Mask(torch.ones(30, 60, dtype=torch.uint8)),
    )
    assert image.shape == (3, 40, 60)
    assert image[:, :30].eq(1).all()
    assert image[:, 30:].eq(0).all()
    assert label[30:].eq(255).all()


def test_normalisation_maps_the_mean_colour_to_0() -> None:
    mean = (torch.tensor(IMAGENET.mean) * 255).round().to(torch.uint8)
    image = Normalize()(tv_tensors.Image(mean[:, None, None].expand(3, 4, 4)))
    assert image.abs().max() < 0.01
    assert image.dtype == torch.float32
    with pytest.raises(TypeError, match=r"torch.float32, and the normalization takes uint8"):
        Normalize()(image)


@pytest.mark.parametrize("size", [(30, 40), (64, 64), (200, 333)], ids=str)
def test_training_samples_have_the_crops_size(size: tuple[int, int]) -> None:
    image, label = TrainTransform((64, 96))(*sample(*size))
    assert image.shape == (3, 64, 96)
    assert image.dtype == torch.float32
    assert label.shape == (64, 96)
    assert label.dtype == torch.uint8


def test_flips_have_a_probability_of_one_half() -> None:
    image, label = sample(64, 65)
    transform = TrainTransform((64, 65), scale=(1.0, 1.0))
    same = sum(torch.equal(transform(image, label)[1], label) for _ in range(100))
    assert 30 <= same <= 70


def test_scales_in_descending_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scale=\(2.0, 0.5\) must be two positive factors"):
        RandomScaledCrop((8, 8), (2.0, 0.5))
