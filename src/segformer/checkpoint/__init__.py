"""Weights on disk: every public layout read, four written, each with the numerics it was trained with."""

from segformer.checkpoint.files import METADATA_KEY
from segformer.checkpoint.layouts import LAYOUTS, Layout, Numerics
from segformer.checkpoint.reading import BackboneOnlyError, Reading, Report, build, read, translate_encoder
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
    "read",
    "save",
    "state_dict_as",
    "translate_encoder",
]
