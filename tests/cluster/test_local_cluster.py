"""The local cluster itself: it starts, it does what tests ask of it, and it never leaves anything behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.local_cluster import AlreadyRunsError, ClusterError, LocalCluster, kernel
from tests.local_cluster.claim import is_running

pytestmark = [pytest.mark.cluster, pytest.mark.root]

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "tests.local_cluster"]

WITH_BLOCK = """
import sys, time
from tests.local_cluster import LocalCluster
with LocalCluster(nodes=2, directory=sys.argv[1], daemons=False) as cluster:
    job = cluster.sbatch("setsid sleep 321 & sleep 321")
    cluster.wait_running(job)
    print("ready", flush=True)
    cluster.run(["srun", "--overlap", f"--jobid={job}", "sleep", "321"], timeout=99)
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[LocalCluster]:
    """Two nodes without node daemons, for tests that change nothing for good."""
    with LocalCluster(nodes=2, daemons=False, slurm_runs_hooks=True) as running:
        yield running


@pytest.fixture
def directory() -> Iterator[Path]:
    """A path for a cluster, short enough for sockets; checked to be gone with all that ran there."""
    path = Path(f"/tmp/scratch-slurm-test-{os.getpid()}-{time.monotonic_ns()}")
    yield path
    try:
        wait_until(lambda: leftovers(path) == [], 15, lambda: f"left: {leftovers(path)}")
    finally:
        if path.exists():
            subprocess.run([*COMMAND, "down", f"--dir={path}"], cwd=REPOSITORY, check=False)


def leftovers(directory: Path) -> list[str]:
    """Whatever on this machine belongs to a cluster in `directory`."""
    word = os.fsencode(directory)
    left = [str(directory)] if directory.exists() else []
    left += ["lock"] if is_running(directory) else []  # a process that just starts or ends has no words
    left += kernel.mounts_under(directory)
    left += [loop.name for loop in kernel.bound_loops() if str(directory) in loop.backing_file]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if word in text:
                left.append(f"process {entry.name}: {text[:80]!r}")
    return left


