"""An explanation as a folder with a page, ``index.html``, its pictures and ``explain.json``.

The page needs no server and no script.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template

from segformer.data.classes import Classes
from segformer.inference.explanation import Doubt, Examined, Explanation, Pair
from segformer.inference.explanation_pictures import (
    Pictures,
    crop_pictures,
    saved_names,
    whole_pictures,
)

PAGE, JSON, PICTURES = "index.html", "explain.json", "pictures"
PAIRS, EXAMPLES = 8, 3  # pairs of classes with examples, and examples of each
MATRIX = 30  # classes in the table
SAID = 3  # confusions in a sentence

HTML = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Where $name is wrong</title>
<style>$style</style>
</head>
<body>
<header>
<h1>Where <em>$name</em> is wrong</h1>
<p>$summary</p>
<nav><a href="#doubts">Doubted labels</a> <a href="#worst">Worst images</a>
<a href="#confusion">Confused classes</a></nav>
</header>
$legend
<main>
<section id="doubts">
<h2>Label files to check</h2>
<p>Here the model is sure of one class, and the label map says another. The likeliest faults of the
annotation come first: large regions, a sure model, two classes that it rarely confuses. The dashed
line is around the region. If the label is wrong, correct the file. If it is right, the model has
not learned it.</p>
$doubts
</section>
<section id="worst">
<h2>Worst images</h2>
<p>The images with the lowest mIoU (mean overlap of prediction and label over the classes of the
image). In the error maps, <b class="wrong">red</b> is wrong, grey is right, and black has no
label.</p>
$worst
</section>
<section id="confusion">
<h2>Confused classes</h2>
<p>A row shows what the model makes of the pixels of one class, in per cent. Green is right, red is
wrong.</p>
$matrix
<h3>The most frequent confusions</h3>
$pairs
</section>
</main>
<footer>All ranked files with their scores: <a href="explain.json">explain.json</a></footer>
</body>
</html>
""")

STYLE = """
:root {color-scheme: light dark; --line: light-dark(#d5d8de, #3b3f48);
  --soft: light-dark(#5b6270, #a4abb8); --card: light-dark(#fff, #1d2026);
  --back: light-dark(#f4f5f7, #131519); --text: light-dark(#16181d, #e8eaee);
  --wrong: light-dark(#c62828, #ff7b72); --red: 220 38 38; --right: 22 140 85;}
* {box-sizing: border-box;}
body {background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  margin: 0 auto; max-width: 82rem; padding: 1.5rem;}
h1 {font-size: 1.7rem; margin: 0;} h1 em {font-style: normal; overflow-wrap: anywhere;}
h2 {border-top: 1px solid var(--line); font-size: 1.35rem; margin: 2.2rem 0 .3rem;
  padding-top: 1.4rem;}
h3 {font-size: 1.05rem; margin: 1.6rem 0 .6rem;}
p {margin: .3rem 0 .9rem; max-width: 54rem;}
a {color: inherit;} nav a {margin-right: 1.2rem;}
.legend {background: var(--back); display: flex; flex-wrap: wrap; gap: .35rem 1.1rem;
  list-style: none; margin: .5rem 0 0; max-height: 6.2rem; overflow-y: auto; padding: .6rem 0;
  position: sticky; top: 0; z-index: 1;}
section {scroll-margin-top: 2.5rem;}
.legend li, .class {white-space: nowrap;}
.legend i, .class i {border: 1px solid rgb(128 128 128 / .7); border-radius: 3px;
  display: inline-block; height: .95em; margin-right: .35em; vertical-align: -.1em; width: .95em;}
.class {font-weight: 600;}
article {background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  margin: 0 0 1rem; padding: .8rem 1rem 1rem;}
article header {align-items: baseline; display: flex; flex-wrap: wrap; gap: .2rem 1rem;}
article p {margin: .2rem 0 .6rem; max-width: none;}
.rank {color: var(--soft); font-variant-numeric: tabular-nums;}
.file {font-weight: 600; overflow-wrap: anywhere;}
.score {color: var(--soft); margin-left: auto; font-variant-numeric: tabular-nums;}
.row {display: grid; gap: .6rem; grid-template-columns: repeat(var(--count), minmax(0, 1fr));}
.crops {max-width: 58rem;}
figure {margin: 0;} figure a {display: block;}
figure img {border-radius: 4px; display: block; height: auto; width: 100%;}
.crops img {image-rendering: pixelated;}
figcaption {color: var(--soft); font-size: .85rem; padding-top: .15rem;}
.of {color: var(--soft); font-size: .85rem; overflow-wrap: anywhere;}
details {margin-top: .6rem;} summary {color: var(--soft); cursor: pointer; font-size: .9rem;}
.scroll {overflow-x: auto;}
table {border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;}
td, th {border: 1px solid var(--line); padding: .25rem .45rem; text-align: right;}
thead th {text-align: center; vertical-align: bottom;}
tbody th {text-align: left; white-space: nowrap;}
thead .turned {writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  padding: .45rem .25rem;}
.wrong {color: var(--wrong);}
footer {border-top: 1px solid var(--line); color: var(--soft); margin-top: 2rem;
  padding-top: 1rem;}
@media (max-width: 44rem) {.row {grid-template-columns: repeat(2, minmax(0, 1fr));}}
"""


