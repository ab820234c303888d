"""A public layout of a model's parameters, as tables of module names.

A row of a table maps a module of this package to the module of the layout that holds the same
numbers. Where one module holds what several modules hold in the other layout, the row lists all of
them; their tensors are concatenated along the first dimension.

In names of this package, ``{s}`` and ``{j}`` stand for the first two numbers, such as stage and
block, both from 0; further numbers are written out. Names of the layout may calculate with them
(``{s+1}``), and one that ends in ``_`` or ``.`` is joined to the tensor's name without a dot. A
layout without tables has the names of this package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from segformer.checkpoint.formats import State, WeightFile
from segformer.checkpoint.report import Report

Modules = str | tuple[str, ...]
Table = dict[Modules, Modules]
Keys = tuple[str, ...]

CLASSIFIER = "decode_head.classifier."  # the last layer of every head of this package
LAST_WEIGHT = f"{CLASSIFIER}weight"


class BackboneOnlyError(ValueError):
    """Raised for a file without a decode head, if no new head was requested."""


@dataclass(frozen=True)
class Layout:
    """A public layout of a model's parameters.

    Args:
        name: Name in messages and on the command line.
        marker: Key, without ``prefix``, that shows that a file holds a backbone of this layout.
        backbone: Table of the backbone; the layout's names are without ``prefix``.
        decode_head: Table of the decode head.
        prefix: Prefix of the backbone's keys in the file of a whole model; the file of a backbone
            has none.
        required: Key that distinguishes this layout from others with the same marker.
        classifier: Module of the ImageNet classifier, in files of a pre-trained backbone.
        unused: Reasons why keys are dropped, by the keys' prefixes.
        holds: The models that the layout can hold, in words for messages.
        fold: Rewrites a state dict, in place, into an equal one without the parameters that this
            package's models lack; returns what happened to each of them.
    """

    name: str
    marker: str
    backbone: Table = field(default_factory=dict)
    decode_head: Table = field(default_factory=dict)
    prefix: str = "backbone."
    required: str | None = None
    classifier: str = "head"
    unused: dict[str, str] = field(default_factory=dict)
    holds: str = "a MiT under an all-MLP head"
    fold: Callable[[State], dict[str, str]] = lambda state: {}

    def infer(
        self, state: State, file: WeightFile, num_classes: int | None, report: Report
    ) -> dict[str, Any]:
        """Returns the description of the model in a state dict.

        Raises:
            ValueError: If this layout cannot hold such a model.
            BackboneOnlyError: If it holds no decode head and ``num_classes`` requests no new one.
        """
        raise NotImplementedError

    @cached_property
    def _rows(self) -> dict[str, tuple[Keys, Keys]]:
        """The row of each module of this package: our names and theirs, with prefixes."""
        rows: dict[str, tuple[Keys, Keys]] = {}
        for our_prefix, their_prefix, table in (
            ("backbone.", self.prefix, self.backbone),
            ("decode_head.", "", self.decode_head),
        ):
            for ours, theirs in table.items():
                row = (
                    tuple(our_prefix + name for name in _as_tuple(ours)),
                    tuple(their_prefix + name for name in _as_tuple(theirs)),
                )
                rows |= dict.fromkeys(row[0], row)
        return rows

    def pairs(self, keys: Iterable[str]) -> Iterator[tuple[Keys, Keys]]:
        """Yields our keys and their keys that hold the same numbers, for a model's keys.

        Raises:
            ValueError: If the layout has no place for a module.
        """
        for key in keys:
            if not self._rows:
                yield (key,), (key,)
                continue
            module, _, tensor = key.rpartition(".")
            template, numbers = _generalized(module)
            if template not in self._rows:
                raise ValueError(
                    f"the {self.name} layout has no place for {key!r}; it holds {self.holds}"
                )
            ours, theirs = self._rows[template]
            if template == ours[0]:  # otherwise the row's first module yields the pair
                joined = (name if name.endswith(("_", ".")) else f"{name}." for name in theirs)
                yield (
                    tuple(f"{_filled(name, numbers)}.{tensor}" for name in ours),
                    tuple(_filled(name, numbers) + tensor for name in joined),
                )

    def their_key(self, key: str) -> str:
        """Returns the layout's key for one of ours, or the first of several."""
        return next(self.pairs([key]))[1][0]

    def has_head(self, state: State) -> bool:
        """Returns whether a state dict of this layout holds any tensor of a decode head."""
        prefixes = [
            name.partition("{")[0]
            for names in self.decode_head.values()
            for name in _as_tuple(names)
        ] or ["decode_head."]
        return any(key.startswith(tuple(prefixes)) for key in state)

    def shape(self, key: str, ndim: int, state: State, file: WeightFile) -> tuple[int, ...]:
        """Returns the shape of a tensor of this layout's state dict, by our key.

        Raises:
            ValueError: If the tensor is missing, or its number of dimensions is not ``ndim``.
        """
        name = self.their_key(key)
        if name not in state:
            raise ValueError(
                f"{str(file.path)!r} looks like the {self.name} layout but has no {name}"
            )
        if state[name].ndim != ndim:
            raise ValueError(
                f"{str(file.path)!r}: {name} is {tuple(state[name].shape)}, where {ndim} "
                "dimensions are expected"
            )
        return tuple(state[name].shape)

    def count(self, template: str, state: State) -> int:
        """Returns the number of modules: one more than the highest number that fills ``{}``.

        Args:
            template: One of our keys, with ``{}`` instead of the module's number.
            state: State dict of this layout.
        """
        return max(
            (n + 1 for n in range(100) if self.their_key(template.format(n)) in state), default=0
        )


def _as_tuple(names: Modules) -> Keys:
    return (names,) if isinstance(names, str) else names


def _generalized(module: str) -> tuple[str, dict[str, int]]:
    """``stages.2.blocks.5.norm1`` as ``stages.{s}.blocks.{j}.norm1`` with s=2 and j=5."""
    number = re.compile(r"(?<=\.)\d+(?=\.|$)")
    letters = iter("sj")
    numbers = {name: int(value) for name, value in zip("sj", number.findall(module), strict=False)}
    return number.sub(lambda _: f"{{{next(letters)}}}", module, count=2), numbers


def _filled(template: str, numbers: dict[str, int]) -> str:
    """Returns a template with its calculations done. Templates come from this package alone."""
    return re.sub(r"\{(.+?)\}", lambda match: str(eval(match[1], {}, numbers)), template)
