"""The command line against a fake daemon, a real ledger, real images and real mounts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.cli.main import run
from scratch_slurm.domain.errors import PinnedError
from scratch_slurm.domain.messages import DatasetState, DatasetStatus, NodeStatus
from scratch_slurm.domain.model import ADMINISTRATOR
from scratch_slurm.node.kernel import loopdev, mounts
from scratch_slurm.node.ledger.ledger import Ledger, read_boot_id
from tests.kit.answering_daemon import GB, AnsweringDaemon
from tests.kit.images import clean_up, make_image, opened
from tests.kit.people import as_nobody, reachable_directory

root = pytest.mark.root
REPOSITORY = Path(__file__).parents[2]

IMAGENET = DatasetStatus("imagenet", DatasetState.CACHED, size_bytes=10 * GB, cached_bytes=10 * GB)
COCO = DatasetStatus("coco", DatasetState.SOURCE, size_bytes=2 * GB)


class Node:
    """The directories and the configuration of one node, and its ledger."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        self.source, self.cache, self.mounts = folder / "source", folder / "cache", folder / "datasets"
        for path in (self.source, self.cache, self.mounts):
            path.mkdir()
        (self.cache / ".staging").mkdir()
        self.config = folder / "config.yaml"
        self.config.write_text(
            f"source_dir: {self.source}\ncache_dir: {self.cache}\nmount_dir: {self.mounts}\n"
            f"state_dir: {folder}/state\nrun_dir: {folder}/run\n"
        )
        self.config.chmod(0o644)
        self.socket = folder / "run" / "daemon.sock"

    def run(self, *arguments: str) -> int:
        return run(["--config", str(self.config), *arguments])

    def ledger(self) -> Ledger:
        return Ledger(self.dir / "state" / "ledger.sqlite", boot_id=read_boot_id(), now=time.time)

    def pinned(self) -> list[tuple[str, str]]:
        with self.ledger() as ledger:
            return [(pin.dataset, pin.holder) for pin in ledger.pins()]


@pytest.fixture
def node(tmp_path):
    yield Node(tmp_path)
    if os.geteuid() == 0:
        clean_up(tmp_path)


@pytest.fixture
def daemon(node):
    with AnsweringDaemon(IMAGENET, COCO).listening(node.socket) as fake:
        yield fake


def command(*arguments: object, **options):
    code = "from scratch_slurm.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, **options)


# ---- status, jobs


def test_status_shows_every_dataset(node, daemon, capsys) -> None:
    assert node.run("status") == 0
    out = capsys.readouterr().out
    assert "imagenet" in out
    assert "coco" in out
    assert "cached" in out


def test_status_of_named_datasets_leaves_out_the_others(node, daemon, capsys) -> None:
    assert node.run("status", "coco") == 0
    out = capsys.readouterr().out
    assert "coco" in out
    assert "imagenet" not in out


