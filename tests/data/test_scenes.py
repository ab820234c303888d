import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from segformer.data.scenes import CLASSES, Scenes

K = len(CLASSES)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def pixels():
    """Colours (64, height * width, 3) and classes (64, height * width) of 64 scenes."""
    images, labels = zip(*(Scenes(64, (128, 192))[i] for i in range(64)), strict=True)
    return torch.stack(images).flatten(2).mT.numpy(), torch.stack(labels).flatten(1).numpy()


def mean_iou(predicted, true):
    confusion = np.bincount(K * true.astype(int) + predicted, minlength=K * K).reshape(K, K)
    hits = np.diag(confusion)
    return (hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean()


def test_a_scene_depends_on_no_global_random_state():
    torch.manual_seed(1), np.random.seed(1)
    first = Scenes(9)[4]
    torch.manual_seed(2), np.random.seed(2)
    assert same(first, Scenes(9)[4])


def test_a_scene_depends_on_no_scene_drawn_before():
    scenes = Scenes(9, (64, 96))
    backwards = [scenes[i] for i in (2, 1, 0)]
    assert all(same(scenes[i], backwards[2 - i]) for i in range(3))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_processes_draw_the_same_scenes():
    scenes = Scenes(4, (64, 96))
    drawn = list(DataLoader(scenes, batch_size=None, num_workers=2))
    assert len(drawn) == 4
    assert all(same(drawn[i], scenes[i]) for i in range(4))


def test_scenes_do_not_depend_on_the_length():
    assert same(Scenes(1, (64, 96))[0], Scenes(1000, (64, 96))[0])


def test_every_index_and_every_seed_is_another_scene():
    drawn = {
        scenes[i][1].numpy().tobytes()
        for scenes in (Scenes(20, (32, 48), seed) for seed in (0, 1))
        for i in range(20)
    }
    assert len(drawn) == 40


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 40), (256, 384), (512, 1024)])
def test_items_are_uint8_images_and_masks_of_the_given_size(size):
    image, label = Scenes(1, size)[0]
    assert isinstance(image, tv_tensors.Image)
    assert isinstance(label, tv_tensors.Mask)
    assert (image.shape, label.shape) == ((3, *size), size)
    assert image.dtype == label.dtype == torch.uint8
    assert label.max() < K
    assert image.float().std() > 10


def test_a_dataset_has_its_length_and_classes():
    assert len(Scenes(7)) == 7
    assert Scenes.classes is CLASSES
    assert len(CLASSES) >= 8


def test_every_class_is_seen_in_more_than_half_of_the_scenes(pixels):
    present = np.stack([(pixels[1] == k).sum(1) >= 8 for k in range(K)])
    assert dict(zip(CLASSES.names, present.mean(1) > 0.5, strict=True)) == dict.fromkeys(
        CLASSES.names, True
    )


def test_every_index_of_the_label_map_is_a_class(pixels):
    assert pixels[1].max() < K


def test_the_colour_of_a_pixel_does_not_show_its_class(pixels):
    colors, true = pixels
    code = (colors // 16).astype(int) @ np.array([256, 16, 1])
    counts = np.bincount(K * code[:32].ravel() + true[:32].ravel(), minlength=K * 4096).reshape(
        4096, K
    )
    likeliest = counts.argmax(1)
    # The best guess from 4096 colours reaches 0.2. If each class had its own colours, it would be
    # close to 1.
    assert mean_iou(likeliest[code[32:].ravel()], true[32:].ravel()) < 0.3


def test_the_position_of_a_pixel_does_not_show_its_class(pixels):
    true = pixels[1]
    counts = np.stack([(true[:32] == k).sum(0) for k in range(K)])
    guess = np.broadcast_to(counts.argmax(0), true[32:].shape)
    assert mean_iou(guess.ravel(), true[32:].ravel()) < 0.3


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ((0,), "0"),
        ((-3,), "-3"),
        ((5, (31, 64)), "31"),
        ((5, (64, 8)), "8"),
        ((5, (64, 64), -1), "-1"),
    ],
)
def test_invalid_arguments_are_refused_with_their_value(arguments, value):
    with pytest.raises(ValueError, match=rf"{value}\b.*;"):
        Scenes(*arguments)


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_there_is_no_scene_beyond_the_length(index):
    with pytest.raises(IndexError, match=str(index)):
        Scenes(3)[index]


def test_iterating_ends_after_the_length():
    assert len(list(Scenes(3, (32, 32)))) == 3
