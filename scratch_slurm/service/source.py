"""The source as the daemon knows it: listed now and then by a worker, and never waited for."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scratch_slurm.domain import backoff
from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.domain.model import Catalog, SkippedImage, SourceImage
from scratch_slurm.domain.names import IMAGE_SUFFIXES, parse_image_name
from scratch_slurm.service import operations as op
from scratch_slurm.service.scan import Scan
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 120.0
_LOOKED_FOR_AT_ONCE = 256
"""Datasets that are looked for by name before the look under way has ended; the next listing finds the others."""


@dataclass
class _Look:
    """Datasets to look for by name, and when that was done."""

    datasets: dict[str, None] = field(default_factory=dict)
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Source:
    """What the source holds, file by file.

    A file that hangs keeps what was known of it and is left out of later scans until the kernel has let go of the
    worker that it caught; all others are read on.
    """

    def __init__(
        self, source_dir: Path, workers: Workers, *, silence_s: float, owners: tuple[str | int, ...] = ()
    ) -> None:
        self.problem = ""
        """What is wrong with the source as a whole; empty when the latest listing went well."""
        self.hanging: dict[str, float] = {}
        """File name -> epoch seconds since when it gives no answer."""
        self.sign_at = time.monotonic()
        """When a scan last went on, monotonic seconds."""
        self.has_told = asyncio.Event()
        """Set once the source was listed, or said why not, or gave no answer."""
        self.on_news: Callable[[], None] = lambda: None
        """Called when a file turned out to be something else than before."""
        self.recalled: dict[str, SourceImage] = {}
        """What the latest complete listing showed, before this daemon's first one: what an earlier daemon's did."""
        self._dir = source_dir
        self._workers = workers
        self._silence_s = silence_s
        self._owners = owners
        self._entries: dict[str, op.Scanned] = {}
        self._changes = 0
        """How often an entry has changed."""
        self._made: tuple[tuple[object, ...], Catalog] | None = None
        """The latest catalog, and what it was made of."""
        self._listed = False
        self._scanning = asyncio.Lock()
        self._looked: set[str] = set()
        """File names that looks found since the listing under way began; it may have missed them."""
        self._look: _Look | None = None
        self._next_look: _Look | None = None
        self._looker: asyncio.Task[None] | None = None
        self._lost: set[asyncio.Task[None]] = set()
        self._lost_listing: asyncio.Task[None] | None = None
        self._strikes: dict[str, int] = {}
        """File name -> how often in a row it gave no answer."""

    @property
    def catalog(self) -> Catalog:
        """The images by dataset; the first file in order of names serves when two claim one dataset."""
        told = (self._listed, self.has_told.is_set(), self.problem, id(self.recalled), tuple(self.hanging.items()))
        made_of = (self._changes, *told)
        if self._made is None or self._made[0] != made_of:
            self._made = (made_of, self._make_catalog())
        return self._made[1]

    def _make_catalog(self) -> Catalog:
        images: dict[str, SourceImage] = {}
        skipped: dict[str, SkippedImage] = {}
        for file_name in sorted(self._entries):
            entry = self._entries[file_name]
            dataset = (parse_image_name(file_name) or (file_name, ""))[0]
            if entry.image and dataset in images:
                other = images[dataset].at.key
                skipped[file_name] = SkippedImage(
                    file_name, f"{other} holds dataset {dataset} already", entry.image.permissions
                )
            elif entry.image:
                images[dataset] = entry.image
            elif entry.skipped:
                skipped[dataset] = entry.skipped
        for file_name in self.hanging:
            dataset = (parse_image_name(file_name) or (file_name, ""))[0]
            if dataset not in images:
                clock = time.strftime("%H:%M:%S", time.localtime(self.hanging[file_name]))
                skipped[dataset] = SkippedImage(file_name, f"gives no answer since {clock}")
        # An empty source is no proof that its images are gone: it looks like that before it is mounted, too.
        complete = self._listed and bool(self._entries)
        hanging = {(parse_image_name(file_name) or (file_name, ""))[0] for file_name in self.hanging}
        untold = self.has_told.is_set() and not complete
        return Catalog(
            images,
            {name: why for name, why in skipped.items() if name not in images},
            complete,
            recalled={
                name: image
                for name, image in self.recalled.items()
                if name not in images and (name in hanging or (untold and name not in skipped))
            },
            doubt=self.problem if complete else self._doubt(),
            awaited=not self.has_told.is_set(),
        )

    def remember(self) -> dict[str, SourceImage] | None:
        """Give what is known of the source when it was listed as a whole, for a daemon that starts without it.

        Returns: None: it was not.
        """
        catalog = self.catalog
        if not catalog.complete:
            return None
        self.recalled = {**catalog.recalled, **catalog.images}
        return self.recalled

    def _doubt(self) -> str:
        if self._listed:
            return f"{self._dir} holds no image, as if nothing were mounted there"
        return f"{self._dir} has not been listed yet" + (f": {self.problem}" if self.problem else "")

    async def scan(self) -> None:
        """List the source and read what changed. A failure is remembered in `problem`; what was known stays known.

        While an earlier listing hangs in the kernel no other one is tried.
        """
        if self._lost_listing is not None:
            return
        async with self._scanning:
            self._looked.clear()
            await self._scan(None)

    async def look(self, datasets: list[str]) -> None:
        """Look for datasets by name, without listing the source: they may be newer than the latest listing.

        One look is under way at a time, beside a listing. Whoever gives up waiting for it does not stop it, and what
        it finds counts.
        """
        running, following = self._look, self._next_look or _Look()
        new = [name for name in datasets if running is None or name not in running.datasets]
        room = max(0, _LOOKED_FOR_AT_ONCE - len(following.datasets))
        following.datasets.update(dict.fromkeys(new[:room]))
        if following.datasets:
            self._next_look = following
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look_on())
        looks = [look for look in (running, self._next_look) if look and not look.datasets.keys().isdisjoint(datasets)]
        if looks:
            await asyncio.wait([look.done for look in looks])

    async def _look_on(self) -> None:
        while self._next_look is not None:
            look, self._look, self._next_look = self._next_look, self._next_look, None
            try:
                if self._lost_listing is None:
                    await self._scan(tuple(name + suffix for name in look.datasets for suffix in IMAGE_SUFFIXES))
            finally:
                self._look = None
                look.done.set_result(None)

    def close(self) -> None:
        """Forget the workers that hang."""
        for task in (*self._lost, *([self._looker] if self._looker else [])):
            task.cancel()

    async def _scan(self, file_names: tuple[str, ...] | None) -> None:
        scan = Scan(file_names)
        try:
            while not scan.is_over:
                await self._read(scan)
        except (OSError, RuntimeError, MemoryError) as exc:  # no process, no thread, no memory
            self._report(f"{self._dir}: cannot be looked at: {type(exc).__name__}: {exc}")

    async def _read(self, scan: Scan) -> None:
        """Carry a scan on with one worker, until it has ended or hangs."""
        self.sign_at = time.monotonic()
        names = scan.begin(self.hanging)
        stamps = {name: entry.stamp for name, entry in self._entries.items()}
        request = op.Scan(str(self._dir), names, tuple(self.hanging), stamps, self._owners)
        hung: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(
            self._workers.run(
                request,
                silence_s=self._silence_s,
                on_line=lambda line: self._hear(scan, line),
                on_hang=lambda: hung.set_result(None),
                takes_slot=False,
            )
        )
        try:
            await asyncio.wait([task, hung], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done() and not hung.done():
            self._finish(scan, task)
        else:
            self._give_up(scan, task)

    def _hear(self, scan: Scan, line: op.Line) -> None:
        self.sign_at = time.monotonic()
        match line:
            case op.Reached():
                scan.reached = True
            case op.Listed():
                scan.list(line.file_names, self.hanging)
                self.keep_only(line.file_names)
            case op.Scanned():
                scan.pass_by(line.file_name)
                if line.there and not scan.is_listing:
                    self.found_by_look(line.file_name)
                self.take(line)

    def _finish(self, scan: Scan, task: asyncio.Task[None]) -> None:
        scan.is_over = True
        try:
            task.result()
        except ScratchError as exc:
            self._report(exc.message)
            return
        self._complete(scan)

    def _complete(self, scan: Scan) -> None:
        if not scan.is_listing:
            return
        self._listed = True
        if self.problem:
            log.info("source answers again source_dir=%s", self._dir)
        self.problem = ""
        self.has_told.set()

    def _give_up(self, scan: Scan, task: asyncio.Task[None]) -> None:
        """Leave the worker to the kernel; go on behind the file that caught it, or stop if the listing itself did."""
        stuck = scan.lose()
        since = time.time() - self._silence_s
        if stuck is None:
            clock = time.strftime("%H:%M:%S", time.localtime(since))
            self._report(f"{self._dir} gives no answer since {clock}")
            self._lost_listing = task
        else:
            log.warning("source file hangs file=%s", stuck)
            self.hanging.setdefault(stuck, since)
            # Not to be taken for gone when it hangs no longer, and was never read.
            unread = op.Scanned(stuck, there=True, skipped=SkippedImage(stuck, "gave no answer"))
            self._entries.setdefault(stuck, unread)
            self._changes += 1
            if scan.is_over:
                self._complete(scan)

        def on_gone(done: asyncio.Task[None]) -> None:
            self._lost.discard(done)
            if stuck is None:
                self._lost_listing = None
            else:
                self._touch_later(stuck)

        self._lost.add(task)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        task.add_done_callback(on_gone)

    def _report(self, problem: str) -> None:
        """Remember what is wrong with the source as a whole."""
        if self.problem != problem:
            log.warning("source degraded problem=%r", problem)
        self.problem = problem
        self.has_told.set()

    def _touch_later(self, file_name: str) -> None:
        """Let a file that hung be read again after a pause, longer each time: every try holds a scan up."""
        strikes = self._strikes[file_name] = self._strikes.get(file_name, 0) + 1
        pause_s = backoff.pause_s(strikes, self._silence_s, _LONGEST_PAUSE_S)
        asyncio.get_running_loop().call_later(pause_s, self._touch_again, file_name)

    def _touch_again(self, file_name: str) -> None:
        self.hanging.pop(file_name, None)

    def take(self, scanned: op.Scanned) -> None:
        """Keep what a scan says of one file."""
        self._strikes.pop(scanned.file_name, None)
        old = self._entries.get(scanned.file_name)
        if not scanned.there:
            if self._entries.pop(scanned.file_name, None):
                self._changes += 1
                self.on_news()
        elif scanned.image or scanned.skipped or old is None:
            self._entries[scanned.file_name] = scanned
            self._changes += 1
            if scanned.skipped and (old is None or old.skipped != scanned.skipped):
                log.warning("skipped file=%s reason=%r", scanned.file_name, scanned.skipped.reason)
            if scanned.note and (old is None or old.note != scanned.note):
                log.info("served file=%s note=%r", scanned.file_name, scanned.note)
            self.on_news()

    def found_by_look(self, file_name: str) -> None:
        """Remember that a file is there, whatever a listing that began before says."""
        self._looked.add(file_name)

    def keep_only(self, file_names: tuple[str, ...]) -> None:
        """Forget the files that a complete listing does not show any more."""
        for gone in self._entries.keys() - set(file_names) - self._looked:
            del self._entries[gone]
            self._changes += 1
