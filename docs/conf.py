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
from docutils.nodes import SkipNode  # noqa: E402
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
html_show_copyright = False
html_title = f"segformer {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
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

# Every reference must resolve, except those to other packages and to aliases of types.
nitpicky = True
PACKAGES = (
    "nn|torch|torchvision|v2|timm|numpy|np|PIL|lightning|matplotlib|pathlib|os|collections|typing"
    "|contextlib|fractions|functools"
)
ALIASES = (
    "Coding|Dataset|LRScheduler|Optimizer|P|Path|PerStage|Root|Treatment|segformer.ops.registry.R"
)
nitpick_ignore_regex = [("py:.*", rf"({PACKAGES})\b.*"), ("py:class", rf"~?({ALIASES})")]


def setup(app: Any) -> None:
    """Write the generated pages, and render formulas as MathML, which needs no JavaScript."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_displayed_math, None))
    app.connect("missing-reference", _find_bare_name)
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)
    generate.write(DOCS / "generated")


html_math_renderer_name = "mathml"


def _inline_math(translator: Any, node: Any) -> None:
    translator.body.append(convert(node.astext()))
    raise SkipNode


def _displayed_math(translator: Any, node: Any) -> None:
    translator.body += ['<div class="math">', convert(node.astext(), display="block"), "</div>"]
    raise SkipNode


def _find_bare_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolve ``:class:`Name``` in a docstring, wherever in the package the name is."""
    if node["refdomain"] != "py" or node.get("refspecific"):
        return None
    node["refspecific"] = True
    target = node["refdoc"], app.builder, node["reftype"], node["reftarget"]
    return env.domains["py"].resolve_xref(env, *target, node, content)


def _keep_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading the text before a colon in a property's first line as a type."""
    if what == "property":
        lines[:0] = ["..", ""]  # an empty comment, since napoleon skips empty lines
