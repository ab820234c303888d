"""What an exported file carries beside its graph: all that is needed to use it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from segformer import __version__
from segformer.checkpoint import describe
from segformer.data.classes import Classes
from segformer.data.normalization import Normalization

KEY = "segformer"  # of the description in a file's metadata
LICENCE = (
    "The licence of these weights is that of the checkpoint they come from; those released by "
    "NVIDIA are for non-commercial use."
)


@dataclass(frozen=True)
class Description:
    """How an exported file is used.

    Args:
        classes: Names and colours of the classes.
        normalization: How its images are normalised: by the caller, or inside the graph for pixels.
        num_classes: Number of the network's logits.
        min_size: Smallest height and width of an image in pixels.
        input: ``"normalized"``, float32 (B, C, H, W), or ``"uint8"``, pixels (B, H, W, C).
        output: ``"labels"``, ``"logits"`` or ``"probabilities"``.
        batch: The only batch size that the graph takes; None for any.
        size: The only height and width that the graph takes; None for any.
        takes_size: Whether the graph has a second input, the height and width of its output.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``.
        network: The parts of the network with their settings.
        licence: A note on the licence of the weights.
        version: Version of this library.
    """

    classes: Classes
    normalization: Normalization
    num_classes: int
    min_size: int
    input: str = "normalized"
    output: str = "labels"
    batch: int | None = None
    size: tuple[int, int] | None = None
    takes_size: bool = False
    precision: str = "fp32"
    network: dict[str, Any] = field(default_factory=dict)
    licence: str = LICENCE
    version: str = __version__

    @classmethod
    def of(cls, model: Any, **options: Any) -> Description:
        """Returns the description of a model's export with these options."""
        return cls(
            classes=model.classes,
            normalization=model.normalization,
            num_classes=model.num_classes,
            min_size=model.min_size,
            network=_network(model),
            licence=getattr(model, "licence", None) or LICENCE,
            **options,
        )

    @property
    def channels(self) -> int:
        return len(self.normalization.mean)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the graph's images, with -1 for what is left open."""
        batch, (height, width) = self.batch or -1, self.size or (-1, -1)
        if self.input == "uint8":
            return batch, height, width, self.channels
        return batch, self.channels, height, width

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "normalization": self.normalization.to_dict()})

    @classmethod
    def of_file(cls, text: str | None, path: Path) -> Description:
        """Returns the description that a file's metadata hold as JSON.

        Raises:
            ValueError: If they hold none, or that of another version.
        """
        if text is None:
            raise ValueError(
                f"{str(path)!r} was not written by segformer export; export it from its weights"
            )
        try:
            return cls._of_fields(json.loads(text))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the description in {str(path)!r} cannot be read by segformer {__version__}: "
                f"{error}; export the model again with this version, or install the one that wrote "
                "it"
            ) from error

    @classmethod
    def _of_fields(cls, stated: dict[str, Any]) -> Description:
        if unknown := sorted(set(stated) - {known.name for known in fields(cls)}):
            raise ValueError(
                f"it was written by segformer {stated.get('version')} and states "
                f"{', '.join(unknown)}"
            )
        classes, normalization = Classes(**stated["classes"]), stated["normalization"]
        parts = {
            "classes": classes,
            "normalization": Normalization(**normalization),
            "size": stated["size"] and tuple(stated["size"]),
        }
        return cls(**{**stated, **parts})


def unreadable(engine: str, path: Path, error: Exception | str) -> ValueError:
    """Returns the error for a file that its engine refuses."""
    reason = str(error).strip().splitlines()[-1].partition(". ")[0] or type(error).__name__
    return ValueError(
        f"{engine} cannot read {str(path)!r} ({reason.rstrip('.!')}); it is broken or of another "
        "tool: export the model again"
    )


def _network(model: Any) -> dict[str, Any]:
    """Returns the parts of a model with their settings; of a user's parts only the class."""
    try:
        description = describe(model)
        parts = {key: description[key] for key in ("backbone", "decode_head", "align_corners")}
        return dict(json.loads(json.dumps(parts)))  # as it is read from a file
    except ValueError:  # parts that no checkpoint can hold
        parts = {name: type(getattr(model, name)).__name__ for name in ("backbone", "decode_head")}
        return {**parts, "align_corners": model.align_corners}
