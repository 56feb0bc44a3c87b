"""Moving bars on a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from scratch_slurm.cli.render import stage_details
from scratch_slurm.domain.messages import DatasetState, DatasetStatus
from scratch_slurm.domain.sizes import format_bytes
from scratch_slurm.domain.words import clean


@contextlib.contextmanager
def copy_bars(console: Console) -> Iterator[Callable[[tuple[DatasetStatus, ...]], None]]:
    """Show a bar for each dataset; gives the function that moves them."""
    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[details]}", markup=False),
    )
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:

        def show(datasets: tuple[DatasetStatus, ...]) -> None:
            for dataset in datasets:
                if dataset.name not in tasks:
                    tasks[dataset.name] = progress.add_task(clean(dataset.name), total=None, details="")
                done = dataset.size_bytes if dataset.state is DatasetState.CACHED else dataset.staged_bytes
                progress.update(
                    tasks[dataset.name],
                    total=dataset.size_bytes or None,
                    completed=done,
                    details=copy_details(dataset),
                )
            progress.refresh()

        yield show


def copy_details(dataset: DatasetStatus) -> str:
    """Write what stands beside a copy's bar."""
    if dataset.problem:
        return f"{dataset.state.value}: {clean(dataset.problem)}"
    if dataset.state is DatasetState.STAGING:
        return ", ".join([format_bytes(dataset.size_bytes), *stage_details(dataset)])
    return dataset.state.value


class StepBar:
    """One bar for the steps of a longer work; a no-op where standard error is not a terminal."""

    def __init__(self, console: Console) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[details]}", markup=False),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.moves = console.is_terminal
        """Whether anybody sees it."""
        self._task = self._progress.add_task("", total=None, details="")

    def __enter__(self) -> "StepBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, step: str, done: int, total: int | None, details: str) -> None:
        """Show one step: its name, how far it is, and a few words."""
        self._progress.update(self._task, description=step, completed=done, total=total, details=str(Text(details)))
