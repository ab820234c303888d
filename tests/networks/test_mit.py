import copy
import math
import pickle

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segformer import VARIANTS, MiT, SegFormer, Variant
from segformer.networks.mit import EfficientSelfAttention, MixFFN

# arXiv 2105.15203: channels from table 6, encoder parameters as in table 1a (millions)
PAPER = {
    "b0": ((32, 64, 160, 256), 3.4),
    "b1": ((64, 128, 320, 512), 13.1),
    "b2": ((64, 128, 320, 512), 24.2),
    "b3": ((64, 128, 320, 512), 44.0),
    "b4": ((64, 128, 320, 512), 60.8),
    "b5": ((64, 128, 320, 512), 81.4),
}


@pytest.mark.parametrize("variant", PAPER)
def test_pyramid_of_512_is_128_64_32_16(variant: str, device: torch.device) -> None:
    channels, _ = PAPER[variant]
    backbone = MiT(variant).to(device).eval()
    with torch.inference_mode():
        features = backbone(torch.randn(1, 3, 512, 512, device=device))
    assert [tuple(f.shape) for f in features] == [
        (1, c, s, s) for c, s in zip(channels, (128, 64, 32, 16), strict=True)
    ]
    assert backbone.channels == channels


@pytest.mark.parametrize("variant", PAPER)
def test_encoder_parameters_are_the_papers(variant: str) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in MiT(variant).parameters())
    assert parameters / 1e6 == pytest.approx(PAPER[variant][1], abs=0.1)


@given(height=st.integers(32, 150), width=st.integers(32, 150))
@settings(max_examples=15, deadline=None)
def test_any_size_gives_the_ceiling_at_every_stride(height: int, width: int) -> None:
    with torch.device("meta"):
        features = MiT(TINY)(torch.empty(2, 3, height, width))
    assert [tuple(f.shape[-2:]) for f in features] == [
        (-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)
    ]


def test_features_are_channels_last_memory() -> None:
    for feature in MiT(TINY)(torch.randn(2, 3, 64, 96)):
        assert feature.is_contiguous(memory_format=torch.channels_last)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 12),
    batch=st.integers(1, 3),
    piece=st.sampled_from([1, 4000, 20_000]),
)
@settings(max_examples=60, deadline=None)
def test_ffn_in_strips_is_the_whole(height: int, width: int, batch: int, piece: int) -> None:
    """Strips of a few rows with their neighbours, beside the map at once with gradients."""
    ffn = MixFFN(4, 12, nn.GELU()).double()
    x = torch.randn(batch, height, width, 4, dtype=torch.double)
    whole = ffn(x)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("segformer.ops.memory.PIECE", piece)
        torch.testing.assert_close(ffn(x), whole, rtol=0, atol=1e-12)


def test_maps_are_never_copied() -> None:
    """Channels-last end to end.

    What the profiler sees made contiguous are weights of convolutions, which stay as they are
    saved. Or an image's keys and values, which are such weights in tiles: smaller than any map.
    """
    backbone = MiT(TINY).eval()
    images = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as profile:
        features = backbone(images)
    weights = {tuple(p.shape) for p in backbone.parameters()}
    events = profile.key_averages(group_by_input_shape=True)
    copied = {
        tuple(event.input_shapes[0])
        for event in events
        if event.key in ("aten::contiguous", "aten::clone")
    }
    assert all(shape in weights or math.prod(shape) < features[-1].numel() for shape in copied)


def test_parameters_are_contiguous_as_safetensors_demands() -> None:
    assert all(
        tensor.is_contiguous() for tensor in SegFormer(TINY, num_classes=2).state_dict().values()
    )


