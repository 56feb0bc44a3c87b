"""What the administrator takes back, with the real daemon: pins of what never came, mounts but for those of jobs."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from scratch_slurm.cli.main import run
from scratch_slurm.domain.messages import DatasetState
from scratch_slurm.domain.pins import ADMINISTRATOR
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.images import in_child

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]


def cli(daemon: RunningDaemon, *arguments: str) -> int:
    return in_child(run, ["--config", str(daemon.folder / "config.yaml"), *arguments])


def pinned(daemon: RunningDaemon) -> list[tuple[str, str]]:
    with daemon.ledger() as ledger:
        return [(pin.dataset, pin.holder) for pin in ledger.pins()]


def pin(daemon: RunningDaemon, *names: str) -> None:
    with daemon.ledger() as ledger:
        ledger.pin(ADMINISTRATOR, names, uid=0)
    daemon.wait()


def unmount(daemon: RunningDaemon, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scratch_slurm.service.main", "--config", str(daemon.folder / "config.yaml")]
    return subprocess.run([*command, "--unmount", *more], capture_output=True, text=True, check=False)


# ---- evict


def test_a_pin_of_a_name_that_is_nowhere_is_taken_back(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        pin(daemon, "nowhere")
        assert cli(daemon, "evict", "nowhere") == 0
        assert pinned(daemon) == []
        assert cli(daemon, "evict", "nowhere") == 4, "there is nothing left to take back"


def test_a_pin_of_what_waits_for_room_is_taken_back_and_another_one_stays(folder: Path) -> None:
    daemon = RunningDaemon(folder, capacity="1 MB")
    make_version(daemon.source_dir, "large", file_bytes=3_000_000)
    make_version(daemon.source_dir, "small", file_bytes=100_000)
    with daemon:
        pin(daemon, "large", "small")
        daemon.until(lambda: daemon.is_cached("small"))
        assert daemon.dataset("large").problem
        assert cli(daemon, "evict", "large") == 0
        assert pinned(daemon) == [("small", ADMINISTRATOR)]
        daemon.until(lambda: daemon.state("large") is DatasetState.SOURCE)
        assert daemon.is_cached("small")


def test_a_pin_whose_image_left_the_source_is_taken_back(folder: Path) -> None:
    daemon = RunningDaemon(folder, capacity="1 MB")
    gone = make_version(daemon.source_dir, "gone", file_bytes=3_000_000)
    with daemon:
        pin(daemon, "gone")
        gone.image.unlink()
        assert cli(daemon, "evict", "gone") == 0
        assert pinned(daemon) == []


def test_a_name_that_is_neither_pinned_nor_cached_is_still_an_error(folder: Path) -> None:
    daemon = RunningDaemon(folder)
    make_version(daemon.source_dir, "coco")
    with daemon:
        assert cli(daemon, "evict", "coco") == 4


def test_preheat_of_what_nobody_can_tell_of_yet_is_not_said_to_be_missing(folder: Path) -> None:
    daemon = RunningDaemon(folder)
    daemon.source_dir.rmdir()
    with daemon:
        code = (
            "import sys; from scratch_slurm.cli.main import run;"
            f"sys.exit(run(['--config', {str(folder / 'config.yaml')!r}, 'preheat', 'coco']))"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert told.returncode == 4
        assert "dataset 'coco': not known yet" in told.stderr
        assert pinned(daemon) == []
        daemon.source_dir.mkdir()
        make_version(daemon.source_dir, "coco")
        daemon.until(lambda: daemon.is_mounted("coco"))
        assert cli(daemon, "preheat", "coco") == 0
        assert daemon.is_cached("coco")


# ---- scratch-slurmd --unmount


@pytest.fixture
def down(folder: Path) -> RunningDaemon:
    """A node whose daemon was stopped, with three mounted datasets. This machine's Slurm is none of its business."""
    daemon = RunningDaemon(folder, slurm={"features": False})
    for name in ("free", "held", "kept"):
        make_version(daemon.source_dir, name)
    with daemon:
        daemon.pin(7, "held")
        daemon.pin(8, "held")
        pin(daemon, "kept")
        daemon.until(lambda: daemon.is_cached("held", "kept"))
        daemon.until(lambda: daemon.is_mounted("free"))
        daemon.stop()
    return daemon


