"""What the tests of the main job ask of a cluster: datasets, gates in jobs, and how a node really stands.

The state of a node is read past the code under test where that is possible: the ledger with SQLite, the backing from
the kernel, the cached images from the directory.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from scratch_slurm.domain.messages import DatasetStatus, WaitAnswer, WaitRequest
from scratch_slurm.node import daemon_client
from tests.local_cluster import ClusterError, LocalCluster
from tests.local_cluster.configs import config_yaml
from tests.local_cluster.control import Control
from tests.local_cluster.layout import merge_settings

MB = 1_000_000

SHORT_S = 10.0
"""For what takes a moment."""

# What `scratch-slurm` does, for users who cannot read the Python that the tests run with.
ASK = """\
import os, socket, sys
path, method, what, body = sys.argv[1:]
body = os.path.expandvars(body).encode()
daemon = socket.socket(socket.AF_UNIX)
daemon.connect(path)
daemon.sendall(f"{method} {what} HTTP/1.0\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n".encode() + body)
print("answer:" + daemon.makefile().read().partition("\\n\\n")[2])
"""


def until(is_so: Callable[[], object], what: str, timeout_s: float = SHORT_S) -> None:
    """Wait for something that is about to be so."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Dataset:
    """A dataset of one file, `data`."""

    name: str
    image: Path
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def image_digest(self) -> str:
        return digest_of(self.image)


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_dataset(
    source_dir: Path, name: str, *, data_bytes: int = 2 * MB, image_bytes: int = 0, seed: int | None = None
) -> Dataset:
    """Make a dataset of random data; its image appears in the source at once and whole.

    Args:
        image_bytes: lengthen the image, which costs no time here, but its copy does. Its end is no zeros: those a
            copy has that only reserved its space.
    """
    data = random.Random(name if seed is None else seed).randbytes(data_bytes)
    work = source_dir.parent / f"making-{name}"
    work.mkdir()
    (work / "data").write_bytes(data)
    image = source_dir.parent / f"{name}.new"
    plain = ["-noI", "-noD", "-noF", "-noX"]  # nothing is compressed
    command = ["mksquashfs", str(work), str(image), "-noappend", "-quiet", "-no-progress", *plain]
    subprocess.run(command, check=True, capture_output=True)
    if image_bytes > image.stat().st_size:
        os.truncate(image, image_bytes)
        with image.open("r+b") as file:
            file.seek(-1024, os.SEEK_END)
            file.write(random.Random(name).randbytes(1024))
    (work / "data").unlink()
    work.rmdir()
    return Dataset(name, image.rename(source_dir / f"{name}.squashfs"), data)


class Gate:
    """Holds a job up until the test opens it; the job waits in open(2) of a FIFO, on whatever node."""

    def __init__(self, directory: Path, name: str) -> None:
        self._fifo = directory / f"{name}.gate"
        self._mark = directory / f"{name}.reached"
        os.mkfifo(self._fifo)
        self._fifo.chmod(0o666)

    @property
    def lines(self) -> str:
        """Shell lines for the job."""
        return f"touch {self._mark}.$SLURMD_NODENAME.${{SLURM_RESTART_COUNT:-0}}\nread _ < {self._fifo}\n"

    def wait_reached(self, node: str, restarts: int = 0) -> None:
        """Wait until the job is at the gate."""
        mark = Path(f"{self._mark}.{node}.{restarts}")
        until(mark.exists, f"the job is at {self._fifo.name} on {node}", 30)

    def open(self) -> None:
        """Let one reader pass."""

        def is_opened() -> bool:
            try:
                descriptor = os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return False  # nobody reads yet
            os.write(descriptor, b"pass\n")
            os.close(descriptor)
            return True

        until(is_opened, f"somebody waits at {self._fifo.name}")


