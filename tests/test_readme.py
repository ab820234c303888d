"""The README's own code and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from segformer.cli import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize(
    "code", blocks("python"), ids=lambda code: code.strip().splitlines()[-1][:40]
)
def test_the_readmes_code_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed; a hub id finds a random network of the same layout."""
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=150)).save_pretrained(
        tmp_path / "hub"
    )
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path / "hub")
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_the_readmes_commands_name_what_there_is() -> None:
    commands = [
        shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()
    ]
    verbs = {
        words[i + 1] for words in commands for i, word in enumerate(words) if word == "segformer"
    }
    assert {"fit", "predict"} <= verbs <= set(VERBS)
    configs = {word for words in commands for word in words if word.startswith("configs/")}
    assert configs
    assert all((ROOT / config).is_file() for config in configs)


def test_every_link_into_the_project_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