def mounted(daemon: RunningDaemon) -> set[str]:
    return {path.name for path in daemon.mount_dir.iterdir() if os.path.ismount(path)}


def test_unmount_leaves_and_names_what_jobs_pin(down: RunningDaemon) -> None:
    data = down.path("held").read_bytes()
    done = unmount(down)
    assert done.returncode == 6
    assert f"{down.mount_dir}/held: pinned by jobs 7, 8: left mounted" in done.stdout
    assert f"{down.mount_dir}/free: unmounted" in done.stdout
    assert "left mounted for jobs: held" in done.stderr
    assert "--force" in done.stderr
    assert mounted(down) == {"held"}, "the administrator's pin keeps a copy, not a mount"
    assert down.path("held").read_bytes() == data


def test_unmount_takes_the_rest_when_its_jobs_have_ended(down: RunningDaemon) -> None:
    assert unmount(down).returncode == 6
    for job_id in (7, 8):
        down.release(job_id)
    done = unmount(down)
    assert (done.returncode, done.stderr) == (0, "")
    assert mounted(down) == set()


def test_unmount_by_force_takes_all(down: RunningDaemon) -> None:
    done = unmount(down, "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert mounted(down) == set()


def test_pins_of_an_earlier_boot_keep_no_mount(down: RunningDaemon) -> None:
    with sqlite3.connect(down.folder / "state" / "ledger.sqlite") as db:
        db.execute("UPDATE pins SET boot_id = 'an earlier one' WHERE holder != ?", (ADMINISTRATOR,))
    db.close()
    assert unmount(down).returncode == 0
    assert mounted(down) == set()


@pytest.mark.parametrize("broken", [b"not a database at all" * 100, None], ids=["garbage", "a-directory"])
def test_pins_that_cannot_be_read_might_be_there(down: RunningDaemon, broken: bytes | None) -> None:
    ledger = down.folder / "state" / "ledger.sqlite"
    for path in ledger.parent.glob("ledger.sqlite*"):
        path.unlink()
    if broken is None:
        ledger.mkdir()
    else:
        ledger.write_bytes(broken)
    done = unmount(down)
    assert done.returncode == 6
    assert "whether a job pins it cannot be read" in done.stdout
    assert mounted(down) == {"free", "held", "kept"}
    assert unmount(down, "--force").returncode == 0
    assert mounted(down) == set()


def test_without_a_ledger_nothing_is_pinned(down: RunningDaemon) -> None:
    for path in (down.folder / "state").glob("ledger.sqlite*"):
        path.unlink()
    assert unmount(down).returncode == 0
    assert mounted(down) == set()


def test_force_is_for_unmount_alone(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scratch_slurm.service.main", "--force"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--force goes with --unmount" in done.stderr


def test_an_eviction_as_json_tells_what_was_freed(folder: Path, tmp_path: Path) -> None:
    daemon = RunningDaemon(folder)
    version = make_version(daemon.source_dir, "coco")
    with daemon:
        pin(daemon, "coco", "nowhere")
        daemon.until(lambda: daemon.is_cached("coco"))
        out = folder / "out.json"
        code = (
            "import sys; from scratch_slurm.cli.main import run;"
            f"sys.exit(run(['--config', {str(folder / 'config.yaml')!r}, 'evict', '--json', 'coco', 'nowhere']))"
        )
        with out.open("w") as file:
            subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    freed = {one["dataset"]: one["freed_bytes"] for one in json.loads(out.read_text())["evicted"]}
    assert freed == {"coco": version.size_bytes, "nowhere": 0}
    assert not [path for path in Path(daemon.cache_dir).iterdir() if path.name.startswith("coco@")]
