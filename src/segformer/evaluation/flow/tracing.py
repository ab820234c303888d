"""From a model and the size of an image to the data flow.

The model runs once on the meta device, without data, and by the plain definitions of all operators,
which call each module as the paper draws it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segformer.evaluation.flow.recording import Recorder
from segformer.evaluation.flow.steps import Step
from segformer.evaluation.flow.table import count, table
from segformer.evaluation.multiply_adds import MultiplyAdds, without_data
from segformer.models import SegmentationModel
from segformer.ops import plain


@dataclass(frozen=True)
class Flow:
    """The data flow of a model for one image.

    Args:
        size: Height and width of the image.
        model: The steps of the model, from the image to the labels.
        fewest_multiply_adds: Multiply-adds of the library's faster implementations.
    """

    size: tuple[int, int]
    model: Step
    fewest_multiply_adds: int

    @property
    def title(self) -> str:
        """The backbone and the decode head, in words."""
        encoder, head, *_ = self.model.steps
        return f"{encoder.operation}, {head.operation}"

    def table(self, depth: int | None = None) -> str:
        """Returns the steps as a table, each indented below the module that calls it.

        Args:
            depth: Number of levels of modules that are shown; by default all.
        """
        height, width = self.size
        heading = f"{self.title}: one image of {height}×{width}"
        notes = ["Shapes are without the batch of one. Numbers count all repetitions."]
        if self.fewest_multiply_adds != self.model.multiply_adds:
            fewest = count(self.fewest_multiply_adds)
            notes.append(
                f"The faster implementations of segformer.ops need {fewest} multiply-adds."
            )
        return "\n".join([heading, "", *table(self.model, depth), "", *notes])


def trace(model: SegmentationModel, height: int, width: int) -> Flow:
    """Returns the data flow of a model for one image of this size.

    Raises:
        ValueError: If the model does not take images of this size.
    """
    recorder, fewest = Recorder(), MultiplyAdds()
    with without_data(model, height, width) as (backbone, decode_head, image):
        recorder.watch("backbone", backbone)
        with plain(), recorder:
            recorder.features = list(backbone(image))
        with fewest:  # only decode heads have implementations with fewer
            decode_head(recorder.features)
        recorder.watch("decode_head", decode_head)
        with plain(), recorder:
            decode_head(recorder.features)
    encoder, head = recorder.root.steps
    _number_features(encoder, backbone, recorder)
    steps = [encoder, head, *_last_steps(model, head, (height, width))]
    whole = Step("", "", "", encoder.inputs, steps[-1].outputs, steps=steps)
    return Flow((height, width), whole, encoder.multiply_adds + fewest.total)


def _number_features(encoder: Step, backbone: Any, recorder: Recorder) -> None:
    """Writes into the encoder's steps which feature map they return."""
    info: Any = getattr(getattr(backbone, "model", None), "feature_info", None)  # timm's
    names = info.module_name() if hasattr(info, "module_name") else []
    for level, feature in enumerate(recorder.features):
        makers = recorder.makers(feature)
        if not makers and level < len(names):  # the map is a copy of what this module returns
            makers = [step for step in encoder.walk() if step.path.endswith(f".{names[level]}")]
        for step in makers:
            step.produces = level


def _last_steps(model: SegmentationModel, head: Step, size: tuple[int, int]) -> list[Step]:
    """Returns the steps from stride-4 logits to labels, which no module computes."""
    ((classes, *_),) = head.outputs
    logits = ((classes, *size),)
    corners = ", align_corners" if model.align_corners else ""
    choice = "sigmoid above 0.5" if classes == 1 else "argmax over the classes"
    upsampling = Step("", "", f"bilinear upsampling{corners}", head.outputs, logits)
    return [upsampling, Step("", "", choice, logits, (size,))]
