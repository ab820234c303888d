"""The source archive and the wheel, built from the project and installed, without the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import segformer

ROOT = Path(__file__).parents[1]
PROJECT = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "src", "tests")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])('dist')"

USE = """
import runpy, segformer, sys
print(segformer.SegFormer and segformer.__file__)
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""  # one process for the package and its command, which is a script of the wheel's

pytest.importorskip("pip", reason="this environment has no pip to install a wheel with")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source archive, and the wheel that is built from it alone."""
    project = tmp_path_factory.mktemp("project")
    for name in PROJECT:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, project / name)
    for built in (*project.rglob("*.egg-info"), *project.rglob("__pycache__")):
        shutil.rmtree(built)
    run(sys.executable, "-c", BUILD, "build_sdist", folder=project)
    (sdist,) = project.glob("dist/*.tar.gz")
    run(sys.executable, "-m", "tarfile", "-e", sdist, "unpacked", folder=project)
    (unpacked,) = (project / "unpacked").iterdir()
    run(sys.executable, "-c", BUILD, "build_wheel", folder=unpacked)
    (wheel,) = unpacked.glob("dist/*.whl")
    return sdist, wheel


def run(*command: str | Path, folder: Path, path: Path | None = None) -> str:
    """What a command prints, run in a folder, with one more folder of packages or none."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert not result.returncode, result.stderr
    return result.stdout


def package_files() -> set[str]:
    """Every file of the packages, relative to src."""
    source = ROOT / "src"
    files = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in files
        if "__pycache__" not in path.parts and not path.parts[0].endswith(".egg-info")
    }


def test_the_wheel_holds_the_package_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert {"segformer/py.typed", "segformer/data/tables/ade20k.csv"} <= names


def test_the_source_archive_holds_what_the_wheel_is_built_of(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        members = [member for member in sdist.getmembers() if member.isfile()]
    names = {member.name.partition("/")[2] for member in members}
    names = {name for name in names if ".egg-info/" not in name}
    sources = {f"src/{name}" for name in package_files()}
    made = {"PKG-INFO", "setup.cfg"}
    assert names == sources | made | {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}


def test_the_wheel_works_where_it_is_installed(archives: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "target"
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--target", target)
    run(sys.executable, "-m", "pip", "install", *options, archives[1], folder=tmp_path)
    printed = run(
        sys.executable, "-c", USE, target / "bin" / "segformer", folder=tmp_path, path=target
    )
    file, usage = printed.split("\n", 1)
    assert Path(file).is_relative_to(target)
    assert "predict" in usage


def test_the_citation_names_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == segformer.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {segformer.__version__} - {citation['date-released']}\n" in changelog
