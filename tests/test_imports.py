"""The rooms of the library, what each may import, and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import segformer

SOURCE = Path(segformer.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(module.relative_to(SOURCE)) for module in MODULES]

# From the top floor down. A room imports rooms of lower floors only, inside functions too.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"train"},
    {"deploy"},
    {"inference"},
    {"evaluation"},
    {"__init__", "models", "timm_models", "losses"},
    {"checkpoint"},
    {"networks"},
    {"ops", "data"},
]
# Rooms of one floor do not import one another, except for the library's public names.
BESIDE = {("__init__", "models"), ("__init__", "timm_models")}
# A model's method by which users come in: the files' pipeline, which is upstairs.
UPSTAIRS = {"segformer.inference.predict_file", "segformer.inference.results.Prediction"}

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# These take long to import. They are imported in the functions that use them, or in train.
HEAVY = {"lightning", "torchmetrics", "jsonargparse", "matplotlib", "transformers", "onnx"}

# What decides how a network is computed; that is decided in ops.
CONDITIONS = {
    *("is_cuda", "is_cpu", "is_meta", "is_mps", "is_xpu", "is_available"),
    *("get_num_threads", "set_num_threads", "get_cpu_capability", "mallopt"),
    *("is_grad_enabled", "is_inference", "is_inference_mode_enabled", "requires_grad"),
    *("is_compiling", "is_dynamo_compiling", "is_exporting", "is_tracing", "is_scripting"),
    *("autocast", "is_autocast_enabled", "get_autocast_dtype", "fake_mode", "Proxy"),
}


def room_of(module: Path) -> str:
    return module.relative_to(SOURCE).with_suffix("").parts[0]


def imports(module: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports, at any depth."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=NAMES)
def test_a_room_imports_only_the_rooms_below_it(module: Path) -> None:
    room = room_of(module)
    for line, name in imports(module):
        library, _, rest = name.partition(".")
        imported = rest.partition(".")[0]
        imported = imported if imported in FLOOR else "__init__"  # a public name of the package
        if library == "segformer" and imported != room:
            is_below = FLOOR[imported] > FLOOR[room] or (room, imported) in BESIDE
            is_door = room == "models" and name in UPSTAIRS
            assert is_below or is_door, f"line {line}: {room} imports {name}"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("networks")])
def test_networks_hold_no_condition_of_devices_threads_memory_or_tracing(name: str) -> None:
    found = []
    for node in ast.walk(ast.parse((SOURCE / name).read_text(encoding="utf-8"))):
        word = getattr(node, "attr", None) or getattr(node, "id", None)
        if word in CONDITIONS or ast.unparse(node).endswith(".device.type"):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert found == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("networks")])
def test_networks_import_operators_and_nothing_else_of_ops(name: str) -> None:
    from segformer import ops

    for line, imported in imports(SOURCE / name):
        if imported.startswith("segformer.ops"):
            operator = imported.removeprefix("segformer.ops.")
            assert operator in ops.__all__, f"line {line}: {imported}"


@pytest.mark.parametrize("module", MODULES, ids=NAMES)
def test_no_two_public_names_differ_in_the_case_of_a_letter(module: Path) -> None:
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public = ast.literal_eval(node.value)
            counts = Counter(name.lower() for name in public)
            assert [name for name in public if counts[name.lower()] > 1] == []


def packages_after(*statements: str) -> list[set[str]]:
    """The top-level packages that a Python process holds after each of some statements."""
    show = "print(*{name.partition('.')[0] for name in sys.modules})"
    code = "\n".join(["import sys", *(f"{statement}\n{show}" for statement in statements)])
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [set(line.split()) for line in run.stdout.splitlines()]


def test_importing_the_library_brings_nothing_heavy() -> None:
    """Every module below train, which is the only room that imports lightning."""
    modules = [
        re.sub(r"\.__init__$", "", f"segformer.{name.removesuffix('.py').replace('/', '.')}")
        for name, module in zip(NAMES, MODULES, strict=True)
        if FLOOR[room_of(module)] > FLOOR["train"]
        and module.stem != "__main__"
        # Triton's kernels are imported where they run.
        and module.stem != "triton_kernels"
    ]
    assert "segformer.inference" in modules
    (found,) = packages_after(f"import {', '.join(modules)}")
    assert found & HEAVY == set()


def test_the_library_alone_brings_little_more_than_torch_and_timm() -> None:
    """`import segformer` costs hardly more than `import torch, timm`, which it is made of."""
    before, after = packages_after("import torch, timm", "import segformer")
    brought = after - before
    third_party = {name for name in brought if not name.startswith("_")} - sys.stdlib_module_names
    assert third_party <= {"segformer", "einops", "safetensors"}


@pytest.mark.parametrize("module", MODULES, ids=NAMES)
def test_text_files_are_utf_8_whatever_the_system_prefers(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("read_text", "write_text"):
                assert "encoding" in {word.arg for word in node.keywords}, f"line {node.lineno}"
            if node.func.attr == "open" and node.args and isinstance(node.args[0], ast.Constant):
                assert "b" in node.args[0].value, f"line {node.lineno}"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "open"
        ):
            modes = [word.value for word in node.args[1:2] if isinstance(word, ast.Constant)]
            is_binary = any("b" in mode for mode in modes)
            assert is_binary or "encoding" in {word.arg for word in node.keywords}


def test_public_names_have_docstrings() -> None:
    for name in segformer.__all__:
        thing = getattr(segformer, name)
        assert not callable(thing) or thing.__doc__, name