def wait_until(is_so: Callable[[], bool], timeout_s: float, message: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, message()
        time.sleep(0.005)


def start(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv,
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def test_every_node_has_its_own_host_name(pair: LocalCluster) -> None:
    found = pair.run(["srun", "-N2", "hostname"])
    assert sorted(found.stdout.split()) == ["n1", "n2"]


def test_nodes_share_paths_but_not_their_cache(pair: LocalCluster) -> None:
    cache_dir = Path(pair.settings["cache_dir"])
    pair.node("n1").path(cache_dir / "file").write_text("n1")
    found = pair.run(["srun", "-N2", "--label", "ls", str(cache_dir)])
    assert found.stdout.split() in (["0:", "file"], ["1:", "file"])


def test_a_job_sees_a_mount_made_while_it_runs(pair: LocalCluster) -> None:
    mount_dir = pair.settings["mount_dir"]
    job = pair.sbatch(f"until [ -e {mount_dir}/late/file ]; do sleep 0.05; done", "--nodelist=n2")
    pair.wait_running(job)
    steps = f"mkdir {mount_dir}/late && mount -t tmpfs none {mount_dir}/late && touch {mount_dir}/late/file"
    pair.run(["sh", "-c", steps], node="n2")
    assert pair.wait_job(job, timeout=20).state == "COMPLETED"
    assert pair.node("n2").seen(f"{mount_dir}/late/file").exists()
    assert not pair.node("n2").path(f"{mount_dir}/late/file").exists(), "the host sees no mount of a node"
    pair.run(["umount", f"{mount_dir}/late"], node="n2")


def test_a_user_submits_and_reads_the_output(pair: LocalCluster) -> None:
    job = pair.sbatch("id -un; exit 3", user="nobody")
    info = pair.wait_job(job)
    assert (info.state, info.exit_code) == ("FAILED", "3:0")
    assert pair.job_output(job) == "nobody\n"


def test_tasks_of_an_array_run_at_the_same_time(pair: LocalCluster) -> None:
    job = pair.sbatch("sleep 1", "--array=1-16")
    started = time.monotonic()
    assert {task.state for task in pair.wait_jobs(job, timeout=30)} == {"COMPLETED"}
    assert time.monotonic() - started < 10


def test_a_failing_prolog_drains_the_node(pair: LocalCluster) -> None:
    hook = pair.directory / "prolog.d" / "10-fails"
    hook.write_text("#!/bin/sh\n[ $SLURMD_NODENAME != n1 ]\n")
    hook.chmod(0o755)
    try:
        job = pair.sbatch("true", "--nodelist=n1")
        wait_until(lambda: bool(pair.drained()), 20, lambda: "no node was drained")
    finally:
        hook.unlink()
    assert [(node.name, node.reason) for node in pair.drained()] == [("n1", "Prolog error")]
    pair.run(["scancel", str(job)])
    pair.wait_job(job)
    pair.run(["scontrol", "update", "nodename=n1", "state=resume"])
    assert pair.drained() == []


def test_a_job_outlives_slurmd_and_slurmctld(pair: LocalCluster) -> None:
    job = pair.sbatch("sleep 3; echo done", "--nodelist=n2")
    pair.wait_running(job)
    wait_until(lambda: bool(pair.jobs(job)[0].output), 5, lambda: "no output file")
    time.sleep(0.3)  # the batch step has started only when its script runs
    pair.kill_slurmd("n2")
    pair.start_slurmd("n2")
    pair.restart_slurmctld()
    assert pair.wait_job(job).state == "COMPLETED"
    assert pair.job_output(job) == "done\n"


def test_a_crashed_node_comes_back_with_a_new_boot_id(pair: LocalCluster) -> None:
    node = pair.node("n1")
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    before = node.seen(boot_id).read_text()
    pair.run(["sh", "-c", "sleep 322 >/dev/null 2>&1 &"], node="n1")
    pair.crash_node("n1")
    pair.boot_node("n1")
    assert node.seen(boot_id).read_text() != before
    assert "sleep" not in pair.run(["cat", *processes(pair)], node="n1", check=False).stdout
    assert pair.run(["srun", "--nodelist=n1", "hostname"]).stdout == "n1\n"


def processes(pair: LocalCluster) -> list[str]:
    listed = pair.run(["sh", "-c", "echo /proc/[0-9]*/comm"], node="n1").stdout.split()
    return [path for path in listed if path != "/proc/self/comm"]


def test_a_command_that_takes_too_long_is_killed(pair: LocalCluster) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"longer than 0\.3 s"):
        pair.run(["srun", "sleep", "60"], timeout=0.3)
    assert time.monotonic() - started < 5


def test_a_failing_start_says_why_and_leaves_nothing(directory: Path) -> None:
    # The controller of 24.11 and later listens before it looks for the plugin: a node, or nobody, is first to say so.
    said = r"(?s)((slurmctld on head|slurmd on n\d): ended at its start|nodes not up).*select/nonsense"
    with pytest.raises(ClusterError, match=said):
        LocalCluster(nodes=2, directory=directory, slurm={"SelectType": "select/nonsense"}).start()


def test_a_directory_with_files_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(ClusterError, match="neither empty nor a cluster's"):
        LocalCluster(nodes=1, directory=tmp_path).start()
    assert (tmp_path / "precious").exists()


def test_an_exception_in_the_block_leaves_nothing(directory: Path) -> None:
    with pytest.raises(RuntimeError), LocalCluster(nodes=1, directory=directory, daemons=False) as running:
        image, cache = running.source_dir / "image", running.settings["cache_dir"]
        image.write_bytes(bytes(1 << 20))
        # One device with a file system path that only the node knows, and not auto-clear.
        running.run(["cp", str(image), cache], node="n1")
        running.run(["losetup", "--find", f"{cache}/image"], node="n1")
        running.sbatch("sleep 321")
        raise RuntimeError


def test_up_outlives_its_command_until_down(directory: Path) -> None:
    option = f"--dir={directory}"
    assert start(*COMMAND, "status", option).wait(20) == 3
    up = start(*COMMAND, "up", "--nodes=2", "--no-daemons", option)
    assert "export SLURM_CONF=" in up.communicate(timeout=60)[0]
    assert up.returncode == 0
    again = start(*COMMAND, "up", option)
    assert "runs there already" in again.communicate(timeout=20)[0]
    assert again.returncode == 1
    with pytest.raises(AlreadyRunsError):
        LocalCluster(directory=directory).start()
    environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}
    found = subprocess.run(["srun", "-N2", "hostname"], env=environment, capture_output=True, text=True, check=True)
    assert sorted(found.stdout.split()) == ["n1", "n2"], "a client outside of the cluster's namespaces works"
    LocalCluster.attach(directory).sbatch("sleep 321")
    assert start(*COMMAND, "down", option).wait(60) == 0
    assert leftovers(directory) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["config.yaml", "log/init-head.log", "munge/socket", "log/slurmctld.log"])
def test_a_signal_in_the_middle_of_the_start_leaves_nothing(
    directory: Path, moment: str, number: signal.Signals
) -> None:
    up = start(*COMMAND, "up", "--nodes=2", "--no-daemons", f"--dir={directory}")
    wait_until((directory / moment).exists, 20, lambda: f"{moment} did not appear")
    up.send_signal(number)
    output = up.communicate(timeout=60)[0]
    assert up.returncode != 0, output
    # A kill before there is an init leaves files, never processes: the next start clears them.
    if number == signal.SIGKILL and moment in ("config.yaml", "log/init-head.log"):
        wait_until(lambda: leftovers(directory) in ([], [str(directory)]), 15, lambda: "processes are left")
        with LocalCluster(nodes=1, directory=directory, daemons=False):
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_jobs_run_leaves_nothing(directory: Path, number: signal.Signals) -> None:
    block = start(sys.executable, "-c", WITH_BLOCK, str(directory))
    assert block.stdout is not None
    assert block.stdout.readline() == "ready\n"
    assert leftovers(directory) != []
    time.sleep(0.3)
    block.send_signal(number)
    block.communicate(timeout=60)
    assert block.returncode != 0


def test_what_a_killed_init_left_is_cleared_by_the_next_start(directory: Path) -> None:
    first = LocalCluster(nodes=1, directory=directory, daemons=False)
    first.start(detach=True)
    os.kill(first._head.init_pid(), signal.SIGKILL)
    wait_until(lambda: leftovers(directory) == [str(directory)], 15, lambda: f"{leftovers(directory)}")
    with LocalCluster(nodes=1, directory=directory, daemons=False) as second:
        assert second.run(["srun", "hostname"]).stdout == "n1\n"