def test_attention_equals_the_formula() -> None:
    """Equation 1 of the paper, written out with a softmax, over equation 2's reduced sequence."""
    attn = EfficientSelfAttention(8, heads=2, sr_ratio=2, norm=nn.LayerNorm).double()
    x = torch.randn(3, 6, 4, 8, dtype=torch.double)
    tokens = x.flatten(1, 2)
    reduced = attn.reduce.conv(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    reduced = attn.reduce.norm(reduced)
    k, v = attn.kv(reduced).split(8, dim=-1)
    q = attn.q(tokens)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(q[..., h] @ k[..., h].transpose(1, 2) / 4**0.5, dim=-1)
        heads.append(weights @ v[..., h])
    expected = attn.proj(torch.cat(heads, dim=-1)).unflatten(1, (6, 4))
    torch.testing.assert_close(attn(x), expected, rtol=0, atol=1e-12)


def test_mix_ffn_sees_its_neighbours_and_no_farther() -> None:
    ffn = MixFFN(4, 8, nn.GELU())
    x = torch.randn(1, 7, 7, 4)
    moved = x.clone()
    moved[0, 3, 3] += 1
    changed = (ffn(moved) - ffn(x)).abs().amax(-1)[0] > 1e-7
    assert changed[2:5, 2:5].all()
    assert changed.sum() == 9


def test_initialisation_is_the_published_one() -> None:
    stage = MiT("b0").stages[3]
    linear, conv, depthwise = stage.blocks[0].ffn.fc1, stage.embed.proj, stage.blocks[0].ffn.dwconv
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert linear.weight.abs().max() <= 2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.03)
    assert not any(p.any() for name, p in stage.named_parameters() if name.endswith("bias"))


def test_layer_norm_epsilons_are_the_released_ones() -> None:
    for name, module in MiT("b0").named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-5 if "embed" in name or "reduce" in name else 1e-6), name


def test_drop_path_rises_linearly_over_all_blocks() -> None:
    rates = [
        getattr(b.drop_path, "drop_prob", 0.0)
        for s in MiT("b2", drop_path=0.3).stages
        for b in s.blocks
    ]
    assert rates == pytest.approx([0.3 * i / 15 for i in range(16)])


def test_gradient_checkpointing_changes_no_gradient() -> None:
    backbone = MiT(TINY, drop_path=0.0).double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.double)

    def gradients() -> list[torch.Tensor]:
        backbone.zero_grad()
        sum(f.square().sum() for f in backbone(images)).backward()
        return [p.grad.clone() for p in backbone.parameters()]

    plain = gradients()
    backbone.set_grad_checkpointing()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        recomputed = gradients()
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-12)
    backbone.set_grad_checkpointing(False)
    kept = len(saved)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        gradients()
    assert kept < len(saved) - kept


def test_an_encoder_describes_itself() -> None:
    backbone = MiT("b1", in_channels=4, drop_path=0.2, norm_eps=1e-5, act="gelu_tanh")
    again = MiT(**backbone.config)
    assert again.config == backbone.config
    assert str(again) == str(backbone)
    custom = MiT(TINY)
    assert str(MiT(**custom.config)) == str(custom)


def test_deepcopy_and_pickle_give_the_same_function() -> None:
    backbone = MiT(TINY).eval()
    images = torch.randn(1, 3, 64, 64)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        torch.testing.assert_close(twin(images), backbone(images), rtol=0, atol=0)


def test_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown variant 'b6'; choose one of b0, b1, b2, b3, b4, b5"
    ):
        SegFormer("b6")
    assert list(VARIANTS) == list(PAPER)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(3, 64, 64), r"got shape \(3, 64, 64\); add the batch dimension"),
        (torch.zeros(1, 4, 64, 64), "images have 4 channels .* build it with in_channels=4"),
        (torch.zeros(1, 64, 64, 3), "permute the images"),
        (torch.zeros(1, 3, 31, 64), "31×64 are too small; at least 32×32"),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            "images are torch.uint8, not floating point; normalise them",
        ),
    ],
)
def test_images_of_another_kind_are_refused(images: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MiT(TINY)(images)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"act": "relu6"}, "unknown activation 'relu6'; choose one of gelu, gelu_tanh"),
    ],
)
def test_impossible_encoders_are_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MiT("b0", **arguments)  # type: ignore[arg-type]


def test_impossible_variants_are_refused() -> None:
    with pytest.raises(ValueError, match="10 channels cannot be split into 3 heads"):
        Variant((8, 10, 12, 16), (1, 1, 1, 1), 16, heads=(1, 3, 3, 4))
    with pytest.raises(ValueError, match="depths=.* does not have one value a stage"):
        Variant((8, 10, 12, 16), (1, 1, 1), 16)
