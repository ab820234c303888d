"""The parts of the site that come from the package, its commands and its JSON files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path

from benchmarks import cuda, recipes_report, report

from segformer.checkpoint import LAYOUTS, WRITABLE, Numerics
from segformer.ops.registry import OPERATORS, first_line

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "segformer"

# Whose files have a layout, and what SegFormer.from_pretrained takes to read one.
SOURCES = {
    "native": ("this package", '"model.safetensors"', "a run's folder, or its `last.ckpt`, too"),
    "huggingface": ("Hugging Face", '"nvidia/segformer-b2-finetuned-ade-512-512"', "or a folder"),
    "huggingface_in_memory": (
        "`torch.save(model.state_dict())` with transformers",
        '"finetuned.pth"',
        "",
    ),
    "mmsegmentation": ("mmsegmentation", '"iter_160000.pth"', "BatchNorm and ReLU a level"),
    "tao": ("NVIDIA TAO", '"tao.pth"', "a bias of the fusion is folded"),
    "smp": ("segmentation-models-pytorch", '"smp.pth"', "whole or encoder"),
    "nvidia": ("NVIDIA's release", '"segformer.b2.1024x1024.city.160k.pth"', "whole or backbone"),
    "sithu": ("sithu31296/semantic-segmentation", '"sithu.pth", layout="sithu"', ""),
    "bubbliiiing": ("bubbliiiing/segformer-pytorch", '"b.pth", layout="bubbliiiing"', ""),
    "mmsegmentation_setr": (
        "SETR of mmsegmentation",
        '"setr.pth"',
        "the naive head upsamples twice; no patch bias",
    ),
    "fudan": ("SETR of fudan-zvg, naive and PUP", '"setr.pth"', ""),
    "fudan_mla": (
        "SETR of fudan-zvg, MLA",
        '"setr.pth"',
        "a 3×3 classifier; `align_corners=True` in the head",
    ),
    "lucidrains": ("lucidrains/segformer-pytorch", '"segformer.pt"', "read as `ConvSegFormer`"),
}


def write(folder: Path) -> None:
    """Write every generated page into a folder."""
    folder.mkdir(exist_ok=True)
    results = report.read("results.json")
    report.write(results, folder)
    training = report.read("training.json")
    recipes = report.read("recipes.json")
    recipes_report.plot(recipes, folder)
    pages = {
        "layouts": layouts(),
        "operators": operators(results),
        "command-line": command_line(),
        "flow": flow(),
        "configs": configs(),
        "messages": messages(),
        "training": report.training(training),
        "highlights": "\n".join(report.figures(results, recipes)),
        "recipes": recipes_report.tables(recipes),
        "cuda": cuda.table(report.read("cuda.json"))
        if (report.HERE / "cuda.json").is_file()
        else NO_CUDA,
    }
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text + "\n")


NO_CUDA = (
    "No GPU has been measured yet. `python -m benchmarks.cuda` measures one and writes "
    "`benchmarks/cuda.json`, which this page then shows."
)


def layouts() -> str:
    """Every layout: whose files have it, how it is read and written, and its own numerics."""
    lines = [
        "| layout | files of | `from_pretrained(…)` | written | its own numerics, and remarks |",
        "|---|---|---|---|---|",
    ]
    for name, layout in LAYOUTS.items():
        whose, example, remark = SOURCES[name]
        own = numerics(getattr(layout, "numerics", None))
        notes = "; ".join(note for note in (own, remark) if note)
        written = "yes" if name in WRITABLE else ""
        lines.append(f"| `{name}` | {whose} | `{example}` | {written} | {notes} |")
    return "\n".join(lines)


def numerics(own: Numerics | None) -> str:
    """What differs from the released weights' numerics."""
    if own is None:
        return ""
    names = own.differences(Numerics())
    return ", ".join(f"`{name}={getattr(own, name)}`" for name in names)


def operators(results: dict[str, report.Rows]) -> str:
    """Every implementation: when it runs, and what it saves where that was measured."""
    saved = report.savings(results.get("operators", {}))
    lines = [
        "| operator | implementation | runs when | saves time | saves memory | measured at |",
        "|---|---|---|---|---|---|",
    ]
    for name, made in OPERATORS.items():
        cell = f"`{name}`"
        for implementation in made.implementations:
            function, when = implementation.function.__name__, first_line(implementation.when)
            of_it = saved.get(f"{name}, {function}", [])
            lines.append(f"| {cell} | `{function}` | {when} | {savings(of_it)} |")
            cell = ""
        lines.append(f"| {cell} | `plain` | otherwise | | | |")
    return "\n".join(lines)


