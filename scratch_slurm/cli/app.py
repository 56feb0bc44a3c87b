"""What all commands share: the options, the configuration, output. Must stay light: every command imports it."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DeniedError, ScratchError
from scratch_slurm.domain.words import clean

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 200

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclasses.dataclass
class App:
    """One run of the command line."""

    config_path: Path | None = None
    json: bool = False

    def config(self) -> Config:
        """Read the configuration.

        Raises: ConfigError: it is missing or wrong.
        """
        from scratch_slurm.node.configfile import load_config

        return load_config(self.config_path)


pass_app = click.make_pass_decorator(App)


def find_config(app: App) -> Config | None:
    """Read the configuration; None where nobody named one and this host has none.

    Raises: ConfigError: the one that was named is missing, or it is wrong.
    """
    from scratch_slurm.node.configfile import DEFAULT_PATH, PATH_VARIABLE

    named = app.config_path is not None or os.environ.get(PATH_VARIABLE)
    return app.config() if named or Path(DEFAULT_PATH).exists() else None


def json_option(command: Command) -> Command:
    """Add `--json`: one JSON object on standard output, for errors too."""

    def keep(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.ensure_object(App).json = True

    decorate = click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=keep,
        help="Print one JSON object instead.",
    )
    return decorate(command)


def require_root(command: str) -> None:
    """Refuse anybody but root.

    Raises: DeniedError: the effective user is not root.
    """
    if os.geteuid() != 0:
        raise DeniedError(f"{command}: only root may do this", hint=f"sudo scratch-slurm {command} ...")


def make_console(*, stderr: bool = False) -> "Console":
    """Make a console that prints text as it is; into a pipe or a file it prints wide lines, for other programs."""
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # main() ends the run quietly

    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return PlainConsole(file=file, width=width, highlight=False, markup=False, emoji=False)


def draws_blocks(console: "Console") -> bool:
    """Tell whether the terminal's encoding has block characters."""
    return console.encoding.lower().startswith("utf")


def print_json(value: object) -> None:
    """Print a Struct, or a mapping of them, with every field, also those at their defaults."""
    click.echo(json.dumps(to_plain(value), indent=2, ensure_ascii=True))


def to_plain(value: object) -> Any:
    """Make dicts, lists and scalars of Structs."""
    if isinstance(value, msgspec.Struct):
        return {field: to_plain(getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def note(text: str) -> None:
    """Tell people something on standard error."""
    click.echo(clean(text), err=True)


def note_error(error: ScratchError) -> None:
    """Tell people of an error on standard error, with its hint."""
    note(f"scratch-slurm: {error.message}")
    if error.hint:
        note(f"  hint: {error.hint}")
