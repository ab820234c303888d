"""The kinds of results of a prediction."""

from __future__ import annotations

from collections.abc import Iterable

from segformer.inference.results.base import Prediction, Result, Summary
from segformer.inference.results.coco import Coco
from segformer.inference.results.contact_sheet import ContactSheet
from segformer.inference.results.pictures import Labels, Masks, Overlay, OverlayPng
from segformer.inference.results.polygons import Polygons
from segformer.inference.results.probabilities import Confidence, Heatmap, Probabilities
from segformer.inference.results.tables import Manifest, Shares

__all__ = [
    "DEFAULT",
    "KINDS",
    "Coco",
    "Confidence",
    "ContactSheet",
    "Heatmap",
    "Labels",
    "Manifest",
    "Masks",
    "Overlay",
    "OverlayPng",
    "Polygons",
    "Prediction",
    "Probabilities",
    "Result",
    "Shares",
    "Summary",
    "find_results",
]

KINDS: dict[str, Result | Summary] = {
    kind.name: kind
    for kind in (
        *(Labels(), Overlay(), OverlayPng(), Probabilities(), Confidence(), Heatmap(), Masks()),
        *(Polygons(), Coco(), Shares(), Manifest(), ContactSheet()),
    )
}
DEFAULT: tuple[Result, ...] = (Labels(), Overlay())


def find_results(names: Iterable[str]) -> tuple[tuple[Result, ...], tuple[Summary, ...]]:
    """Returns the results for each image, and those for the run, by their names.

    Raises:
        ValueError: If there is no result of a name.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in KINDS:
            raise ValueError(f"unknown result {name!r}; choose some of {', '.join(KINDS)}")
    kinds = [KINDS[name] for name in names]
    return (
        tuple(kind for kind in kinds if isinstance(kind, Result)),
        tuple(kind for kind in kinds if isinstance(kind, Summary)),
    )