def savings(of_it: list[report.Saving]) -> str:
    """The cells of an implementation: its range of time and memory, and where it saves most."""
    if not of_it:
        return "not measured | not measured | "
    times = [saving.time for saving in of_it]
    memory = [saving.memory for saving in of_it if saving.memory is not None]
    best = max(of_it, key=lambda saving: max(saving.time, saving.memory or 0))
    count = f"{len(of_it)} kinds of work; most: {best.where}" if len(of_it) > 1 else best.where
    return f"{shares(times)} | {shares(memory)} | {count}"


def shares(values: list[float]) -> str:
    """The least and the most of some shares, in per cent."""
    if not values:
        return ""
    least, most = (f"{100 * value:.0f}".replace("-", "−") for value in (min(values), max(values)))
    return f"{least} %" if least == most else f"{least} to {most} %"


def command_line() -> str:
    """The help of ``segformer`` and of each verb."""
    help_ = command("--help")
    lines = ["```text", help_, "```", ""]
    names = verbs(help_)
    with ThreadPoolExecutor(os.cpu_count()) as processes:
        pages = processes.map(lambda verb: command(verb, "--help"), names)
        for verb, page in zip(names, pages, strict=True):
            lines += [f"## segformer {verb}", "", "```text", page, "```", ""]
    return "\n".join(lines)


def verbs(help_: str) -> list[str]:
    """The verbs that the command's help lists, one at the beginning of a line each."""
    return list(dict.fromkeys(re.findall(r"^ {2,4}([a-z]+) {2,}\S", help_, flags=re.MULTILINE)))


def command(*words: str) -> str:
    """What ``segformer WORDS`` prints."""
    call = "import sys; from _segformer_command import main; sys.argv[0] = 'segformer'; main()"
    return run("-c", call, *words).rstrip()


def run(*words: str) -> str:
    """What Python prints, in a process of its own, on lines of 100 columns."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    words = (sys.executable, *words)
    return subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout


# Pictures of the data flow, by the names of their models. They are in the repository, too.
PICTURES = {"b0": "paper/segformer.svg", "setr-large-mla": "paper/setr.svg"}


def flow() -> str:
    """The data flow of B0 as a table; that of several models is drawn beside the pages."""
    for name, path in PICTURES.items():
        command("inspect", name, "--draw", str(ROOT / "docs" / path), "--overwrite")
    return f"```text\n{command('inspect', 'b0', '--flow', '512', '512')}\n```"


def configs() -> str:
    """Every file of ``configs/`` behind its own first comment."""
    lines = []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        head = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
        comments = [line.removeprefix("#") for line in head]
        commands = [line.removeprefix("   ") for line in comments if line.startswith("   ")]
        lines += [f"## {path.name}", ""]
        lines += [line.strip() for line in comments if not line.startswith("   ")]
        lines += ["", "```bash", *commands, "```", ""]
        lines += [f"```{{literalinclude}} ../../configs/{path.name}", ":language: yaml", "```", ""]
    return "\n".join(lines)


def messages() -> str:
    """Every error message of the package, by module; … stands for a value."""
    lines = []
    for path in sorted(SOURCE.rglob("*.py")):
        of_module = [(kind, text) for kind, text in raised(path.read_text()) if len(text) > 12]
        if of_module:
            name = path.relative_to(SOURCE).with_suffix("").as_posix()
            lines += [f"**`{name}`**", ""]
            lines += [f"- `{kind}`: {code(text)}" for kind, text in dict.fromkeys(of_module)]
            lines += [""]
    return "\n".join(lines)


def code(text: str) -> str:
    """A Markdown code span of text that may hold backticks."""
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}"


def raised(source: str) -> Iterator[tuple[str, str]]:
    """The class and the text of every exception that a module raises with a text of its own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = " ".join(template(node.exc.args[0]).split())
            if text.strip("… :") and hasattr(node.exc.func, "id"):
                yield node.exc.func.id, text


def texts(source: str) -> Iterator[str]:
    """Every text that a module writes out, with … for its values."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            yield " ".join(template(node).split())


def template(node: ast.expr) -> str:
    """The text of an expression, with … for every value that is not written out."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return "…"
