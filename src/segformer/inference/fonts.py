"""Fonts of pictures: Pillow's own, or one of the machine's that has all letters of a text."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)

# Pillow looks for them in the folders of the operating system. The first have the alphabets of
# Europe and its neighbours, the others those of Asia.
NAMES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf"),
    *("Arial.ttf", "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc"),
    *("msyh.ttc", "YuGothM.ttc", "malgun.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc"),
)
NO_LETTER = "\U0010ffff"  # which no font has

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def font_of(text: str, size: int) -> Font:
    """Returns a font that has all letters of a text; Pillow's own has those of ASCII.

    If this machine has none, a warning says so: boxes stand for the letters.

    Args:
        text: The text.
        size: Size in pixels.
    """
    own = ImageFont.load_default(size)
    if text.isascii():
        return own
    for font in _fonts(size):
        if all(_has(font, letter) for letter in set(text) if not letter.isspace()):
            return font
    logger.warning(
        "no font of this machine has all letters of %r: boxes stand for the others in pictures; "
        "install a font such as DejaVu Sans or Noto Sans CJK",
        text,
    )
    return next(iter(_fonts(size)), own)


@cache
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    """Returns the fonts of this machine, and the one that matplotlib brings."""
    matplotlib = find_spec("matplotlib")
    places = [] if matplotlib is None else list(matplotlib.submodule_search_locations or ())
    brought = [str(Path(place, "mpl-data/fonts/ttf/DejaVuSans.ttf")) for place in places]
    fonts = []
    for name in (*NAMES, *brought):
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    drawn, missing = font.getmask(letter), font.getmask(NO_LETTER)
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)
