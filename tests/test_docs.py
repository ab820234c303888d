"""The code, commands, tables and quoted messages of the README and the documentation."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from benchmarks import __main__ as benchmarks_main
from benchmarks import report
from docs import generate
from PIL import Image
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

import segformer
from segformer.checkpoint import LAYOUTS
from segformer.cli import VERBS, main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
START = sorted((ROOT / "docs" / "start").glob("*.md"))
PAGES = [
    README,
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "generated"),
]
SMALL = {"fit": ["--trainer.max_steps", "2", "--data.num_workers", "0"]}
# Commands that no test runs, and why: their syntax is checked instead.
NOT_RUN = {
    "pip": "it would change the environment",
    "pytest": "it would run this test",
    "sphinx-build": "it takes minutes; the continuous integration builds the site",
    "torchrun": "it needs several GPUs or machines",
    "python": "a benchmark takes an hour",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """The language and the text of each code block of a page, in their order."""
    for language, code in re.findall(
        r"^```(\w+)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL
    ):
        if language in languages:
            yield language, code


def commands(path: Path) -> Iterator[list[str]]:
    """The words of each command on a page; ``a && b`` is two commands."""
    for _, code in blocks(path, "bash"):
        for line in code.splitlines():
            for part in line.split(" && "):
                yield shlex.split(part, comments=True)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photograph, in which every hub id is a small random network."""
    config = SegformerConfig(num_labels=150)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "hub")
    SegformerImageProcessor().save_pretrained(tmp_path / "hub")
    hub = str(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: hub)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    return tmp_path


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``segformer …`` in this process; it must end without an error."""
    monkeypatch.setattr(sys, "argv", words)
    code: object = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    assert not code, (words, code)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", START, ids=name)
def test_every_snippet_of_start_runs_in_its_order(
    page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for language, code in blocks(page, "python", "bash", "yaml"):
        if language == "python":
            exec(compile(code, str(page), "exec"), {})
        elif language == "yaml":
            assert len(code.splitlines()) <= 10
            (desk / "leaves.yaml").write_text(code)
        else:
            for line in code.splitlines():
                words = shlex.split(line)
                run([*words, *SMALL.get(words[1], [])], monkeypatch)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p not in START and list(blocks(p, "python"))], ids=name
)
def test_the_code_of_every_page_runs(page: Path, desk: Path) -> None:
    for _, code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), {})


def test_start_leaves_what_it_describes(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The YAML of the page names a class for each value of the label maps that its script draws."""
    page = ROOT / "docs" / "start" / "train.md"
    ((_, script),) = blocks(page, "python")
    ((_, config),) = blocks(page, "yaml")
    exec(compile(script, str(page), "exec"), {})
    data = yaml.safe_load(config)["data"]["init_args"]
    values = {
        value
        for path in desk.glob("photos/labels/*/*.png")
        for value in np.unique(Image.open(path))
    }
    assert values == set(range(len(data["classes"]["names"])))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_has_the_words_that_its_program_takes(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        program = words[0]
        assert program in {"segformer", *NOT_RUN}
        if program == "torchrun":
            words = words[words.index("segformer") :]
        if program == "pip":
            check_extra(words)
        elif program == "python":
            check_module(words, monkeypatch)
        elif words[0] == "segformer" and words[1] != "--help" and page not in START:
            check_options(words, monkeypatch, capsys)


def check_extra(words: list[str]) -> None:
    """The extra of ``pip install ".[extra]"`` exists."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    found = re.search(r"\[(\w+)\]", words[-1])
    assert found is None or found[1] in extras


def check_module(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of ``python -m`` exists, and the benchmarks take the words behind it."""
    assert find_spec(words[2]), words
    if words[2] == "benchmarks":
        monkeypatch.setattr(sys, "argv", words[2:])
        benchmarks_main.parse()


def check_options(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verb takes these options: ``fit`` parses all of them, others list them in their help.

    So does ``fit`` without a config of this repository: its files would have to exist.
    """
    configs = [word for word in words if word.startswith("configs/")]
    assert all((ROOT / config).is_file() for config in configs)
    if words[1] == "fit" and configs:
        run([*words, "--print_config"], monkeypatch)
        return
    run([*words[:2], "--help"], monkeypatch)
    help_ = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        first = option.split("=")[0].split(".")[0]
        assert re.search(rf"{first}\b", help_), (words, option)


def test_every_link_of_the_readme_leads_somewhere() -> None:
    """The links of the documentation are checked when the site is built."""
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text())
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_the_table_of_layouts_has_all_of_them() -> None:
    assert set(generate.SOURCES) == set(LAYOUTS)
    table = generate.layouts()
    for layout in LAYOUTS:
        assert f"| `{layout}` |" in table


def test_the_table_of_operators_has_every_implementation() -> None:
    from segformer.ops import OPERATORS

    results = report.read("results.json")
    rows = generate.operators(results).splitlines()
    assert len(rows) == 2 + sum(1 + len(o.implementations) for o in OPERATORS.values())
    assert len({row.count("|") for row in rows}) == 1
    known = {
        f"{name}, {implementation.function.__name__}"
        for name, made in OPERATORS.items()
        for implementation in made.implementations
    }
    assert known >= set(report.savings(results.get("operators", {})))


def test_the_table_of_operators_shows_what_was_measured() -> None:
    """A range over the kinds of work, and the one in which an implementation saves most."""
    cell = {"variant": "b0", "size": [64, 64], "what": "labels"}
    with_it = {"name": "all", "ratio": {"median": 1}, "bytes": 30 << 20}
    without = {"name": "mix_ffn, in_strips", "ratio": {"median": 2}, "bytes": 40 << 20}
    slower = {**without, "ratio": {"median": 0.8}, "bytes": 30 << 20}
    entries = {
        "a": {**cell, "rows": [with_it, without]},
        "b": {**cell, "what": "step", "rows": [with_it, slower]},
        "c": {**cell, "failed": "MemoryError"},
        "d": {**cell, "note": "other work took 40 % of the time", "rows": [with_it, slower]},
    }
    table = generate.operators({"operators": entries})
    assert "| −25 to 50 % | 0 to 25 % | 2 kinds of work; most: label map, b0, 64×64 |" in table


def test_the_command_line_page_has_every_verb() -> None:
    help_ = "\n".join(f"  {verb}  its help" for verb in VERBS)
    assert generate.verbs(f"usage: segformer\n\n{help_}\n") == list(VERBS)
    assert set(generate.verbs(generate.command("--help"))) >= set(VERBS)


def test_every_public_name_is_in_the_reference() -> None:
    reference = "".join(p.read_text() for p in (ROOT / "docs" / "reference").glob("*.md"))
    for public in segformer.__all__:
        assert re.search(rf":: segformer\.{public}\n", reference), public


def test_every_message_of_troubleshooting_is_one_of_the_package() -> None:
    page = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 30
    texts = [
        text for path in generate.SOURCE.rglob("*.py") for text in generate.texts(path.read_text())
    ]
    missing = [message for message in quoted if not any(message in text for text in texts)]
    assert not missing
