"""`scratch-slurm`: finds the command, and turns errors into messages and exit codes. Must not do any command's work."""

import contextlib
import errno
import importlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from scratch_slurm import __version__
from scratch_slurm.cli.app import CONTEXT_SETTINGS, App, note_error, print_json
from scratch_slurm.domain.errors import NoSpaceError, ScratchError, UsageError
from scratch_slurm.domain.messages import ErrorAnswer
from scratch_slurm.domain.names import nearest_hint

PROGRAM = "scratch-slurm"
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE

# Command -> its line in the help; the module of the same name, with _ for -, is imported only when it runs.
COMMANDS = {
    "datasets": "List all datasets, and on how many nodes of the cluster each is cached.",
    "status": "Show what is cached, being copied and in use on this node.",
    "jobs": "Show which jobs pin which datasets.",
    "plan": "Show what the node would cache or drop now, and why; changes nothing.",
    "build": "Pack a directory into an image and publish it.",
    "preheat": "Pin datasets for the administrator and wait until they are cached (root).",
    "evict": "Release the administrator's pins and free the cache (root).",
    "release": "Give datasets of a running job back, before its end.",
    "events": "Show what happened lately (root).",
    "forget-nodes": "Take the features of nodes back that were powered down (on the controller).",
}


class _Commands(click.Group):
    """Imports a command's module when it is called, so that no command pays for the others."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"scratch_slurm.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            hint = nearest_hint(args[0], COMMANDS) or f"commands: {', '.join(COMMANDS)}"
            raise UsageError(f"command {args[0]!r} is not known", hint=hint)
        return super().resolve_command(context, args)

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands,
    context_settings=CONTEXT_SETTINGS,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The configuration, instead of $SCRATCH_SLURM_CONFIG or /etc/scratch-slurm/config.yaml.",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, config_path: Path | None) -> None:
    """The datasets of this node: what is cached on its SSD, for whom, and what is under way."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(UsageError.exit_code)
    context.ensure_object(App).config_path = config_path


def main() -> None:
    """Run the console script."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names and terminals of any encoding
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line.

    Returns: the exit code: 0, 2 for wrong usage, a ScratchError's own, 130 for Ctrl-C, 141 for a closed pipe.
    """
    app = App()
    try:
        code = _run(arguments, app)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return EXIT_BROKEN_PIPE
    except OSError as exc:
        _drop_output()
        return _report_system(exc)
    return code


def _drop_output() -> None:
    # Nobody reads on: the flush at exit must not complain either. Source: docs.python.org/3/library/signal.html
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_system(exc: OSError) -> int:
    """Tell of an error that no command expects: the output cannot be written, or, with a file's name, a bug."""
    from scratch_slurm.node.oswords import word_os_error

    kind = NoSpaceError if exc.errno in (errno.ENOSPC, errno.EDQUOT) else ScratchError
    word = word_os_error(exc)
    what = "standard output" if exc.filename is None else str(exc.filename)
    with contextlib.suppress(OSError):
        note_error(kind(f"{what}: {'no space left' if kind is NoSpaceError else word}"))
    return kind.exit_code


def _run(arguments: list[str], app: App) -> int:
    # Not cli.main(): that ends with 1 for a closed pipe and for Ctrl-C.
    try:
        with cli.make_context(PROGRAM, list(arguments), obj=app) as context:
            code = cli.invoke(context)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"{PROGRAM}: interrupted", err=True)
        return EXIT_INTERRUPTED
    except click.UsageError as exc:
        return _usage(exc, app)
    except click.ClickException as exc:
        return _report(UsageError(exc.format_message()), app)
    except ScratchError as exc:
        return _report(exc, app)


def _usage(exc: click.UsageError, app: App) -> int:
    where = exc.ctx.command_path if exc.ctx else PROGRAM
    return _report(UsageError(exc.format_message(), hint=f"`{where} -h` tells what there is"), app)


def _report(exc: ScratchError, app: App) -> int:
    note_error(exc)
    if app.json:
        print_json(ErrorAnswer(type(exc).__name__, exc.message, exc.hint))
    return exc.exit_code


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # runs every `finally` on the way
