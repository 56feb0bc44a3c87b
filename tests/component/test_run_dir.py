"""run_dir is a directory that cleaners know: without it the daemon is not deaf for long, and stays alone."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]


def remove_all(run_dir) -> None:
    shutil.rmtree(run_dir)


def remove_socket(run_dir) -> None:
    (run_dir / "daemon.sock").unlink()


def remove_root_socket(run_dir) -> None:
    (run_dir / "root.sock").unlink()


def replace_socket(run_dir) -> None:
    (run_dir / "daemon.sock").unlink()
    (run_dir / "daemon.sock").touch()


@pytest.mark.parametrize("take", [remove_all, remove_socket, remove_root_socket, replace_socket])
def test_the_daemon_is_heard_again_after_its_run_dir_or_a_socket_was_removed(
    folder: Path, take: Callable[..., Any]
) -> None:
    with RunningDaemon(folder) as daemon:
        make_version(daemon.source_dir, "coco", 1, file_bytes=50_000)
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        take(daemon.run_dir)
        daemon.until(lambda: daemon.logged("run_dir made again"))
        daemon.until(lambda: daemon.is_cached("coco"))
        assert (daemon.run_dir / "root.sock").stat().st_mode & 0o777 == 0o600
        assert (daemon.run_dir / "jobs").is_dir() and (daemon.run_dir / "hook.json").exists()
        daemon.stop()


def test_no_second_daemon_starts_when_the_lock_in_run_dir_is_gone(folder: Path) -> None:
    with RunningDaemon(folder, interval="30") as daemon:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(daemon.run_dir)
        second = subprocess.run(
            [sys.executable, "-m", "scratch_slurm.service.main", "--config", folder / "config.yaml"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "runs on this node already" in second.stderr
        assert second.returncode == 5
