"""Sphinx configuration. ``sphinx-build -W docs site`` builds the site strictly."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]
warnings.filterwarnings("ignore", category=DeprecationWarning)

import generate  # noqa: E402
from latex2mathml.converter import convert  # noqa: E402

import segformer  # noqa: E402

project = "segformer"
author = "the segformer authors"
release = segformer.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["generated"]
html_theme = "furo"
html_title = f"segformer {release}"
html_static_path: list[str] = []
pygments_style = "friendly"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_rtype = False
napoleon_use_ivar = True

# Every reference to this package must resolve; other packages' documentation is elsewhere.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!segformer\b).*"),
    ("py:.*", r"segformer\.ops\.registry\.[PR]"),  # type variables
]


def setup(app: Any) -> None:
    """Write the generated pages, and render formulas as MathML, which needs no JavaScript."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_displayed_math, None))
    generate.write(DOCS / "generated")


html_math_renderer_name = "mathml"


def _inline_math(translator: Any, node: Any) -> None:
    _write_math(translator, node, "inline")


def _displayed_math(translator: Any, node: Any) -> None:
    translator.body.append('<div class="math">')
    _write_math(translator, node, "block")
    translator.body.append("</div>")


def _write_math(translator: Any, node: Any, display: str) -> None:
    from docutils.nodes import SkipNode

    translator.body.append(convert(node.astext(), display=display))
    if display == "inline":
        raise SkipNode
