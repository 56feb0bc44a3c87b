"""docs/INTERFACE.md has every request, message and field of the code, and nothing more."""

import re
import types
import typing
from pathlib import Path

import msgspec
import pytest

from scratch_slurm.cli import build, cluster_views, views
from scratch_slurm.cli.main import COMMANDS
from scratch_slurm.domain import about, messages
from scratch_slurm.domain.states import DatasetState

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "INTERFACE.md").read_text()
_MESSAGES = {
    name: kind
    for module in (messages, about, views, cluster_views, build)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
}
_WORDS = {int: "integer", float: "number", str: "text", bool: "boolean", types.NoneType: "null"}


def _word(kind: object) -> str:
    """Name a type as the page does."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_word, typing.get_args(kind)))
    if origin is tuple:
        return f"list of {_word(typing.get_args(kind)[0])}"
    assert isinstance(kind, type)
    return _WORDS.get(kind) or f"`{kind.__name__}`"


def _section(heading: str) -> str:
    """Give the text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", _PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/INTERFACE.md has no heading {heading}"
    return found[1]


def _rows(heading: str, columns: str) -> list[tuple[str, ...]]:
    rows = re.findall(r"^\| (.*) \|$", _section(heading), re.MULTILINE)
    cells = [tuple(row.split(" | ")) for row in rows]
    assert " ".join(cells[0]) == columns
    return cells[1:]


@pytest.mark.parametrize("name", _MESSAGES)
def test_every_field_of_a_message_is_on_the_page(name: str) -> None:
    fields = [(f"`{field.name}`", _word(field.type)) for field in msgspec.structs.fields(_MESSAGES[name])]
    rows = _rows(name, "field type meaning")
    assert [row[:2] for row in rows] == fields, "docs/INTERFACE.md tells the fields in the order of the code"
    assert all(len(row) == 3 and row[2] for row in rows)


def test_nothing_on_the_page_is_a_message_that_is_none() -> None:
    assert set(re.findall(r"^### (.*)$", _PAGE, re.MULTILINE)) == set(_MESSAGES)


def test_every_request_is_on_the_page() -> None:
    source = (_ROOT / "scratch_slurm" / "service" / "interface.py").read_text()
    routes = {(method, path) for path, method in re.findall(r'"(/v1/[\w/]+)": \("([A-Z]+)"', source)}
    told = {tuple(row[0].strip("`").split()) for row in _rows("Requests", "request body answer who may")}
    assert routes
    assert told == routes


def test_every_state_is_on_the_page() -> None:
    assert [row[0] for row in _rows("States", "state means")] == [f"`{state}`" for state in DatasetState]


def test_every_command_is_on_the_page() -> None:
    assert {row[0].strip("`") for row in _rows("The commands with --json", "command prints")} == set(COMMANDS)
