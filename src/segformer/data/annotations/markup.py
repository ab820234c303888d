"""XML files, whose entities are not expanded."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat


def read_xml(path: Path) -> Element:
    """Returns the root of an XML file.

    Raises:
        ValueError: If it is no whole XML, or declares entities.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise ValueError(
            f"{str(path)!r} is no whole XML file of annotations ({error}); export or copy it again"
        ) from error


def _refuse(*declaration: Any) -> None:
    raise ValueError("it has a DOCTYPE, which may declare entities without end")
