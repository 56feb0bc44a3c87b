"""The man page says what the program does."""

import importlib
import re
from pathlib import Path

import click
import pytest

from scratch_slurm.cli import main
from scratch_slurm.domain import errors

PAGE = (Path(__file__).parents[2] / "docs" / "man" / "scratch-slurm.1").read_text(encoding="utf-8")
CODES = {int(code) for code in re.findall(r"^\.It (\d+) Ta ", PAGE, re.MULTILINE)}


def test_every_exit_code_is_in_the_table() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ScratchError)]
    assert {kind.exit_code for kind in kinds} | {0, main.EXIT_INTERRUPTED, main.EXIT_BROKEN_PIPE, 143} == CODES


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_and_option_is_described(name: str) -> None:
    assert f"\n.Ss {name}\n" in PAGE
    command = importlib.import_module(f"scratch_slurm.cli.{name.replace('-', '_')}").command
    flat = PAGE.replace("Fl -", "--").replace("Fl ", "-")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for option in [*parameter.opts, *parameter.secondary_opts]:
                assert option in flat, f"{name} {option}"
