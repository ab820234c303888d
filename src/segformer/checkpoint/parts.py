"""The backbones and decode heads that a file can hold, and how a description builds them.

A description is a JSON object: class and ``config`` of ``backbone`` and ``decode_head``, and the
model's ``classes``, ``align_corners`` and ``normalization``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from segformer.networks.all_mlp import AllMLPHead, MMSegHead
from segformer.networks.convolutional import ConvolutionalMiT, LinearHead
from segformer.networks.mit import MiT
from segformer.networks.setr import MLAHead, NaiveHead, PUPHead
from segformer.networks.timm_backbone import TimmBackbone

# By the name of their class.
PARTS: dict[str, Callable[..., nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(MiT, AllMLPHead, MMSegHead),
        *(TimmBackbone, NaiveHead, PUPHead, MLAHead),
        *(ConvolutionalMiT, LinearHead),
    )
}
# Modules around other modules, which compute nothing of their own.
WRAPPERS = re.compile(
    r"(?:(?<=^)|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
P = TypeVar("P", bound=type[nn.Module])
T = TypeVar("T")


def part(kind: P) -> P:
    """Class decorator that lets files hold a backbone or head, which its ``config`` builds again.

    If its arguments could make it read other files, the class needs a classmethod
    ``checked_config``, which takes a config from a file, and returns one that is safe or raises
    ValueError.
    """
    PARTS[kind.__name__] = kind
    return kind


def unwrapped(state: dict[str, T]) -> dict[str, T]:
    """Returns a state dict with names as they are without wrapper modules."""
    return {unwrapped_name(key): value for key, value in state.items()}


def unwrapped_name(key: str) -> str:
    """Returns a parameter's name as it is without wrapper modules, such as torch.compile's."""
    return WRAPPERS.sub("", key)


def build(description: dict[str, Any]) -> Any:
    """Returns the parts of a description as an ``nn.ModuleDict``.

    Raises:
        ValueError: If this version has no class of that name, or the arguments do not fit it.
    """
    parts = {name: description[name] for name in ("backbone", "decode_head")}
    return nn.ModuleDict(
        {name: construct(part_class(d["class"]), d["config"]) for name, d in parts.items()}
    )


def construct(kind: Callable[..., T], arguments: Any) -> T:
    """Returns an object of a class from its arguments in a description.

    Raises:
        ValueError: If the arguments do not fit the class.
    """
    try:
        return kind(**arguments)
    except (TypeError, AttributeError, KeyError) as error:
        name = getattr(kind, "__name__", kind)
        raise ValueError(
            f"the description cannot build a {name}: {error}; copy or download the file again, or "
            "install a newer version"
        ) from error


def part_class(name: str) -> Callable[..., nn.Module]:
    """Returns the class of a backbone or head by its name.

    Raises:
        ValueError: If this version has none of that name.
    """
    if name not in PARTS:
        raise ValueError(
            f"the file holds a {name}, and this version reads only {', '.join(PARTS)}; "
            "install a newer one"
        )
    return PARTS[name]


def checked(description: dict[str, Any]) -> dict[str, Any]:
    """Returns a description whose configs the parts' classes have checked.

    Raises:
        ValueError: If a part's ``checked_config`` does.
    """
    parts = {}
    for name in ("backbone", "decode_head"):
        class_name, config = description[name]["class"], dict(description[name]["config"])
        check = getattr(part_class(class_name), "checked_config", dict)
        parts[name] = {"class": class_name, "config": check(config)}
    return {**description, **parts}
