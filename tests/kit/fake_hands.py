"""A node in memory, and the hands that act on it: `Rounds` can be met alone, in virtual time.

    async def story() -> None:
        node = FakeNode()
        coco = node.publish("coco", size_bytes=100)          # an image in the source
        rounds = node.start()                                # a daemon: Rounds over this node
        await node.until(lambda: node.mount("coco") is not None)
        node.ledger.pin("coco", job_id=7)
        await node.until(lambda: node.content("coco") == coco.generation.id and node.is_cached("coco"))
        await node.crash(rounds)                             # the daemon is gone at this moment, half way through all
        rounds = node.start()                                # the next one finds what is there

    virtual_time.run(story())

What can go wrong: `node.fail(verb, dataset)` lets the next such verb fail, `node.hang(dataset)` lets all verbs on a
dataset hang until `node.heal(dataset)`, `node.step_s` and `node.copy_bytes_per_s` make all slow, `disk.other_bytes`
fills a disk, `disk.problem` and `disk.is_unknown` let one die or hang (`node.disks` has all), `node.ledger.error`
breaks the ledger, `node.kernel_error` blinds the daemon, `node.listed = False` leaves the source unlisted. A daemon
that is cancelled or crashes is cut off between any two steps of a verb.

What readers meet is in `mount`, `content` and `read`, what users do in `read` and `open`.

The same contract holds as for the real hands: tests/component/test_hands_contract.py.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from scratch_slurm.domain.access import too_open, word_refusal
from scratch_slurm.domain.actions import Despite
from scratch_slurm.domain.backing import Backing, FromCopy, FromSource
from scratch_slurm.domain.claims import find_keepers
from scratch_slurm.domain.config import Config, build_config
from scratch_slurm.domain.errors import (
    DeniedError,
    DeviceError,
    DiskError,
    ImageError,
    LedgerError,
    NoSpaceError,
    NotFoundError,
    PinnedError,
    ScratchError,
    SourceError,
)
from scratch_slurm.domain.model import (
    CachedImage,
    Catalog,
    Generation,
    Location,
    Permissions,
    Pin,
    SkippedImage,
    SourceImage,
    job_holder,
)
from scratch_slurm.domain.names import cached_file_name
from scratch_slurm.domain.sight import SeenMount
from scratch_slurm.node.staging.cache import CacheContents, PartialImage
from scratch_slurm.service.events import Answers, Event, Gate, Hangs, Progress
from scratch_slurm.service.hands import Tag
from scratch_slurm.service.observe import DiskReading, KernelReading
from scratch_slurm.service.rounds import Rounds
from tests.kit import virtual_time

EPOCH_S = 1_700_000_000.0
SOURCE_DIR, CACHE_DIR = "/source", "/cache"
MANY = 10**12
_PUBLIC, _OPEN = Permissions(mode=0o644), Permissions(mode=0o755)


@dataclass(eq=False)
class File:
    """An image file, in the source or on a disk: its bytes are those of one generation, or of none."""

    path: str
    content: str
    """The generation whose bytes it has; `?` when they are nobody's."""
    size_bytes: int
    done_bytes: int
    """How much of it is written: half a copy must be seen by nobody."""
    root: Permissions
    is_linked: bool = True
    """Whether it has a name still."""


@dataclass(eq=False)
class Device:
    """A loop device."""

    name: str
    file: File
    generation_id: str | None
    """What its tag says; None: it is not ours."""
    read_bytes: int = 0
    openers: int = 0
    """Files that users have open on it: it lives on while there is one."""


@dataclass(eq=False)
class Mount:
    """A mount on a dataset's path."""

    number: int
    device: Device | None
    """None: something of somebody else's."""


@dataclass(eq=False)
class Disk:
    """A disk with a cache directory."""

    dir: str
    whole_bytes: int = MANY
    other_bytes: int = 0
    """What others have on it."""
    files: dict[str, File] = field(default_factory=dict)
    """Path -> whole copies, parts and retired ones."""
    problem: str = ""
    """Why it cannot be used."""
    is_unknown: bool = False
    """It gives no answer."""

    def used_bytes(self, devices: Iterable[Device]) -> int:
        """All that is taken by us, with deleted files that a device still reads."""
        held = {each.file for each in devices if not each.file.is_linked and each.file.path.startswith(f"{self.dir}/")}
        return sum(file.size_bytes for file in (*self.files.values(), *held))


