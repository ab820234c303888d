"""The registry of operators: which implementation a call runs, and how all are turned off."""

from __future__ import annotations

import contextvars
import importlib.util
import inspect
import re
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest

from segformer.ops import OPERATORS, linear, mix_ffn, operator, plain, registry, table
from segformer.ops.registry import Operator


@pytest.fixture
def ran() -> list[str]:
    """The names of the implementations that ran."""
    return []


@pytest.fixture
def twice(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> Operator[[int], int]:
    """The only operator, with two implementations: for numbers above 3, and for even numbers."""
    monkeypatch.setattr(registry, "OPERATORS", {})

    @operator
    def twice(x: int) -> int:
        """2 x"""
        ran.append("plain")
        return 2 * x

    def is_large(x: int) -> bool:
        """for numbers above 3.

        This line is in no table.
        """
        return x > 3

    def is_even(x: int) -> bool:
        """for even numbers"""
        return x % 2 == 0

    @twice.implementation(when=is_large)
    def by_addition(x: int) -> int:
        ran.append("by_addition")
        return x + x

    @twice.implementation(when=is_even)
    def by_shift(x: int) -> int:
        ran.append("by_shift")
        return x << 1

    return twice


def test_the_first_implementation_whose_condition_holds_runs(
    twice: Operator[[int], int], ran: list[str]
) -> None:
    assert [twice(x) for x in (1, 2, 4, 5)] == [2, 4, 8, 10]
    assert twice(x=2) == 4
    assert ran == ["plain", "by_shift", "by_addition", "by_addition", "by_shift"]


def test_errors_reach_the_caller(twice: Operator[[int], int], ran: list[str]) -> None:
    """Of a condition or of an implementation: nothing else runs in its place."""

    @twice.implementation(when=lambda x: x == 3)
    def refuses(x: int) -> int:
        raise OverflowError("too much")

    with pytest.raises(OverflowError, match="too much"):
        twice(3)
    with pytest.raises(TypeError, match="not supported"):
        twice("3")  # type: ignore[arg-type]  # which cannot be compared with a number
    assert ran == []


def test_inside_plain_no_implementation_runs(twice: Operator[[int], int], ran: list[str]) -> None:
    with plain():
        assert twice(5) == 10
        with plain():
            assert twice(5) == 10
        assert twice(6) == 12
    assert twice(7) == 14
    assert ran == ["plain", "plain", "plain", "by_addition"]


def test_an_error_inside_plain_ends_it(twice: Operator[[int], int], ran: list[str]) -> None:
    with plain():
        with pytest.raises(ZeroDivisionError), plain():
            twice(1 // 0)
        twice(5)
    with pytest.raises(ZeroDivisionError), plain():
        twice(1 // 0)
    twice(5)
    assert ran == ["plain", "by_addition"]


def test_plain_is_a_matter_of_one_thread(twice: Operator[[int], int], ran: list[str]) -> None:
    with ThreadPoolExecutor(1) as other:
        with plain():
            other.submit(twice, 5).result()
            context = contextvars.copy_context()
        other.submit(context.run, twice, 5).result()
        other.submit(twice, 5).result()
    assert ran == ["by_addition", "plain", "by_addition"]


def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as another process would import it."""
    spec = importlib.util.spec_from_file_location("fresh_registry", registry.__file__)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fresh_registry", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("value", "expected"), [("1", "plain"), ("yes", "plain"), ("0", "fast"), ("", "fast")]
)
def test_the_environment_turns_all_implementations_off(
    value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGFORMER_PLAIN", value)
    module = fresh_registry(monkeypatch)

    @module.operator
    def speed() -> str:
        return "plain"

    @speed.implementation(when=lambda: True)
    def fast() -> str:
        return "fast"

    assert speed() == expected
    with module.plain():
        assert speed() == "plain"
    assert speed() == expected


def test_the_table_has_a_row_an_implementation(twice: Operator[[int], int]) -> None:
    @operator
    def halved(x: int) -> float:
        return x / 2

    assert [re.split("  +", row.strip()) for row in table().splitlines()] == [
        ["operator", "implementation", "runs when"],
        ["twice", "by_addition", "for numbers above 3"],
        ["by_shift", "for even numbers"],
        ["plain", "otherwise"],
        ["halved", "plain", "otherwise"],
    ]
    conditions = ("runs when", "for numbers", "for even", "otherwise", "otherwise")
    rows = zip(table().splitlines(), conditions, strict=True)
    assert len({row.index(condition) for row, condition in rows}) == 1


def test_the_command_prints_every_operator_implementation_and_condition(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_module("segformer.ops", run_name="__main__")
    rows = capsys.readouterr().out.splitlines()
    assert rows == table().splitlines()
    names = [row.split()[0] for row in rows if not row.startswith(" ")]
    assert names == ["operator", *OPERATORS]
    for made in OPERATORS.values():
        for implementation in made.implementations:
            condition = (implementation.when.__doc__ or "").partition("\n")[0].rstrip(".")
            assert condition
            name = implementation.function.__name__
            assert [row for row in rows if f" {name} " in row and row.endswith(f" {condition}")]
    assert sum(" plain " in row and row.endswith("otherwise") for row in rows) == len(OPERATORS)


def test_every_implementation_says_what_it_does() -> None:
    for made in OPERATORS.values():
        for implementation in made.implementations:
            assert implementation.function.__doc__, implementation.function.__name__


def test_an_operator_keeps_its_definitions_name_docstring_and_signature() -> None:
    assert mix_ffn.__name__ == "mix_ffn"
    assert "equation 3" in (mix_ffn.__doc__ or "")
    assert list(inspect.signature(mix_ffn).parameters) == ["x", "fc1", "dwconv", "act", "fc2"]
    assert linear.__wrapped__ is linear.plain  # type: ignore[attr-defined]
