"""Weights on disk: every public layout read, four written, each with the numerics it was trained with."""

from segformer.checkpoint.files import METADATA_KEY
from segformer.checkpoint.layout import BackboneOnlyError, Layout
from segformer.checkpoint.layouts import LAYOUTS
from segformer.checkpoint.reading import Reading, build, load, part, read, translate_encoder
from segformer.checkpoint.report import Report
from segformer.checkpoint.segformer_layouts import Numerics
from segformer.checkpoint.writing import WRITABLE, describe, save, state_dict_as

__all__ = [
    "LAYOUTS",
    "METADATA_KEY",
    "WRITABLE",
    "BackboneOnlyError",
    "Layout",
    "Numerics",
    "Reading",
    "Report",
    "build",
    "describe",
    "load",
    "part",
    "read",
    "save",
    "state_dict_as",
    "translate_encoder",
]