class FakeLedger:
    """Pins and events in memory, see `LedgerAccess`. `error` lets it fail."""

    def __init__(self) -> None:
        self.error = ""
        self.held: list[Pin] = []
        self.events: list[tuple[str, str, str]] = []
        """(event, dataset, detail)"""
        self._last: tuple[Pin, ...] = ()
        self._problem = ""

    def pin(self, dataset: str, job_id: int = 1, uid: int = 1000) -> None:
        """A job's prolog pins a dataset."""
        if not any((each.dataset, each.holder) == (dataset, job_holder(job_id)) for each in self.held):
            at = virtual_time.now()
            self.held.append(Pin(dataset, job_holder(job_id), uid, EPOCH_S + at, at))

    def unpin(self, job_id: int = 1, dataset: str | None = None) -> None:
        """A job's epilog lets go of all it pins, or of one dataset."""
        gone = [each for each in self.held if each.holder == job_holder(job_id) and dataset in (None, each.dataset)]
        self.held = [each for each in self.held if each not in gone]

    @property
    def problem(self) -> str:
        return self._problem

    async def look(self) -> tuple[Pin, ...]:
        await asyncio.sleep(0)
        self._problem = self.error
        if not self.error:
            self._last = tuple(self.held)
        return self._last

    async def pins(self) -> Sequence[Pin]:
        await asyncio.sleep(0)
        if self.error:
            raise LedgerError(self.error)
        return tuple(self.held)

    async def release(
        self, holder: str, datasets: Iterable[str] | None, *, event: str, detail: str, owner: int | None = None
    ) -> tuple[str, ...]:
        await asyncio.sleep(0)
        if self.error:
            raise LedgerError(self.error)
        wanted = None if datasets is None else set(datasets)
        own = [each for each in self.held if each.holder == holder and (wanted is None or each.dataset in wanted)]
        if owner is not None and any(each.uid != owner for each in own):
            raise DeniedError(f"{holder}: is another user's")
        self.held = [each for each in self.held if each not in own]
        self.events += [(event, each.dataset, detail) for each in own]
        return tuple(each.dataset for each in own)

    async def record(self, event: str, *, dataset: str, detail: str) -> None:
        await asyncio.sleep(0)
        self.events.append((event, dataset, detail))


