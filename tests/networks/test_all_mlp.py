"""The all-MLP head beside section 3.2 of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, randomized
from torch import Tensor, nn

from segformer import AllMLPHead, SegFormer
from segformer.networks.mit import VARIANTS


def literal_head(head: AllMLPHead, features: list[Tensor]) -> Tensor:
    """Section 3.2 of the paper, written out.

    Project each level, upsample all, concatenate coarsest first, fuse, classify.
    """
    size = features[0].shape[-2:]
    levels = []
    for x, proj in zip(features, head.projections, strict=True):
        x = F.conv2d(x, proj.weight[..., None, None], proj.bias)
        levels.append(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
    x = head.fuse(torch.cat(levels[::-1], dim=1))
    return head.classifier(head.dropout(F.relu(head.norm(x))))


def pyramid(channels: tuple[int, ...], height: int, width: int) -> list[Tensor]:
    return [
        torch.randn(2, c, -(-height // s), -(-width // s), dtype=torch.double)
        for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "size", [(64, 96), (65, 97), (400, 400)], ids=str
)  # composed at some levels
def test_head_is_the_papers(training: bool, size: tuple[int, int]) -> None:
    head = (
        randomized(AllMLPHead((8, 16, 20, 24), num_classes=7, channels=32)).double().train(training)
    )
    features = [f.requires_grad_() for f in pyramid((8, 16, 20, 24), *size)]
    inputs = [*features, *head.parameters()]
    outputs, gradients = [], []
    for forward in (head, lambda f: literal_head(head, f)):
        torch.manual_seed(1)  # the same channels dropped
        logits = forward(features)
        outputs.append(logits)
        gradients.append(torch.autograd.grad(logits.square().mean(), inputs))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("align", [(64, 96), (33, 71)], ids=str)
def test_evaluation_in_groups_of_channels_is_the_papers(align: tuple[int, int]) -> None:
    """The same logits with BatchNorm folded, weights composed, and a few channels at a time."""
    head = randomized(AllMLPHead((8, 16, 20, 24), num_classes=7, channels=200)).double()
    features = pyramid((8, 16, 20, 24), *align)
    with torch.no_grad():
        torch.testing.assert_close(head(features), literal_head(head, features), rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "fuse.weight",
        "projections.2.weight",
        "projections.0.bias",
        "norm.weight",
        "norm.running_var",
        "classifier.bias",
    ],
)
@pytest.mark.parametrize(
    "change",
    ["in place", "through .data", "one value through NumPy", "new tensor", "load_state_dict"],
)
def test_changed_weights_count_at_once(name: str, change: str) -> None:
    head = randomized(AllMLPHead((8, 16, 20, 24), num_classes=7, channels=32)).double()
    features = pyramid((8, 16, 20, 24), 64, 64)
    before = head(features)
    module, _, attribute = name.rpartition(".")
    tensor = head.get_parameter(name) if "running" not in name else head.get_buffer(name)
    if change == "in place":
        tensor.mul_(1.5)
    elif change == "through .data":
        tensor.data.mul_(1.5)  # as moving averages do: no version counts it
    elif change == "one value through NumPy":
        tensor.numpy().reshape(-1)[1] += 1
    elif change == "new tensor":
        setattr(head.get_submodule(module), attribute, type(tensor)(tensor * 1.5))
    else:
        head.load_state_dict(head.state_dict() | {name: tensor * 1.5}, assign=True)
    assert not torch.equal(head(features), before)
    torch.testing.assert_close(head(features), literal_head(head, features), rtol=0, atol=1e-10)


@torch.no_grad()
def test_hooks_are_called_and_replaced_modules_are_used() -> None:
    """A head with a hook, a parametrisation or another norm computes its plain definition."""
    head = randomized(AllMLPHead((8, 16, 20, 24), num_classes=7, channels=32)).double()
    features = pyramid((8, 16, 20, 24), 64, 64)
    heard: list[int] = []
    handle = head.classifier.register_forward_hook(lambda *_: heard.append(1))
    head(features)
    assert heard
    handle.remove()
    expected = head(features)
    torch.nn.utils.parametrizations.weight_norm(head.classifier)
    torch.testing.assert_close(head(features), expected, rtol=0, atol=1e-10)
    head.norm = torch.nn.GroupNorm(1, 32).double()
    torch.testing.assert_close(head(features), literal_head(head, features), rtol=0, atol=1e-10)


def test_training_updates_the_same_running_statistics() -> None:
    features = pyramid((8, 16, 20, 24), 64, 64)
    twins = [AllMLPHead((8, 16, 20, 24), 3, channels=16).double().train() for _ in range(2)]
    twins[1].load_state_dict(twins[0].state_dict())
    twins[0](features)
    literal_head(twins[1], features)
    torch.testing.assert_close(
        twins[0].norm.running_mean, twins[1].norm.running_mean, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        twins[0].norm.running_var, twins[1].norm.running_var, rtol=0, atol=1e-12
    )


# Published parameter counts of the decoder: 150 classes (ADE20K) and 19 (Cityscapes)
@pytest.mark.parametrize(
    ("variant", "ade", "cityscapes"),
    [("b0", 433_302, 399_635), ("b1", 564_374, 530_707), ("b5", 3_265_686, 3_164_947)],
)
def test_parameter_count_is_the_published_one(variant: str, ade: int, cityscapes: int) -> None:
    v = VARIANTS[variant]
    for num_classes, count in ((150, ade), (19, cityscapes)):
        assert (
            sum(p.numel() for p in AllMLPHead(v.dims, num_classes, v.decoder_channels).parameters())
            == count
        )


def test_dropout_drops_whole_channels() -> None:
    head = AllMLPHead((4,), 2, channels=64, dropout=0.5).train()
    dropped = head.dropout(torch.ones(1, 64, 8, 8)).flatten(2)
    assert ((dropped == 0).all(-1) | (dropped == 2).all(-1)).all()


def test_a_head_describes_itself() -> None:
    head = AllMLPHead((4, 8), 3, channels=16, dropout=0.2, norm_eps=1e-3)
    assert str(AllMLPHead(**head.config)) == str(head)


def test_impossible_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        AllMLPHead((4,), 0)
    with pytest.raises(ValueError, match="at least one feature map"):
        AllMLPHead((), 2)


class Halved(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


@pytest.mark.parametrize("recorded", [True, False], ids=["with gradients", "without"])
def test_parts_of_another_make_are_called(recorded: bool) -> None:
    features = [torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4)]
    heads = [randomized(AllMLPHead([8, 16], 3, 16)) for _ in range(2)]
    heads[1].fuse = Halved(32, 16, 1, bias=False)
    heads[1].load_state_dict(heads[0].state_dict())
    calls: list[nn.Module] = []
    with torch.set_grad_enabled(recorded):
        assert not torch.allclose(heads[0](features), heads[1](features))
        torch.testing.assert_close(heads[1](features), literal_head(heads[1], features))
        for part in (heads[0].dropout, heads[0].norm, heads[0].classifier, heads[0].fuse):
            part.register_forward_hook(lambda module, *_: calls.append(module))
        heads[0](features)
    assert calls == [heads[0].fuse, heads[0].norm, heads[0].dropout, heads[0].classifier]


def test_dropout_of_values_is_read_back(tmp_path: Path) -> None:
    layer = nn.Dropout(0.25)
    model = SegFormer(TINY, num_classes=2, dropout=layer)
    model.save(tmp_path / "model.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "model.safetensors").decode_head.dropout
    assert type(again) is nn.Dropout
    model.decode_head.dropout.train()
    for dropout in (again.train(), model.decode_head.dropout):
        x = torch.ones(1, 8, 16, 16)
        torch.manual_seed(0)
        dropped = dropout(x)
        torch.manual_seed(0)
        assert torch.equal(dropped, F.dropout(x, 0.25))
        torch.manual_seed(0)
        assert not torch.equal(dropped, F.dropout2d(x, 0.25))
    of_channels = AllMLPHead((4,), 2, dropout=nn.Dropout2d(0.3))
    assert of_channels.config == AllMLPHead((4,), 2, dropout=0.3).config
    with pytest.raises(ValueError, match=r"dropout is a AlphaDropout; give a rate, or torch.nn.Dr"):
        AllMLPHead((4,), 2, dropout=nn.AlphaDropout())


def test_dropout_drops_where_it_alone_trains() -> None:
    """Monte Carlo dropout: a model in evaluation mode, its dropout in training mode."""
    head = randomized(AllMLPHead([8, 16], 3, 16, dropout=0.5))
    features = [torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4)]
    with torch.no_grad():
        assert torch.equal(head(features), head(features))
        head.dropout.train()
        assert not torch.equal(head(features), head(features))