def write_report(
    explanation: Explanation, folder: Path, name: str, worst: int = 12, doubts: int = 20
) -> None:
    """Writes ``index.html``, ``explain.json`` and ``pictures/`` into a folder.

    Args:
        explanation: What was found.
        folder: An empty folder.
        name: Name of the model.
        worst: Number of worst images on the page; ``explain.json`` has all of them.
        doubts: Number of doubted label files on the page; ``explain.json`` has all of them.
    """
    (folder / PICTURES).mkdir()
    classes = explanation.classes
    content = {
        "name": escape(name),
        "style": STYLE,
        "summary": _summary(explanation),
        "legend": _legend(classes),
        "doubts": _cards(
            (
                _doubt(folder, rank, found, classes)
                for rank, found in enumerate(explanation.doubts[:doubts], 1)
            ),
            "The model doubts no label map.",
        ),
        "worst": _cards(
            (
                _image(folder, rank, image, classes)
                for rank, image in enumerate(explanation.worst[:worst], 1)
            ),
            "No image has labelled pixels.",
        ),
        "matrix": _matrix(explanation),
        "pairs": _cards(
            (
                _pair(folder, rank, pair, explanation)
                for rank, pair in enumerate(explanation.pairs[:PAIRS], 1)
            ),
            "The model confuses no classes.",
        ),
    }
    text = json.dumps({"model": name, **explanation.to_dict()}, indent=2, allow_nan=False)
    (folder / JSON).write_text(text + "\n", encoding="utf-8")
    (folder / PAGE).write_text(HTML.substitute(content), encoding="utf-8")


def _summary(explanation: Explanation) -> str:
    count, splits = len(explanation.images), dict.fromkeys(i.split for i in explanation.images)
    scores = explanation.scores
    return (
        f"{count} images of {escape(' and '.join(splits))} · mIoU {_percent(scores.miou)} · "
        f"{_percent(scores.pixel_accuracy)} of the labelled pixels are right"
    )


def _legend(classes: Classes) -> str:
    chips = [f"<li>{_chip(classes, k)}{escape(classes.names[k])}</li>" for k in range(len(classes))]
    chips.append('<li><i style="background:#000"></i>no label</li>')
    return f'<ul class="legend">{"".join(chips)}</ul>'


def _chip(classes: Classes, index: int) -> str:
    red, green, blue = classes.shown_colors[index]
    return f'<i style="background:rgb({red}, {green}, {blue})"></i>'


def _named(classes: Classes, index: int) -> str:
    """Returns the colour and name of a class."""
    return f'<span class="class">{_chip(classes, index)}{escape(classes.names[index])}</span>'


def _cards(cards: Iterator[str], none: str) -> str:
    return "\n".join(cards) or f"<p>{none}</p>"


def _card(title: str, score: str, text: str, content: str) -> str:
    return (
        f'<article><header>{title}<span class="score">{score}</span></header>\n'
        f"<p>{text}</p>\n{content}</article>"
    )


def _title(rank: int, file: str) -> str:
    return f'<span class="rank">{rank}</span><span class="file">{escape(file)}</span>'


def _row(folder: Path, stem: str, pictures: Pictures, of: str, kind: str = "") -> str:
    """Writes pictures; returns them side by side, each with its title below."""
    figures = []
    for title, name, picture in saved_names(pictures, stem):
        picture.save(folder / PICTURES / name, quality=90)  # of JPEG
        link = f"{PICTURES}/{name}"
        figures.append(
            f'<figure><a href="{link}"><img src="{link}" width="{picture.width}" '
            f'height="{picture.height}" loading="lazy" alt="{title} of {escape(of)}"></a>'
            f"<figcaption>{title}</figcaption></figure>"
        )
    style = f"--count: {len(figures)}"
    return f'<div class="row {kind}" style="{style}">{"".join(figures)}</div>\n'


