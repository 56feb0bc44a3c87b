"""The ratchet of types: mypy holds every module to them but those on a list in pyproject.toml, which only shrinks."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OVERRIDES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
UNTYPED: list[str] = next(each["module"] for each in OVERRIDES if each.get("disallow_untyped_defs") is False)


def source_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def is_typed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    own = function.args
    given = [*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg]
    named = [each for each in given if each is not None and each.arg not in ("self", "cls")]
    return function.returns is not None and all(each.annotation for each in named)


@pytest.mark.parametrize("module", UNTYPED)
def test_a_module_that_is_typed_is_held_to_it(module: str) -> None:
    """Once all its functions have types, its name has to go from the list, so that none comes without."""
    functions = [
        node
        for node in ast.walk(ast.parse(source_of(module).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not all(is_typed(function) for function in functions), f"{module} is typed: take it off the list"


def test_helpers_are_typed() -> None:
    assert [module for module in UNTYPED if not module.split(".")[-1].startswith("test_")] == []
