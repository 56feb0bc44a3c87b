"""The daemon is down and a dataset is not mounted: the prolog mounts it, and the next daemon takes it over."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scratch_slurm.domain.config import build_config
from scratch_slurm.node.hookconfig import HookConfig
from scratch_slurm.node.kernel.mountinfo import read_stacks
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.images import backings_below, wait_until
from tests.kit.sources import SlowSource, why_not
from tests.kit.tracing import need_strace

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

HOOK = Path(sys.executable).parent / "scratch-slurm-hook"


@pytest.fixture
def node(folder):
    """A node whose daemon has run and ended; nothing is mounted."""
    folder.chmod(0o755)
    daemon = RunningDaemon(folder)
    with daemon:
        daemon.stop()
        yield daemon


def command(daemon, job_id, datasets, **environ):
    env = {
        "PATH": os.environ["PATH"],
        "SLURM_JOB_ID": str(job_id),
        "SLURM_JOB_UID": "0",
        "SPANK_DATASETS": datasets,
        "SCRATCH_SLURM_CONFIG": str(daemon.folder / "config.yaml"),
        "SCRATCH_SLURM_RUN_DIR": str(daemon.run_dir),
        **environ,
    }
    return {"args": [str(HOOK), "prolog"], "env": env}


def prolog(daemon, job_id, datasets, **environ):
    """Run a prolog; returns the word that it leaves for the job."""
    assert subprocess.run(**command(daemon, job_id, datasets, **environ), check=False).returncode == 0
    return (daemon.run_dir / "jobs" / str(job_id)).read_text()


def devices(daemon):
    return {name: [mount.device for mount in stack] for name, stack in read_stacks(daemon.mount_dir).items()}


def test_a_job_finds_its_path_and_the_next_daemon_takes_it_over(node) -> None:
    coco, other = make_version(node.source_dir, "coco"), make_version(node.source_dir, "other")
    word = prolog(node, 1, "coco,other")
    assert "SCRATCH_DATASETS_STATE=coco:source,other:source" in word
    assert (node.read("coco"), node.read("other")) == (coco.data, other.data)
    before = devices(node)
    node.start()
    node.until(lambda: node.is_cached("coco", "other"), "what the job pinned is cached")
    assert devices(node) == before, "the same mounts go on"
    assert not node.logged("mounted dataset=")


def test_what_is_mounted_is_left_alone(node) -> None:
    make_version(node.source_dir, "coco")
    prolog(node, 1, "coco")
    before = devices(node)
    make_version(node.source_dir, "coco", 2)
    assert "coco:source" in prolog(node, 2, "coco")
    assert devices(node) == before


def test_what_cannot_be_mounted_is_said_and_the_rest_is(node) -> None:
    coco = make_version(node.source_dir, "coco")
    (node.source_dir / "bad.squashfs").write_bytes(b"no image" * 1000)
    private = make_version(node.source_dir, "private")
    private.image.chmod(0o640)  # its root directory is open to all
    stranger = make_version(node.source_dir, "stranger")
    os.chown(stranger.image, 12345, 12345)
    word = prolog(node, 1, "bad,coco,nosuch,private,stranger")
    assert node.read("coco") == coco.data
    assert sorted(devices(node)) == ["coco"]
    messages = [line for line in word.splitlines() if line.startswith("message=")]
    for name, why in {
        "bad": "is not a squashfs image",
        "nosuch": f"no such dataset in {node.source_dir}",
        "private": "lets in everybody",
        "stranger": "belongs to user 12345",
    }.items():
        assert any(f"message={name}: " in line and why in line for line in messages), (name, messages)


def test_a_private_dataset_is_mounted_behind_its_gate(node, folder) -> None:
    (folder / "tree").mkdir(mode=0o750)
    (folder / "tree/data").write_text("secret")
    image = node.source_dir / "scans.squashfs"
    subprocess.run(["mksquashfs", folder / "tree", image, "-quiet", "-no-progress"], check=True, capture_output=True)
    image.chmod(0o640)
    assert "scans:source" in prolog(node, 1, "scans")
    assert (node.mount_dir / "scans").stat().st_mode & 0o777 == 0o750


def test_with_a_configuration_that_became_wrong_the_last_good_values_serve(node) -> None:
    coco = make_version(node.source_dir, "coco")
    (node.folder / "config.yaml").write_text("source_dir: [")
    assert "coco:source" in prolog(node, 1, "coco")
    assert node.read("coco") == coco.data


def test_nothing_is_mounted_beside_a_daemon_that_gives_no_answer(node) -> None:
    make_version(node.source_dir, "coco")
    with (node.run_dir / "daemon.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        word = prolog(node, 1, "coco")
    assert "a daemon that gives no answer sees to it" in word
    assert devices(node) == {}


def test_a_daemon_that_begins_waits_for_a_prolog_that_mounts(node) -> None:
    make_version(node.source_dir, "coco")
    with (node.folder / "state/mounting.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arguments = [sys.executable, "-m", "scratch_slurm.service.main", "--config", str(node.folder / "config.yaml")]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as daemon:
            try:
                # It has its own lock, so it is past the point where it would mount if it did not wait.
                wait_until(lambda: is_locked(node.run_dir / "daemon.lock"), timeout_s=30)
                assert not (node.run_dir / "daemon.sock").exists() or devices(node) == {}
                fcntl.flock(lock, fcntl.LOCK_UN)
                wait_until(lambda: "coco" in devices(node), timeout_s=30)
            finally:
                daemon.terminate()


def is_locked(path):
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def test_prologs_at_the_same_moment_mount_once(node) -> None:
    make_version(node.source_dir, "coco")
    running = [subprocess.Popen(**command(node, job_id, "coco")) for job_id in (1, 2, 3)]
    assert [each.wait(60) for each in running] == [0, 0, 0]
    assert [len(stack) for stack in devices(node).values()] == [1]
    for job_id in (1, 2, 3):
        word = (node.run_dir / "jobs" / str(job_id)).read_text()
        assert "coco:source" in word, word


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_source_that_hangs_is_left_within_the_limit(folder) -> None:
    folder.chmod(0o755)
    (folder / "real").mkdir()
    make_version(folder / "real", "coco")
    daemon = RunningDaemon(folder, source_timeout="2")
    with SlowSource(folder / "real", folder / "source") as source, daemon:
        daemon.stop()
        subprocess.run(["umount", daemon.mount_dir / "coco"], check=False)
        source.set(hang=True)
        began = time.monotonic()
        word = prolog(daemon, 1, "coco")
        assert time.monotonic() - began < 20
        assert "the source gives no answer" in word
        assert devices(daemon) == {}
        source.set(hang=False)
        wait_until(lambda: not backings_below(folder))


@pytest.mark.parametrize("call", ["clone,clone3,vfork", "flock", "fsmount", "move_mount", "mkdir"])
def test_killed_at_a_system_call_it_leaves_a_mount_or_none_and_the_next_daemon_serves(node, call) -> None:
    need_strace()
    coco = make_version(node.source_dir, "coco")
    hook = command(node, 1, "coco")
    calls = call.split(",")
    inject = [option for each in calls for option in ("-e", f"inject={each}:signal=KILL:when=1")]
    arguments = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", *inject, *hook["args"]]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(arguments, env=hook["env"], check=False, timeout=60)
    assert all(len(stack) == 1 for stack in devices(node).values())
    node.start()
    node.until(lambda: node.is_mounted("coco"))
    assert node.read("coco") == coco.data
    assert len(devices(node)["coco"]) == 1
    node.until(lambda: len(backings_below(node.folder)) == 1)


def test_a_prolog_killed_while_it_waits_for_its_turn_mounts_nothing(node) -> None:
    make_version(node.source_dir, "coco")
    with (node.folder / "state/mounting.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hook = subprocess.Popen(**command(node, 1, "coco"))
        wait_until((node.run_dir / "jobs/1").exists, timeout_s=30)
        hook.send_signal(signal.SIGKILL)
        hook.wait()
    assert devices(node) == {}
    assert "cut short" in (node.run_dir / "jobs/1").read_text()


def test_hooks_and_daemon_agree_on_the_locks() -> None:
    config = build_config({"source_dir": "/s", "cache_dir": "/c"}, origin="test", host_name="n1")
    hook = HookConfig(str(config.mount_dir), str(config.run_dir), str(config.state_dir), 10.0, 600.0)
    assert (hook.lock_path, hook.mounting_lock_path) == (str(config.lock_path), str(config.mounting_lock_path))
