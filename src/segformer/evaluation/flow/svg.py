"""The shapes of which a picture of a data flow is made, as elements of SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Point = tuple[float, float]
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
INK, GREY, RULE = "#1b1d21", "#646a73", "#8d949e"


def document(elements: Sequence[str], width: float, height: float, title: str) -> str:
    """Returns the text of a file with these elements on a white sheet."""
    size = f'width="{width:g}" height="{height:g}"'
    arrowhead = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{RULE}"/></marker></defs>'
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" {size} '
        f'font-family="{FONT}" font-size="12" text-anchor="middle" fill="{INK}">'
    )
    sheet = f'<rect {size} rx="8" fill="white"/>'
    lines = [head, f"<title>{escape(title)}</title>", arrowhead, sheet, *elements, "</svg>"]
    return "\n".join(lines) + "\n"


def text(x: float, y: float, words: str, **style: str | float) -> str:
    """Returns a line of text; ``style`` has attributes of SVG, with ``_`` for ``-``."""
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(words)}</text>'


def panel(x: float, y: float, width: float, height: float, color: str) -> str:
    """Returns a rectangle with round corners, by its upper left corner."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" '
        f'fill="{color}"/>'
    )


def polygon(points: Sequence[Point], color: str) -> str:
    """Returns a filled area."""
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{corners}" fill="{color}"/>'


def arrow(points: Sequence[Point]) -> str:
    """Returns a line through points, with a head at its end."""
    path = " ".join(f"{'L' if k else 'M'}{x:.1f} {y:.1f}" for k, (x, y) in enumerate(points))
    return (
        f'<path d="{path}" fill="none" stroke="{RULE}" stroke-width="1.2" '
        'stroke-linejoin="round" marker-end="url(#arrow)"/>'
    )