@dataclass(frozen=True)
class NodeView:
    """One node, looked at from outside."""

    cluster: LocalCluster
    name: str

    def path(self, key: str) -> Path:
        """One of the node's own directories: `cache_dir`, `state_dir`, `run_dir`."""
        return self.cluster.node(self.name).path(self.cluster.settings[key])

    def statuses(self, *names: str, timeout_s: float = 0.0) -> tuple[DatasetStatus, ...]:
        """Ask the daemon; the answer is not older than the question."""
        body = msgspec.json.encode(WaitRequest(names, timeout_s))
        socket = self.path("run_dir") / "daemon.sock"
        answer = daemon_client.request(socket, "POST", "/v1/wait", body, timeout_s + SHORT_S)
        return msgspec.json.decode(answer, type=WaitAnswer).datasets

    def status(self, name: str, timeout_s: float = 0.0) -> DatasetStatus:
        return self.statuses(name, timeout_s=timeout_s)[0]

    def use_count(self, name: str) -> int:
        return self.status(name).use_count

    def pins(self) -> set[tuple[str, str]]:
        """(dataset, holder) as the ledger has them, with or without a daemon."""
        ledger = self.path("state_dir") / "ledger.sqlite"
        if not ledger.exists():
            return set()
        with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
            return set(database.execute("SELECT dataset, holder FROM pins"))

    def cached(self) -> dict[str, Path]:
        """Dataset -> image on the first level of the cache directory: all that may ever be served."""
        return {path.name.partition("@")[0]: path for path in self.path("cache_dir").glob("*.image")}

    def staging(self) -> list[str]:
        """What is in the cache's staging directory."""
        return sorted(path.name for path in (self.path("cache_dir") / ".staging").iterdir())

    def used_bytes(self) -> int:
        """What the cache directory takes on the disk, the staging directory included.

        A walk takes its time: a file that goes meanwhile and the one that takes its room would both count. Of two walks
        what both have seen was there between them.
        """
        first, second = self._walk_cache(), self._walk_cache()
        return sum(min(first[file], second[file]) for file in first.keys() & second.keys())

    def _walk_cache(self) -> dict[tuple[str, int], int]:
        """(name, inode) -> bytes on the disk."""
        found = {}
        for path in self.path("cache_dir").rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    found[path.name, status.st_ino] = status.st_blocks * 512
        return found

    def mounts(self) -> list[tuple[str, str, str]]:
        """(dataset, mount id, device number) of all that is mounted below the mount directory, by the kernel's word."""
        mount_dir = f"{self.cluster.settings['mount_dir']}/"
        init = self.cluster.node(self.name).init_pid
        lines = [line.split(" ") for line in Path(f"/proc/{init}/mountinfo").read_text().splitlines()]
        return [
            (words[4].removeprefix(mount_dir), words[0], words[2]) for words in lines if words[4].startswith(mount_dir)
        ]

    def mounted(self, dataset: str) -> tuple[str, str]:
        """(mount id, device number) of the dataset; empty texts when it is not mounted."""
        found = [(mount_id, device) for name, mount_id, device in self.mounts() if name == dataset]
        return found[-1] if found else ("", "")

    def backing(self, dataset: str) -> str:
        """The file that the dataset's device reads, by the kernel's word; empty when it is not mounted."""
        device = self.mounted(dataset)[1]
        path = Path(f"/sys/dev/block/{device}/loop/backing_file")
        return path.read_text().removesuffix("\n") if device and path.exists() else ""

    def read(self, dataset: str) -> bytes:
        """Read the dataset's file as the node sees it."""
        return self.cluster.node(self.name).seen(f"{self.cluster.settings['mount_dir']}/{dataset}/data").read_bytes()

    def is_served_from_cache(self, dataset: str) -> bool:
        return Path(self.backing(dataset)).name.startswith(f"{dataset}@")

    def is_served_from_source(self, dataset: str) -> bool:
        return Path(self.backing(dataset)).name == f"{dataset}.squashfs"

    def copies(self, dataset: str) -> int:
        """How many copies the daemon has finished since the cluster began."""
        log = self.cluster.daemon_log(self.name)
        return sum(line.startswith(f"INFO staged dataset={dataset} ") for line in log.splitlines())

    def device_reads(self, dataset: str) -> int:
        """Reads that the dataset's device has served so far."""
        return int(Path(f"/sys/dev/block/{self.mounted(dataset)[1]}/stat").read_text().split()[0])

    def was_ever_pinned_by(self, job_id: int) -> bool:
        """Whether the ledger remembers a pin of the job's."""
        ledger = self.path("state_dir") / "ledger.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
            query = "SELECT 1 FROM events WHERE event = 'pinned' AND holder = ?"
            return database.execute(query, (f"job:{job_id}",)).fetchone() is not None

    def workers(self) -> list[str]:
        """Processes of the node that have a file in the staging directory open: whoever copies."""
        script = f"ls -l /proc/[0-9]*/fd/ 2>/dev/null | grep -F '{self.cluster.settings['cache_dir']}/.staging/'"
        found = self.cluster.run(["sh", "-c", script], node=self.name, check=False)
        return found.stdout.splitlines()

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `scratch-slurm` on the node as root."""
        env = {"SCRATCH_SLURM_CONFIG": str(self.cluster.layout.config)}
        return self.cluster.run(["scratch-slurm", *words], node=self.name, env=env, check=check)

    @contextlib.contextmanager
    def background(self, argv: Sequence[str], ready: Callable[[], object]) -> Iterator[None]:
        """Run a program on the node from when it is ready until the end of the block, and end it."""
        name, control = f"background-{argv[0]}", Control(self.cluster.layout.control_socket(self.name))
        self.cluster.spawn(name, argv, self.name)
        try:
            until(ready, f"{argv[0]} is ready")
            yield
        finally:
            control.end(name, signal.SIGTERM, SHORT_S)

    def hook(self, hook: str, job_id: int, datasets: str) -> int:
        """Run a Prolog or Epilog by hand as slurmd does; returns its exit code."""
        env = {"SLURM_JOB_ID": str(job_id), "SLURM_JOB_UID": "0", "SPANK_DATASETS": datasets}
        script = self.cluster.directory / f"{hook}.d" / "50-scratch-slurm"
        return self.cluster.run([str(script)], node=self.name, env=env, check=False).returncode

    def restart_daemon(self) -> None:
        self.cluster.stop_daemon(self.name)
        self.cluster.start_daemon(self.name)

    @contextlib.contextmanager
    def daemon_stopped(self) -> Iterator[None]:
        assert self.cluster.stop_daemon(self.name) == 0
        try:
            yield
        finally:
            self.cluster.start_daemon(self.name)

    @contextlib.contextmanager
    def own_config(self, text: str) -> Iterator[None]:
        """Give this node alone another configuration file; the daemon has to be restarted to see it."""
        mine = self.cluster.directory / f"config-{self.name}.yaml"
        mine.write_text(text)
        common = str(self.cluster.layout.config)
        self.cluster.run(["mount", "--bind", str(mine), common], node=self.name)
        try:
            yield
        finally:
            self.cluster.run(["umount", common], node=self.name)

    @contextlib.contextmanager
    def settings(self, changes: Mapping[str, Any]) -> Iterator[None]:
        """Let this node alone run with other settings, daemon and hooks."""
        with self.own_config(config_yaml(merge_settings(self.cluster.settings, changes))):
            self.restart_daemon()
            try:
                yield
            finally:
                self.cluster.stop_daemon(self.name)
        self.cluster.start_daemon(self.name)


Make = Callable[..., Dataset]
Nodes = Callable[[str], NodeView]
Gates = Callable[[], Gate]


def read_job_environment(output: str) -> dict[str, str]:
    """The SCRATCH_ variables that a job printed with `env`."""
    lines = [line.partition("=") for line in output.splitlines() if line.startswith("SCRATCH_")]
    return {name: value for name, _, value in lines}


def asked(cluster: LocalCluster) -> list[dict[str, str]]:
    """What the last job asked for on each node of `scribes`: the prolog's variables, none where no prolog ran."""
    found = []
    for node in cluster.nodes:
        path = cluster.layout.work_dir / f"asked.{node.name}"
        lines = path.read_text().splitlines() if path.exists() else []
        pairs = [line.removeprefix("SPANK_").partition("=") for line in lines]
        found.append({name: value for name, _, value in pairs})
        path.unlink(missing_ok=True)
    return found


