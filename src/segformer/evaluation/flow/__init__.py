"""The data flow of a model: what each module makes of one image, and what it costs."""

from segformer.evaluation.flow.picture import draw
from segformer.evaluation.flow.steps import Step
from segformer.evaluation.flow.tracing import Flow, trace

__all__ = ["Flow", "Step", "draw", "trace"]
