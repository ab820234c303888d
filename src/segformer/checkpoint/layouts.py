"""All layouts that can be read."""

from segformer.checkpoint.layout import Layout
from segformer.checkpoint.lucidrains_layouts import LUCIDRAINS
from segformer.checkpoint.segformer_layouts import (
    BUBBLIIIING,
    HUGGINGFACE,
    HUGGINGFACE_IN_MEMORY,
    MMSEGMENTATION,
    NATIVE,
    NVIDIA,
    SITHU,
    SMP,
    TAO,
)
from segformer.checkpoint.setr_layouts import FUDAN, FUDAN_MLA, MMSEGMENTATION_SETR

# A file is compared with them in this order: layouts with a required key come before those without.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        NATIVE,
        HUGGINGFACE,
        HUGGINGFACE_IN_MEMORY,
        MMSEGMENTATION,
        TAO,
        SMP,
        NVIDIA,
        SITHU,
        BUBBLIIIING,
        MMSEGMENTATION_SETR,
        FUDAN,
        FUDAN_MLA,
        LUCIDRAINS,
    )
}
