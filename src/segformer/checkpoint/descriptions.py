"""The description of a model, from which its file builds the same model again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from segformer.checkpoint.formats import LICENCE_KEY, State
from segformer.checkpoint.parts import PARTS, build, checked, construct, unwrapped
from segformer.checkpoint.report import Report, some
from segformer.data.normalization import IMAGENET, Normalization
from segformer.networks.initialization import without_values

# Attributes that change a layer's output. Those that only change training (rates, momentum) are
# left out.
SETTINGS = (
    *("eps", "approximate", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("padding_mode", "heads", "num_heads", "scale", "scales", "align_corners", "negative_slope"),
)


def describe(model: Any) -> dict[str, Any]:
    """Returns what builds the same :class:`~segformer.SegmentationModel` again, as a JSON object.

    Raises:
        ValueError: If a part is of a class that cannot be built again, or the model differs from
            what its parts' ``config`` builds, because a layer was replaced, wrapped, pruned,
            quantised or changed.
    """
    description = {
        **{name: _describe_part(model, name) for name in ("backbone", "decode_head")},
        "classes": asdict(model.classes),
        "align_corners": model.align_corners,
        "normalization": model.normalization.to_dict(),
        **stated_licence(model),
    }
    _check_rebuilt(model, description)
    return description


def stated_licence(model: Any) -> dict[str, str]:
    """Returns the licence of a model's weights under its key in files; nothing if not known."""
    licence = getattr(model, "licence", None)
    return {LICENCE_KEY: licence} if licence else {}


def _describe_part(model: Any, name: str) -> dict[str, Any]:
    part = getattr(model, name)
    part = getattr(part, "_orig_mod", part)  # compiled
    kind = _without_fsdp(type(part))
    class_name = kind.__name__
    if PARTS.get(class_name) is not kind:
        raise ValueError(
            f"a {name} of class {class_name} cannot be saved, since from_pretrained builds only "
            f"{', '.join(PARTS)}; save its state dict with torch.save instead"
        )
    return {"class": class_name, "config": dict(part.config)}


def normalization_of(description: dict[str, Any], report: Report | None = None) -> Normalization:
    """Returns a description's normalization, or ImageNet's, for the model's number of channels."""
    stated = description.get("normalization")
    normalization = IMAGENET if stated is None else construct(Normalization, stated)
    channels = description["backbone"]["config"].get("in_channels", len(normalization.mean))
    if stated is not None and channels != len(normalization.mean) and report is not None:
        reason = f"to {channels} channels: the mean of {len(normalization.mean)}"
        report.add("adapted", "normalization", reason)
    return normalization.for_channels(channels)


def _check_rebuilt(model: nn.Module, description: dict[str, Any]) -> None:
    """Raises ValueError with the first differences if a description builds another model."""
    with without_values():
        rebuilt = build(checked(description))
    states = unwrapped(model.state_dict()), unwrapped(rebuilt.state_dict())
    differences = [*_tensor_differences(*states), *_layer_differences(model, rebuilt)]
    if differences:
        raise ValueError(
            "the model differs from what its config builds, so that its file could not be loaded: "
            f"{some(differences)}. Build a model with the changed arguments (such as num_classes), "
            "load this model's state_dict() into it, and save it. First merge adapters and remove "
            "parametrizations and pruning; save a quantised model before you quantise it"
        )


def _tensor_differences(ours: dict[str, Any], rebuilt: State) -> Iterator[str]:
    for key in sorted(ours.keys() | rebuilt.keys()):
        if key not in rebuilt:
            yield f"{key} is new"
        elif key not in ours:
            yield f"{key} is gone"
        elif not isinstance(ours[key], Tensor):
            yield f"{key} is a {type(ours[key]).__name__}"
        elif ours[key].shape != rebuilt[key].shape:
            yield f"{key} is {tuple(ours[key].shape)} instead of {tuple(rebuilt[key].shape)}"


def _layer_differences(model: nn.Module, rebuilt: nn.Module) -> Iterator[str]:
    layers, expected = _layers(model), _layers(rebuilt)
    for name in sorted(expected.keys() & layers.keys()):
        layer, wanted = layers[name], expected[name]
        if _inference_class(layer) is not _inference_class(wanted):
            yield f"{name} is a {type(layer).__name__} instead of a {type(wanted).__name__}"
            continue
        if "forward" in vars(layer):
            yield f"{name} has a forward of its own"
        for setting in SETTINGS:
            before, now = (getattr(module, setting, None) for module in (wanted, layer))
            if isinstance(before, bool | int | float | str | tuple) and before != now:
                yield f"{name}.{setting} is {now} instead of {before}"
    added = sorted(layers.keys() - expected.keys())
    yield from (
        f"{name} is new" for name in added if _inference_class(layers[name]) is not nn.Identity
    )


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules of backbone and head by name, without wrapper modules."""
    modules = unwrapped({f"{name}.": module for name, module in model.named_modules()})
    parts = ("backbone.", "decode_head.")
    return {name[:-1]: module for name, module in modules.items() if name.startswith(parts)}


def _inference_class(layer: nn.Module) -> type:
    """Returns a layer's class, the same for layers that differ only in training."""
    if isinstance(layer, _DropoutNd | DropPath):
        return nn.Identity
    return nn.BatchNorm2d if isinstance(layer, nn.SyncBatchNorm) else _without_fsdp(type(layer))


def _without_fsdp(kind: type) -> type:
    """Returns a module's class as it was before torch.distributed.fsdp.fully_shard replaced it."""
    is_sharded = any(base.__name__ == "FSDPModule" for base in kind.__mro__)
    return kind.__mro__[2] if is_sharded else kind