class FakeNode:
    """The world that outlives every daemon: source, disks, kernel, ledger, users.

    Args:
        disk_count: one disk has `cache_dir`, several have `cache_dirs`.
        values: of the configuration, beside the directories.
    """

    def __init__(self, disk_count: int = 1, **values: Any) -> None:
        dirs = [CACHE_DIR, *(f"{CACHE_DIR}{number}" for number in range(1, disk_count))]
        caches = {"cache_dirs": dirs} if disk_count > 1 else {"cache_dir": CACHE_DIR}
        given = {"source_dir": SOURCE_DIR, "mount_dir": "/datasets", "reserve": "0", **caches, **values}
        self.config: Config = build_config({"capacity": "100%", **given}, origin="test", host_name="node")
        self.source: dict[str, tuple[SourceImage, File]] = {}
        self.skipped: dict[str, str] = {}
        """Dataset -> why its file is not served."""
        self.listed = True
        """Whether the source has been listed whole."""
        self.disks = [Disk(each) for each in dirs]
        self.mounts: dict[str, list[Mount]] = {}
        """Dataset -> what is mounted on its path, from the lowest to the top."""
        self.devices: dict[str, Device] = {}
        self.ledger = FakeLedger()
        self.groups: dict[int, frozenset[int]] = {0: frozenset((0,)), 1000: frozenset((1000,))}
        """User -> groups; missing: the name service does not know it."""
        self.kernel_error = ""
        self.step_s = 0.01
        """How long each step of a verb takes."""
        self.copy_bytes_per_s = 1e9
        self.on_verb: Callable[[str, str], None] = lambda verb, dataset: None
        """Called when a verb on a dataset takes effect: something happens at that very moment."""
        self.verbs: list[tuple[str, str]] = []
        """(verb, dataset) of all that was begun."""
        self._numbers = itertools.count(100)
        self._versions = itertools.count(1)
        self._faults: list[tuple[str, str, ScratchError]] = []
        self._hanging: dict[str, asyncio.Event] = {}
        self._running: dict[int, asyncio.Task[None]] = {}

    @property
    def disk(self) -> Disk:
        """The only one, or the first."""
        return self.disks[0]

    def disk_of(self, path: str) -> Disk | None:
        """The disk that a file lies on; None: it is in the source."""
        return next((disk for disk in self.disks if path.startswith(f"{disk.dir}/")), None)

    # What people do with the source.

    def publish(
        self,
        dataset: str,
        *,
        size_bytes: int = 1_000_000,
        permissions: Permissions = _PUBLIC,
        root: Permissions = _OPEN,
    ) -> SourceImage:
        """Put a new image, or another one, into the source."""
        self.remove(dataset)
        version = next(self._versions)
        generation = Generation(f"{version:016x}", size_bytes)
        at = Location(SOURCE_DIR, f"{dataset}.squashfs")
        image = SourceImage(dataset, at, generation, "squashfs", permissions)
        self.source[dataset] = (image, File(str(at), generation.id, size_bytes, size_bytes, root))
        self.skipped.pop(dataset, None)
        return image

    def remove(self, dataset: str) -> None:
        """Take an image out of the source; whoever reads it reads on."""
        if dataset in self.source:
            self.source.pop(dataset)[1].is_linked = False

    def catalog(self) -> Catalog:
        """What a listing of the source shows."""
        images = {name: image for name, (image, _) in self.source.items()}
        skipped = {name: SkippedImage(f"{name}.squashfs", why) for name, why in self.skipped.items()}
        if not self.listed:
            return Catalog({}, {}, complete=False, doubt="has not been listed yet", awaited=True)
        return Catalog(images, skipped, complete=bool(images or skipped))

    # What goes wrong.

    def fail(self, verb: str, dataset: str, error: ScratchError | None = None) -> None:
        """Let the next such verb on a dataset fail."""
        self._faults.append((verb, dataset, error or DeviceError(f"{dataset}: {verb} failed")))

    def clear_faults(self) -> None:
        """Let nothing fail any more that has not yet."""
        self._faults.clear()

    def hang(self, dataset: str) -> None:
        """Let every verb on a dataset hang from now on."""
        self._hanging.setdefault(dataset, asyncio.Event())

    def heal(self, dataset: str) -> None:
        """Let what hangs go: it has failed."""
        if event := self._hanging.pop(dataset, None):
            event.set()

    @property
    def hanging(self) -> frozenset[str]:
        return frozenset(self._hanging)

    # Daemons.

    def start(self, **more: Any) -> Rounds:
        """Start a daemon's rounds; `more` goes to `Rounds`."""
        rounds = Rounds(self.config, FakeHands(self), self.ledger, self.catalog, monotonic=virtual_time.now, **more)
        self._running[id(rounds)] = asyncio.create_task(rounds.run())
        rounds.nudge()
        return rounds

    async def crash(self, rounds: Rounds) -> None:
        """Kill a daemon: all that it does is cut off where it is."""
        task = self._running.pop(id(rounds))
        task.cancel()
        await asyncio.wait([task])
        await rounds.close()

    def check_running(self) -> None:
        """Raise what ended a daemon's rounds, if anything has."""
        for task in self._running.values():
            if task.done():
                task.result()

    async def until(self, is_so: Callable[[], object], limit_s: float = 600.0) -> None:
        """Let time pass until something is so."""
        deadline = virtual_time.now() + limit_s
        while not is_so():
            self.check_running()
            assert virtual_time.now() < deadline, f"not within {limit_s:g} s of virtual time"
            await asyncio.sleep(0.02)

    async def rest(self, rounds: Rounds, seconds: float = 0.0) -> None:
        """Let time pass, and then rounds go on until nothing is begun any more."""
        await asyncio.sleep(seconds)
        began = -1
        while began != len(self.verbs) or rounds.is_busy:
            began = len(self.verbs)
            await rounds.after_next_round()
            await asyncio.sleep(1.0)
            self.check_running()
            if rounds.is_busy and self._hanging:
                return

    # What users do, and meet.

    def mount(self, dataset: str) -> Mount | None:
        """What a look-up of a dataset's path meets."""
        stack = self.mounts.get(dataset)
        return stack[-1] if stack else None

    def device(self, dataset: str) -> Device | None:
        mount = self.mount(dataset)
        return mount.device if mount else None

    def content(self, dataset: str) -> str | None:
        """The generation that readers of a dataset get; None: they get nothing."""
        device = self.device(dataset)
        if device is None:
            return None
        return device.file.content if device.file.done_bytes == device.file.size_bytes else "half a copy"

    def is_cached(self, dataset: str) -> bool:
        """Whether readers are served from the disk."""
        device = self.device(dataset)
        return device is not None and self.disk_of(device.file.path) is not None

    def copies(self, dataset: str) -> list[CachedImage]:
        """The whole copies of a dataset that are in service."""
        return [each for disk in self.disks for each in _contents(disk).images if each.dataset == dataset]

    def read(self, dataset: str, count: int) -> None:
        """A job reads so many bytes from the device."""
        device = self.device(dataset)
        assert device is not None, "nothing is mounted"
        device.read_bytes += count

    def open(self, dataset: str) -> Device:
        """A job opens a file, for good: close it with `close`."""
        device = self.device(dataset)
        assert device is not None, "nothing is mounted"
        device.openers += 1
        return device

    def close(self, device: Device) -> None:
        device.openers -= 1
        self.sweep()

    def cover(self, dataset: str) -> None:
        """Somebody mounts something else on a dataset's path."""
        self.mounts.setdefault(dataset, []).append(Mount(next(self._numbers), None))

    def sweep(self) -> None:
        """Let the kernel clear devices that nothing uses any more."""
        used = {mount.device for stack in self.mounts.values() for mount in stack}
        self.devices = {name: each for name, each in self.devices.items() if each in used or each.openers}

    # What verbs do.

    def bind(self, file: File, generation_id: str | None) -> Device:
        # The lowest number that is free, as the kernel gives it.
        name = next(f"loop{number}" for number in itertools.count() if f"loop{number}" not in self.devices)
        self.devices[name] = Device(name, file, generation_id)
        return self.devices[name]

    def next_number(self) -> int:
        return next(self._numbers)

    async def begin(self, verb: str, dataset: str, tell: Callable[[Event], None], silence_s: float) -> None:
        """What may happen to any verb before it does anything."""
        self.verbs.append((verb, dataset))
        await asyncio.sleep(self.step_s)
        if dataset in self._hanging:
            gone = self._hanging[dataset]
            await asyncio.sleep(silence_s)
            tell(Hangs(dataset, EPOCH_S + virtual_time.now() - silence_s))
            await gone.wait()
            tell(Answers(dataset))
            raise SourceError(f"no sign of life for {silence_s:.0f} s in {verb} of {dataset}")
        for fault in self._faults:
            if fault[:2] == (verb, dataset):
                self._faults.remove(fault)
                raise fault[2]
        self.on_verb(verb, dataset)