@contextlib.contextmanager
def four_nodes(settings: Mapping[str, Any], *, daemons: bool = True) -> Iterator[LocalCluster]:
    """Run a cluster of four nodes, none of which is ever drained."""
    directory = Path(tempfile.mkdtemp(prefix="scratch-slurm-"))
    directory.chmod(0o755)
    # A requeued job has to wait until its old credential has expired: as short as Slurm takes it.
    slurm = {"AuthInfo": f"socket={directory}/munge/socket,cred_expire=5"}
    try:
        with LocalCluster(4, settings, directory, slurm=slurm, daemons=daemons) as running:
            yield running
            assert running.drained() == [], "no node was ever drained"
    finally:
        with contextlib.suppress(OSError):  # its files were to be kept
            directory.rmdir()


def ask_command(cluster: LocalCluster) -> str:
    """The head of a shell line of a job that asks the daemon: method, path and body follow."""
    program = cluster.layout.work_dir / "ask.py"
    program.write_text(ASK)
    program.chmod(0o644)
    return f"/usr/bin/python3 {program} {cluster.settings['run_dir']}/daemon.sock"


def set_right(cluster: LocalCluster) -> list[str]:
    """Bring a cluster back to rest after a test, whatever it left; returns what was not as it should be."""
    wrong = [f"{node.name} is {node.state}: {node.reason}" for node in cluster.drained()]
    jobs = cluster.run(["squeue", "--noheader", "--format=%i"]).stdout.split()
    if jobs:
        wrong.append(f"jobs still there: {', '.join(jobs)}")
        cluster.run(["scancel", *jobs], check=False)
        for job in jobs:
            with contextlib.suppress(ClusterError):
                cluster.wait_jobs(int(job.partition("_")[0]))
    for node in cluster.nodes:
        view = NodeView(cluster, node.name)
        if pins := view.pins():
            wrong.append(f"{node.name} has pins: {json.dumps(sorted(pins))}")
    return wrong