def test_status_as_json_has_every_field_of_the_message(node, daemon, capsys) -> None:
    assert node.run("status", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["daemon"] is True
    assert set(told) == {"daemon", *NodeStatus.__struct_fields__}
    assert set(told["datasets"][1]) == set(DatasetStatus.__struct_fields__)


def test_an_unknown_dataset_is_an_error_with_the_nearest_names(node, daemon, capsys) -> None:
    assert node.run("status", "imagnet") == 4
    assert "did you mean imagenet?" in capsys.readouterr().err


def test_with_json_an_error_is_one_object_on_standard_output(node, daemon, capsys) -> None:
    assert node.run("status", "--json", "imagnet") == 4
    told = json.loads(capsys.readouterr().out)
    assert told["error"] == "NotFoundError"
    assert set(told) == {"error", "message", "hint"}


@pytest.mark.parametrize("name", ["../x", "-", "a b", "", "x" * 65, "a\nb"])
def test_names_that_are_none_are_refused_before_anybody_is_asked(node, daemon, capsys, name) -> None:
    assert node.run("status", "--", name) == 2
    assert daemon.asked == []


def test_a_daemon_that_is_down_is_said_on_standard_error(node, capsys) -> None:
    assert node.run("status") == 5
    told = capsys.readouterr()
    assert "daemon does not run" in told.err
    assert "no datasets" in told.out


def test_watching_draws_again_until_ctrl_c(node, daemon) -> None:
    master, terminal = os.openpty()
    process = command("--config", node.config, "status", "--watch", stdout=terminal, stderr=subprocess.PIPE)
    os.close(terminal)
    wait_for(lambda: len(daemon.asked) >= 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    os.close(master)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_watching_as_json_is_wrong_usage(node, daemon) -> None:
    assert node.run("status", "--watch", "--json") == 2


@root
def test_without_the_daemon_status_tells_mounts_cached_files_and_pins(node, capsys) -> None:
    images = {}
    for name, folder in (("cached", node.cache), ("slow", node.source)):
        images[name] = folder / f"{name}.squashfs"
        make_image(images[name])
    (node.cache / f"waiting@{'0' * 16}.image").write_bytes(b"x" * 4096)
    with node.ledger() as ledger:
        ledger.pin("job:7", ["slow", "nowhere"], uid=1000)
    with contextlib.ExitStack() as devices:
        for name, image in images.items():
            mounts.ensure_mount_point(node.mounts / name)
            fd = devices.enter_context(opened(image))
            device = devices.enter_context(loopdev.attach(fd, tag="test", direct_io=False))
            mounts.mount_image(device.path, node.mounts / name, "squashfs")
        assert node.run("status", "--json") == 5
        told = json.loads(capsys.readouterr().out)
    assert told["daemon"] is False
    assert told["untold"] == []
    found = {one["name"]: one for one in told["datasets"]}
    assert {name: one["state"] for name, one in found.items()} == {
        "cached": "cached",
        "slow": "source",
        "waiting": "unmounted",
        "nowhere": "unknown",
    }
    assert found["slow"]["holders"] == ["job:7"]
    assert found["slow"]["size_bytes"] == images["slow"].stat().st_size
    assert found["waiting"]["cached_bytes"] == 4096


@root
def test_without_the_daemon_a_user_is_told_what_only_root_may_read(capsys) -> None:
    with reachable_directory() as folder:
        node = Node(folder)
        node.cache.chmod(0o700)
        with as_nobody():
            assert node.run("status", "--json") == 5
    told = json.loads(capsys.readouterr().out)
    assert told["used_bytes"] is None
    assert [reason for reason in told["untold"] if "only root" in reason]
    assert [reason for reason in told["untold"] if "Permission denied" in reason]


@root
def test_jobs_without_the_daemon_is_an_error_for_a_user(capsys) -> None:
    with reachable_directory() as folder:
        node = Node(folder)
        with as_nobody():
            assert node.run("jobs") == 5
    assert "daemon does not run" in capsys.readouterr().err


@root
def test_jobs_tells_who_pins_since_when(node, daemon, capsys) -> None:
    daemon.set("imagenet", use_count=1, holders=("job:7",))
    with node.ledger() as ledger:
        ledger.pin("job:7", ["imagenet"], uid=1234)
    assert node.run("jobs", "--json") == 0
    (holder,) = json.loads(capsys.readouterr().out)["holders"]
    assert (holder["job_id"], holder["uid"]) == (7, 1234)
    assert holder["datasets"][0]["name"] == "imagenet"
    assert time.time() - holder["since_at"] < 60


@root
def test_jobs_without_the_daemon_come_from_the_ledger(node, capsys) -> None:
    with node.ledger() as ledger:
        ledger.pin("job:7", ["imagenet"], uid=1234)
    assert node.run("jobs") == 5
    assert "job 7" in capsys.readouterr().out


@root
def test_reading_makes_no_ledger(node, capsys) -> None:
    assert node.run("jobs") == 5
    assert node.run("events") == 0
    assert not (node.dir / "state").exists()


# ---- preheat, evict, events


@root
def test_preheat_pins_and_waits_until_cached(node, daemon, capsys) -> None:
    steps: Iterator[dict[str, Any]] = iter(
        [{}, {"state": DatasetState.STAGING, "staged_bytes": GB}, {}, {"state": DatasetState.CACHED}]
    )
    daemon.on_wait = lambda _request: daemon.set("coco", **next(steps, {}))
    assert node.run("preheat", "coco") == 0
    assert node.pinned() == [("coco", ADMINISTRATOR)]
    told = capsys.readouterr()
    assert told.out == "coco: cached\n"
    assert "coco: staging 50 %" in told.err


@root
def test_preheat_without_waiting_returns_with_the_state(node, daemon, capsys) -> None:
    assert node.run("preheat", "--no-wait", "coco") == 0
    assert node.pinned() == [("coco", ADMINISTRATOR)]
    assert capsys.readouterr().out == "coco: source\n"


@root
def test_preheat_of_an_unknown_name_pins_nothing(node, daemon, capsys) -> None:
    assert node.run("preheat", "--no-wait", "coco", "imagenett") == 4
    assert node.pinned() == []
    assert "did you mean imagenet?" in capsys.readouterr().err


@root
def test_preheat_pins_although_the_daemon_is_down_and_says_so(node, capsys) -> None:
    assert node.run("preheat", "coco") == 5
    assert node.pinned() == [("coco", ADMINISTRATOR)]
    assert "pinned all the same: coco" in capsys.readouterr().err


@root
def test_preheat_of_what_does_not_fit_ends_with_the_reason_and_keeps_the_pin(node, daemon, capsys) -> None:
    daemon.set("coco", size_bytes=1000 * GB, state=DatasetState.QUEUED, problem="does not fit: 1.0 TB")
    assert node.run("preheat", "coco") == 7
    assert node.pinned() == [("coco", ADMINISTRATOR)]
    assert "does not fit: 1.0 TB" in capsys.readouterr().err


@root
def test_ctrl_c_while_preheating_keeps_the_pin(node, daemon) -> None:
    process = command("--config", node.config, "preheat", "coco", stderr=subprocess.PIPE)
    wait_for(lambda: len(daemon.asked) >= 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"the pins stay" in err
    assert b"Traceback" not in err
    assert node.pinned() == [("coco", ADMINISTRATOR)]


@root
def test_evict_releases_the_administrators_pin_and_frees(node, daemon, capsys) -> None:
    with node.ledger() as ledger:
        ledger.pin(ADMINISTRATOR, ["imagenet", "coco"], uid=0)
    assert node.run("evict", "imagenet") == 0
    assert node.pinned() == [("coco", ADMINISTRATOR)]
    assert capsys.readouterr().out == "imagenet: freed 10.0 GB\n"


@root
def test_evict_of_what_a_job_pins_names_the_job_and_releases_nothing(node, daemon, capsys) -> None:
    daemon.set("coco", use_count=1, holders=(ADMINISTRATOR, "job:7"))
    with node.ledger() as ledger:
        ledger.pin(ADMINISTRATOR, ["imagenet", "coco"], uid=0)
    assert node.run("evict", "imagenet", "coco") == 6
    assert "coco: pinned by job 7" in capsys.readouterr().err
    assert len(node.pinned()) == 2
    assert not [asked for asked in daemon.asked if "evict" in asked]


@root
def test_a_job_that_pins_meanwhile_gets_the_administrators_pin_put_back(node, daemon, capsys) -> None:
    def refuse(dataset):
        if dataset == "coco":
            raise PinnedError("coco: pinned by job 8")

    daemon.on_evict = refuse
    with node.ledger() as ledger:
        ledger.pin(ADMINISTRATOR, ["imagenet", "coco"], uid=0)
    assert node.run("evict", "imagenet", "coco") == 6
    assert node.pinned() == [("coco", ADMINISTRATOR)]
    assert "imagenet: freed 10.0 GB" in capsys.readouterr().err


@root
def test_evict_without_the_daemon_releases_nothing_that_is_cached(node, capsys) -> None:
    (node.cache / f"coco@{'0' * 16}.image").write_bytes(b"x" * 4096)
    with node.ledger() as ledger:
        ledger.pin(ADMINISTRATOR, ["coco", "nowhere"], uid=0)
    for names in (["coco"], ["nowhere", "coco"], ["nowhere", "never-pinned"]):
        assert node.run("evict", *names) == 5
        assert len(node.pinned()) == 2


@root
def test_evict_without_the_daemon_takes_back_a_preheat_that_never_came(node, capsys) -> None:
    assert node.run("preheat", "imagenett") == 5
    assert node.run("evict", "imagenett") == 0
    assert node.pinned() == []
    assert capsys.readouterr().out == "imagenett: let go; it was not cached\n"


@root
def test_evict_without_the_daemon_and_with_a_cache_that_cannot_be_read_releases_nothing(node) -> None:
    assert node.run("preheat", "coco") == 5
    (node.cache / ".staging").rmdir()
    node.cache.rmdir()
    assert node.run("evict", "coco") == 5
    assert node.pinned() == [("coco", ADMINISTRATOR)]


@root
def test_evict_of_an_unknown_name_is_an_error(node, daemon, capsys) -> None:
    assert node.run("evict", "imagenett") == 4
    assert "did you mean imagenet?" in capsys.readouterr().err


@root
def test_a_dataset_that_left_the_source_can_still_be_let_go(node, daemon) -> None:
    daemon.datasets["old"] = DatasetStatus("old", DatasetState.UNKNOWN, holders=(ADMINISTRATOR,))
    with node.ledger() as ledger:
        ledger.pin(ADMINISTRATOR, ["old"], uid=0)
    assert node.run("evict", "old") == 0
    assert node.pinned() == []


@root
def test_events_are_told_the_newest_last(node, capsys) -> None:
    with node.ledger() as ledger:
        for number in range(5):
            ledger.record("evicted", dataset=f"d{number}", detail="room \x1b[2J for another")
    assert node.run("events", "--limit", "2") == 0
    out = capsys.readouterr().out
    assert out.index("d3") < out.index("d4")
    assert "d2" not in out
    assert "\x1b" not in out
    assert node.run("events", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["events"]) == 5


@root
@pytest.mark.parametrize("arguments", [("preheat", "coco"), ("evict", "coco"), ("events",)])
def test_what_needs_root_is_denied_to_others(node, daemon, capsys, arguments) -> None:
    with as_nobody():
        assert node.run(*arguments) == 11
    assert f"{arguments[0]}: only root" in capsys.readouterr().err
    assert daemon.asked == []


# ---- the program


def test_no_configuration_is_an_error_that_names_the_file(tmp_path, capsys) -> None:
    assert run(["--config", str(tmp_path / "none.yaml"), "status"]) == 3
    assert "none.yaml" in capsys.readouterr().err


def test_an_unknown_command_is_answered_with_the_nearest(capsys) -> None:
    assert run(["stats"]) == 2
    assert "did you mean status?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["-h"], ["status", "-h"], ["--version"], ["build", "--help"]])
def test_help_and_version(arguments, capsys) -> None:
    assert run(arguments) == 0
    assert capsys.readouterr().out


def test_wrong_usage_is_exit_code_2(capsys) -> None:
    assert run(["build"]) == 2
    assert run(["events", "--limit", "0"]) == 2
    assert run(["status", "--frobnicate"]) == 2


def test_a_closed_pipe_ends_quietly(node, daemon) -> None:
    for number in range(3000):
        daemon.datasets[f"d{number}"] = DatasetStatus(f"d{number}", DatasetState.SOURCE)
    for more in ([], ["--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        process = command("--config", node.config, "status", *more, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 141
        assert err == b""


def test_the_help_loads_neither_tables_nor_messages_nor_yaml() -> None:
    code = "import sys; from scratch_slurm.cli import main; main.run(['-h']); print(*sys.modules, file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"rich", "yaml", "blake3", "aiohttp", "sqlite3", "asyncio"} & set(process.stderr.split())


def wait_for(condition, timeout_s=20.0):
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "did not happen in time"
        time.sleep(0.01)