class FakeHands:
    """The hands of a daemon on a `FakeNode`; see `Hands` for what each verb does."""

    def __init__(self, node: FakeNode) -> None:
        self.tell: Callable[[Event], None] = lambda event: None
        self._node = node
        self._prepared: set[str] = set()

    async def look_at_kernel(self) -> KernelReading:
        node = self._node
        await asyncio.sleep(node.step_s)
        if node.kernel_error:
            raise DeviceError(node.kernel_error)
        tops = {name: self._seen(name, stack[-1]) for name, stack in node.mounts.items() if stack}
        beneath = {name: self._seen(name, stack[-2]) for name, stack in node.mounts.items() if len(stack) > 1}
        files = {each.file for each in node.devices.values() if not each.file.is_linked}
        held = {
            disk.dir: sum(file.size_bytes for file in files if node.disk_of(file.path) is disk) for disk in node.disks
        }
        read_bytes = {
            name: stack[-1].device.read_bytes for name, stack in node.mounts.items() if stack and stack[-1].device
        }
        return KernelReading(tops, beneath, held, read_bytes)

    async def look_at_disks(self) -> tuple[DiskReading, ...]:
        return tuple([await self._look_at_disk(disk) for disk in self._node.disks])

    async def _look_at_disk(self, disk: Disk) -> DiskReading:
        node = self._node
        await asyncio.sleep(node.step_s)
        if disk.is_unknown:
            return DiskReading(disk.dir, _contents(disk), f"{disk.dir}: gives no answer", unknown=True)
        if disk.problem:
            return DiskReading(disk.dir, CacheContents((), (), 0, 0, 0), f"{disk.dir}: {disk.problem}")
        if disk.dir not in self._prepared:  # what an earlier daemon had on its way out comes back
            self._prepared.add(disk.dir)
            for path in [path for path in disk.files if path.endswith(".evicted")]:
                name = path.rpartition("/")[2].removesuffix(".evicted")
                self._move(path, f"{disk.dir}/{name}.image")
        free_bytes = disk.whole_bytes - disk.other_bytes - disk.used_bytes(node.devices.values())
        return DiskReading(disk.dir, _contents(disk, free_bytes=max(0, free_bytes)))

    async def identify(self, dataset: str, device: str, *, mounted: bool) -> Tag:
        await self._begin("identify", dataset)
        found = self._device(device)
        return Tag(found.generation_id, found.file.root if mounted and found.generation_id else None)

    async def probe(self, dataset: str, device: str, copy_path: str) -> None:
        await self._begin("probe", dataset)

    async def groups_of(self, uid: int) -> frozenset[int]:
        await asyncio.sleep(self._node.step_s)
        if uid not in self._node.groups:
            raise NotFoundError(f"user {uid} is not known to this node")
        return self._node.groups[uid]

    async def show(self, image: SourceImage, backing: Backing, *, replace: bool, despite: Despite = None) -> None:
        node, dataset = self._node, image.dataset
        await self._begin("show", dataset)
        stack = node.mounts.get(dataset, [])
        if stack and not replace:
            raise DeviceError(f"/datasets/{dataset}: something is mounted there already")
        if replace and not stack:
            raise DeviceError(f"/datasets/{dataset}: nothing is mounted there")
        file = self._open(backing)
        self.tell(Gate(dataset, image.generation.id, file.root))
        if who := too_open(file.root, image.permissions):
            raise DeniedError("the image " + word_refusal(image.permissions, file.root, who))
        mount = Mount(node.next_number(), node.bind(file, image.generation.id))
        await self._step()
        self._refuse_pinned(dataset, despite)
        if not replace:
            node.mounts.setdefault(dataset, []).append(mount)
            return
        # Beneath the old one, which then goes: a daemon killed in between leaves both.
        stack.insert(-1, mount)
        await self._step()
        stack.pop()
        node.sweep()

    async def switch(self, dataset: str, device: str, backing: Backing) -> None:
        await self._begin("switch", dataset)
        file = self._open(backing)
        self._device(device).file = file

    async def uncover(self, dataset: str, device: str, *, despite: Despite) -> None:
        await self._begin("uncover", dataset)
        stack = self._node.mounts.get(dataset, [])
        if len(stack) < 2 or stack[-2].device is None or stack[-2].device.name != device:
            raise DeviceError(f"/datasets/{dataset}: {device} is not beneath")
        self._refuse_pinned(dataset, despite)
        stack.pop()
        self._node.sweep()

    async def unmount(self, dataset: str, *, despite: Despite) -> None:
        await self._begin("unmount", dataset)
        stack = self._node.mounts.get(dataset, [])
        if not stack:
            raise DeviceError(f"/datasets/{dataset}: nothing is mounted there")
        self._refuse_pinned(dataset, despite)
        while stack and stack[-1].device and stack[-1].device.generation_id:
            stack.pop()
        if not stack:
            self._node.mounts.pop(dataset, None)
        self._node.sweep()

    async def copy(self, image: SourceImage, cache_dir: str) -> None:
        node = self._node
        await self._begin("copy", image.dataset)
        source = self._open(FromSource(image))
        path = _part_path(cache_dir, image.dataset, image.generation.id)
        disk = self._well_disk(path)
        part = disk.files.get(path)
        if part is None:
            free_bytes = disk.whole_bytes - disk.other_bytes - disk.used_bytes(node.devices.values())
            if free_bytes < source.size_bytes:
                raise NoSpaceError(f"{path}: {free_bytes} bytes are free, {source.size_bytes} needed")
            part = disk.files[path] = File(path, source.content, source.size_bytes, 0, source.root)
        self.tell(Progress(image.dataset, part.done_bytes, "copying"))
        while part.done_bytes < part.size_bytes:
            step_bytes = min(part.size_bytes - part.done_bytes, max(1, part.size_bytes // 4))
            await asyncio.sleep(step_bytes / node.copy_bytes_per_s)
            self._well_disk(path)
            part.done_bytes += step_bytes
            self.tell(Progress(image.dataset, part.done_bytes, "copying"))
        if not source.is_linked:
            raise ImageError(f"{image.at}: is not the image that was listed")

    async def publish(self, dataset: str, generation_id: str, cache_dir: str) -> None:
        await self._begin("publish", dataset)
        self._move(_part_path(cache_dir, dataset, generation_id), _copy_path(cache_dir, dataset, generation_id))

    async def drop(self, dataset: str, generation_id: str, cache_dir: str) -> None:
        await self._begin("drop", dataset)
        self._unlink(_part_path(cache_dir, dataset, generation_id))

    async def retire(self, image: CachedImage) -> None:
        await self._begin("retire", image.dataset)
        self._move(image.path, _retired_path(image))

    async def restore(self, image: CachedImage) -> None:
        await self._begin("restore", image.dataset)
        if _retired_path(image) in self._well_disk(image.path).files:
            self._move(_retired_path(image), image.path)

    async def discard(self, image: CachedImage) -> None:
        await self._begin("discard", image.dataset)
        self._unlink(_retired_path(image))

    def close(self) -> None:
        pass

    async def _begin(self, verb: str, dataset: str) -> None:
        await self._node.begin(verb, dataset, self.tell, self._node.config.source_timeout_s)

    async def _step(self) -> None:
        await asyncio.sleep(self._node.step_s)

    def _device(self, name: str) -> Device:
        if name not in self._node.devices:
            raise DeviceError(f"/dev/{name}: is not bound")
        return self._node.devices[name]

    def _open(self, backing: Backing) -> File:
        if isinstance(backing, FromCopy):
            files = self._well_disk(backing.copy.path).files
            if backing.copy.path not in files:
                raise DiskError(f"{backing}: cannot open: no such file")
            return files[backing.copy.path]
        image, file = self._node.source.get(backing.image.dataset, (None, None))
        if image is None or file is None or image.generation != backing.image.generation:
            raise ImageError(f"{backing}: is not the image that was listed")
        return file

    def _seen(self, dataset: str, mount: Mount) -> SeenMount:
        device = mount.device
        if device is None:
            return SeenMount(dataset, None)
        disk = self._node.disk_of(device.file.path)
        reads = (device.file.path, disk.dir) if disk else ("", "")
        return SeenMount(dataset, (mount.number, device.name), *reads)

    def _refuse_pinned(self, dataset: str, despite: Despite) -> None:
        if despite is None:
            return
        if self._node.ledger.error:
            raise LedgerError(self._node.ledger.error)
        keepers = find_keepers([pin.holder for pin in self._node.ledger.held if pin.dataset == dataset], despite)
        if keepers:
            raise PinnedError(f"{dataset}: was pinned by {', '.join(keepers)} before its mount could be changed")

    def _well_disk(self, path: str) -> Disk:
        """Find the disk of a path. Raises: DiskError: it cannot be used."""
        disk = self._node.disk_of(path)
        if disk is None:
            raise DiskError(f"{path}: lies on no disk")
        if disk.problem or disk.is_unknown:
            raise DiskError(f"{disk.dir}: {disk.problem or 'gives no answer'}")
        return disk

    def _move(self, old: str, new: str) -> None:
        files = self._well_disk(old).files
        if old not in files:
            raise DiskError(f"{old}: no such file")
        if new in files:
            files[new].is_linked = False
        file = files[new] = files.pop(old)
        file.path = new  # as the kernel shows it of an open one, too

    def _unlink(self, path: str) -> None:
        file = self._well_disk(path).files.pop(path, None)
        if file is not None:
            file.is_linked = False


def _contents(disk: Disk, free_bytes: int = 0) -> CacheContents:
    whole, parts = [], []
    for path, file in disk.files.items():
        name = path.rpartition("/")[2]
        dataset, _, rest = name.rpartition("@")
        generation_id, _, kind = rest.partition(".")
        if kind == "image":
            whole.append(CachedImage(dataset, generation_id, path, file.size_bytes, disk.dir))
        elif kind == "part":
            parts.append(PartialImage(dataset, generation_id, file.size_bytes))
    used_bytes = sum(file.size_bytes for file in disk.files.values())
    return CacheContents(tuple(whole), tuple(parts), used_bytes, free_bytes, disk.whole_bytes)


def _copy_path(cache_dir: str, dataset: str, generation_id: str) -> str:
    return f"{cache_dir}/{cached_file_name(dataset, generation_id)}"


def _part_path(cache_dir: str, dataset: str, generation_id: str) -> str:
    return f"{cache_dir}/.staging/{cached_file_name(dataset, generation_id).removesuffix('.image')}.part"


def _retired_path(image: CachedImage) -> str:
    cache_dir, _, name = image.path.rpartition("/")
    return f"{cache_dir}/.staging/{name.removesuffix('.image')}.evicted"