def _doubt(folder: Path, rank: int, found: Sequence[Doubt], classes: Classes) -> str:
    """Returns a label file with the region that is doubted most, and a list of the others."""
    first, *others = found
    label = first.image.files[1]
    pictures = crop_pictures(first.image, first.region, classes)
    content = _row(folder, f"doubt-{rank:03}", pictures, label, "crops")
    if others:
        items = "".join(f"<li>{_doubted(doubt, classes)}</li>" for doubt in others)
        more = "1 more region" if len(others) == 1 else f"{len(others)} more regions"
        content += f"<details><summary>{more} of this file</summary><ol>{items}</ol></details>"
    return _card(
        _title(rank, label), f"score {first.score:,.0f}", _doubted(first, classes), content
    )


def _doubted(doubt: Doubt, classes: Classes) -> str:
    region = doubt.region
    left, top, *_ = region.box
    return (
        f"Labelled {_named(classes, region.labelled)}, but the model predicts "
        f"{_named(classes, region.predicted)} with a probability of "
        f"{_percent(region.confidence)}: {region.pixels:,} pixels from row {top}, column {left}."
    )


def _image(folder: Path, rank: int, image: Examined, classes: Classes) -> str:
    file = image.files[0]
    content = _row(folder, f"worst-{rank:03}", whole_pictures(image, classes), file)
    scores = (
        f"mIoU {_percent(image.scores.miou)} · pixel accuracy "
        f"{_percent(image.scores.pixel_accuracy)}"
    )
    return _card(_title(rank, file), scores, _most_wrong(image, classes), content)


def _most_wrong(image: Examined, classes: Classes) -> str:
    """Returns what most of an image's wrong pixels are."""
    wrong = image.scores.confusion - image.scores.confusion.diag().diag()
    order = wrong.flatten().argsort(descending=True)[:SAID].tolist()
    parts = [
        f"{_named(classes, k // len(classes))} taken for {_named(classes, k % len(classes))} "
        f"({_percent(float(wrong.flatten()[k]) / image.pixels)})"
        for k in order
        if wrong.flatten()[k]
    ]
    return (
        f"Most wrong pixels, in per cent of the labelled ones: {', '.join(parts)}"
        if parts
        else "Every pixel is right."
    )


def _matrix(explanation: Explanation) -> str:
    """Returns the confusion matrix as a table, of the classes with the most wrong pixels."""
    classes, confusion = explanation.classes, explanation.confusion
    wrong = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diag()
    shown = sorted(wrong.argsort(descending=True, stable=True)[:MATRIX].tolist())
    totals = confusion.sum(1).clamp_min(1)
    heads = "".join(
        f'<th><span class="turned">{escape(classes.names[k])}</span></th>' for k in shown
    )
    rows = []
    for i in shown:
        cells = "".join(_cell(float(confusion[i, j] / totals[i]), i == j) for j in shown)
        rows.append(f'<tr><th scope="row">{_named(classes, i)}</th>{cells}</tr>')
    note = (
        f"<p>The {MATRIX} of {len(classes)} classes with the most wrong pixels; explain.json has "
        "all.</p>"
        if len(classes) > MATRIX
        else ""
    )
    return (
        f'{note}<div class="scroll"><table><thead><tr><th>label ↓ prediction →</th>{heads}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(share: float, is_right: bool) -> str:
    """Returns a cell of the table; the colour is stronger for a larger share."""
    text = f"{100 * share:.0f}" if share >= 0.005 else ""
    color = "--right" if is_right else "--red"
    opacity = 0.6 * math.sqrt(share)
    return f'<td style="background:rgb(var({color}) / {opacity:.2f})">{text}</td>'


def _pair(folder: Path, rank: int, pair: Pair, explanation: Explanation) -> str:
    classes = explanation.classes
    title = f"{_named(classes, pair.labelled)} taken for {_named(classes, pair.predicted)}"
    score = f"{_percent(pair.share)} of {escape(classes.names[pair.labelled])}"
    rows = []
    for number, (image, region) in enumerate(explanation.examples(pair, EXAMPLES), 1):
        file = image.files[0]
        pictures = crop_pictures(image, region, classes)
        row = _row(folder, f"pair-{rank:02}-{number}", pictures, file, "crops")
        rows.append(f'{row}<p class="of">{escape(file)}</p>')
    first, *others = rows
    more = f"<details><summary>More examples</summary>{''.join(others)}</details>" if others else ""
    return _card(f"<span>{title}</span>", score, f"{pair.pixels:,} pixels", first + more)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"
