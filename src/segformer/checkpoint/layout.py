"""A public arrangement of a model's parameters, as tables.

A table's row maps a module of ours to the module of theirs that holds the same numbers. Where one holds what several hold elsewhere, the
row names all of them, and their tensors follow one another along the first dimension. The first two numbers in a name of ours are ``{s}``
and ``{j}``, such as stage and block, both from 0, and further ones stand for themselves; a name of theirs may calculate with them
(``{s+1}``). A name of theirs that ends in ``_`` or ``.`` is joined to the tensor's name as it is. Without tables the names are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from segformer.checkpoint.files import State, WeightFile
from segformer.checkpoint.report import Report

Modules = str | tuple[str, ...]
Table = dict[Modules, Modules]
Keys = tuple[str, ...]


class BackboneOnlyError(ValueError):
    """A file without a decode head, where none was asked for."""


@dataclass(frozen=True)
class Layout:
    """One public arrangement of the same parameters.

    Args:
        name: what it is called in messages and on the command line.
        marker: the key, without ``prefix``, by which its backbone is known.
        backbone: the table inside the backbone; their names without ``prefix``.
        decode_head: the table inside the head.
        prefix: what stands before the backbone's keys in a whole model's file, and not in a backbone's.
        sign: a key that tells this layout from others with the same marker.
        classifier: the module of an ImageNet classifier, in files of a pre-trained backbone.
        unused: prefixes of keys that belong to no model of ours, with the reason.
        holds: what it has a place for, in words.
        fold: rewrites a state dict with parameters that we do not have into an equal one without; returns what it folded.
    """

    name: str
    marker: str
    backbone: Table = field(default_factory=dict)
    decode_head: Table = field(default_factory=dict)
    prefix: str = "backbone."
    sign: str | None = None
    classifier: str = "head"
    unused: dict[str, str] = field(default_factory=dict)
    holds: str = "a MiT under an all-MLP head"
    fold: Callable[[State], dict[str, str]] = lambda state: {}

    def infer(
        self, state: State, file: WeightFile, num_classes: int | None, report: Report
    ) -> dict[str, Any]:
        """The description of the model that a state dict holds.

        Raises:
            ValueError: when it is none that this layout knows.
            BackboneOnlyError: when it holds no decode head, and ``num_classes`` asks for none.
        """
        raise NotImplementedError

    @cached_property
    def _rows(self) -> dict[str, tuple[Keys, Keys]]:
        """Each module of ours, and its row: all of ours and all of theirs, with the parts' prefixes."""
        rows: dict[str, tuple[Keys, Keys]] = {}
        for ours_prefix, theirs_prefix, table in (
            ("backbone.", self.prefix, self.backbone),
            ("decode_head.", "", self.decode_head),
        ):
            for ours, theirs in table.items():
                row = (
                    tuple(ours_prefix + name for name in _several(ours)),
                    tuple(theirs_prefix + name for name in _several(theirs)),
                )
                rows |= dict.fromkeys(row[0], row)
        return rows

    def pairs(self, keys: Iterable[str]) -> Iterator[tuple[Keys, Keys]]:
        """For the keys of a model of ours: our keys and theirs that hold the same numbers, each pair once.

        Raises:
            ValueError: when the layout has no place for a module.
        """
        for key in keys:
            if not self._rows:
                yield (key,), (key,)
                continue
            module, _, tensor = key.rpartition(".")
            template, places = _generalized(module)
            if template not in self._rows:
                raise ValueError(
                    f"the {self.name} layout has no place for {key!r}; it holds {self.holds}"
                )
            ours, theirs = self._rows[template]
            if template == ours[0]:
                joined = (name if name.endswith(("_", ".")) else f"{name}." for name in theirs)
                yield (
                    tuple(f"{_filled(name, places)}.{tensor}" for name in ours),
                    tuple(_filled(name, places) + tensor for name in joined),
                )

    def theirs(self, key: str) -> str:
        """Their key for one of ours, or the first of them."""
        return next(self.pairs([key]))[1][0]

    def has_head(self, state: State) -> bool:
        """Whether a state dict of theirs holds anything of a decode head."""
        starts = [
            name.partition("{")[0]
            for names in self.decode_head.values()
            for name in _several(names)
        ] or ["decode_head."]
        return any(key.startswith(tuple(starts)) for key in state)

    def shape(self, key: str, ndim: int, state: State, file: WeightFile) -> tuple[int, ...]:
        """The shape that a state dict of theirs has for a key of ours.

        Raises:
            ValueError: when it has none, or of other dimensions.
        """
        name = self.theirs(key)
        if name not in state:
            raise ValueError(
                f"{str(file.path)!r} looks like the {self.name} layout but has no {name}"
            )
        if state[name].ndim != ndim:
            raise ValueError(
                f"{str(file.path)!r}: {name} is {tuple(state[name].shape)}, where {ndim} dimensions are expected"
            )
        return tuple(state[name].shape)

    def count(self, template: str, state: State) -> int:
        """One more than the last index of which there is a key; ``template`` is a key of ours with ``{}`` in the index's place."""
        return max(
            (n + 1 for n in range(100) if self.theirs(template.format(n)) in state), default=0
        )


def _several(names: Modules) -> Keys:
    return (names,) if isinstance(names, str) else names


def _generalized(module: str) -> tuple[str, dict[str, int]]:
    """``stages.2.blocks.5.norm1`` as ``stages.{s}.blocks.{j}.norm1`` with s=2 and j=5."""
    number = re.compile(r"(?<=\.)\d+(?=\.|$)")
    letters = iter("sj")
    places = {name: int(place) for name, place in zip("sj", number.findall(module), strict=False)}
    return number.sub(lambda _: f"{{{next(letters)}}}", module, count=2), places


def _filled(template: str, places: dict[str, int]) -> str:
    """A template with its calculations done; templates are this package's own."""
    return re.sub(r"\{(.+?)\}", lambda match: str(eval(match[1], {}, places)), template)
