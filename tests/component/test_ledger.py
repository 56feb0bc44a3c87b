import contextlib
import itertools
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_slurm.domain.errors import LedgerError
from scratch_slurm.domain.model import ADMINISTRATOR, job_holder
from scratch_slurm.node.ledger.ledger import EVENTS_KEPT, OTHER_EVENTS_KEPT, Ledger, read_boot_id
from tests.kit import tracing

BOOT = "boot-1"
ROOT = Path(__file__).parents[2]
DISK_CALLS = "pwrite64,fdatasync,ftruncate,unlink,fchmod"

# A process of its own that does things to the ledger at argv[1]; `ledger` and `arguments` are what it has.
PROLOGUE = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from scratch_slurm.node.ledger.ledger import Ledger
arguments = sys.argv[2:]
def open_ledger():
    return Ledger(Path(sys.argv[1]), boot_id={BOOT!r}, now=time.time)
"""


def command(script: str, path: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-c", PROLOGUE + script, str(path), *map(str, arguments)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def clock():
    return itertools.count(1000).__next__


@pytest.fixture
def ledger(path, clock):
    with Ledger(path, boot_id=BOOT, now=clock, busy_timeout_s=0.2) as opened:
        yield opened


def on_boot(path, boot_id):
    return Ledger(path, boot_id=boot_id, now=time.time)


def held(ledger):
    return [(pin.holder, pin.dataset) for pin in ledger.pins()]


def files(path):
    return sorted(entry.name for entry in path.parent.iterdir())


def test_pins_are_in_the_order_of_asking(ledger) -> None:
    ledger.pin("job:2", ["coco", "audio"], uid=1000)
    ledger.pin("job:1", ["imagenet"], uid=1001)
    assert held(ledger) == [("job:2", "coco"), ("job:2", "audio"), ("job:1", "imagenet")]
    assert [(pin.uid, pin.job_id) for pin in ledger.pins()] == [(1000, 2), (1000, 2), (1001, 1)]


def test_the_order_of_asking_is_kept_by_a_clock_that_jumps_back_and_forth(path) -> None:
    wall = iter([2e9, 1.0, 1e9])
    with Ledger(path, boot_id=BOOT, now=lambda: next(wall, 5.0)) as ledger:
        for holder in ("job:9", "job:1", "job:5"):
            ledger.pin(holder, ["coco"], uid=1)
        assert [pin.holder for pin in ledger.pins()] == ["job:9", "job:1", "job:5"]


def test_the_age_of_a_jobs_pin_is_told_by_the_clock_of_the_boot(path) -> None:
    with Ledger(path, boot_id=BOOT, now=lambda: 3e9, monotonic=lambda: 77.0) as ledger:
        ledger.pin("job:1", ["coco"], uid=1)
        ledger.pin(ADMINISTRATOR, ["coco"], uid=0)
        assert [(pin.asked_at, pin.asked_monotonic_s) for pin in ledger.pins()] == [(3e9, 77.0), (3e9, 0.0)]


def test_a_ledger_of_an_earlier_release_keeps_its_pins_and_takes_new_ones(path) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(
            """
            PRAGMA journal_mode = WAL;
            CREATE TABLE pins (dataset TEXT NOT NULL, holder TEXT NOT NULL, boot_id TEXT NOT NULL,
                uid INTEGER NOT NULL, asked_at REAL NOT NULL, PRIMARY KEY (holder, dataset));
            CREATE INDEX pins_by_dataset ON pins (dataset);
            CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL NOT NULL, event TEXT NOT NULL,
                dataset TEXT NOT NULL, holder TEXT NOT NULL, detail TEXT NOT NULL);
            PRAGMA user_version = 1;
            """
        )
        database.execute("INSERT INTO pins VALUES ('coco', 'job:1', ?, 1000, 5.0)", (BOOT,))
        database.commit()
    with Ledger(path, boot_id=BOOT, now=lambda: 6.0, monotonic=lambda: 7.0) as ledger:
        assert held(ledger) == [("job:1", "coco")]
        ledger.pin("job:2", ["coco"], uid=1000)
        assert [pin.asked_monotonic_s for pin in ledger.pins()] == [0.0, 7.0]
        assert [event.event for event in ledger.events(9)] == ["pinned"]  # nothing was lost


@pytest.mark.parametrize("table", ["pins", "events"])
def test_a_table_that_was_dropped_is_made_again_and_that_is_told(ledger, path, table) -> None:
    ledger.pin("job:1", ["coco"], uid=1)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"DROP TABLE {table}")
    ledger.pin("job:2", ["audio"], uid=1)
    assert held(ledger) == ([("job:2", "audio")] if table == "pins" else [("job:1", "coco"), ("job:2", "audio")])
    assert ("ledger-mended", f"made again: {table}") in [(each.event, each.detail) for each in ledger.events(9)]


def test_a_ledger_that_is_opened_later_is_used_as_soon_as_it_can_be(path) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    os.mkfifo(path)
    with Ledger(path, boot_id=BOOT, now=lambda: 1.0, later=True) as ledger:
        with pytest.raises(LedgerError):
            ledger.pins()
        path.unlink()
        ledger.pin("job:1", ["coco"], uid=1)
        assert held(ledger) == [("job:1", "coco")]


def test_pinning_again_changes_nothing(ledger) -> None:
    ledger.pin("job:1", ["coco"], uid=1000)
    before = ledger.pins()
    ledger.pin("job:2", ["coco"], uid=1000)
    ledger.pin("job:1", ["coco", "coco"], uid=1000)
    assert ledger.pins()[:1] == before
    assert held(ledger) == [("job:1", "coco"), ("job:2", "coco")]


def test_releasing_takes_what_is_there_and_no_more(ledger) -> None:
    ledger.pin("job:1", ["b", "a", "c"], uid=1000)
    ledger.pin("job:2", ["a"], uid=1000)
    assert ledger.release("job:1", ["c", "never-pinned"]) == ("c",)
    assert ledger.release("job:1") == ("a", "b")
    assert ledger.release("job:1") == ()
    assert ledger.release("job:99", ["a"]) == ()
    assert held(ledger) == [("job:2", "a")]


def test_nothing_of_a_failing_call_stays(ledger) -> None:
    with pytest.raises(LedgerError):
        ledger.pin("job:1", ["coco", object()], uid=1000)
    assert ledger.pins() == []
    assert ledger.events(9) == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["pin", "release", "release_some", "reboot"]),
        st.sampled_from([ADMINISTRATOR, "job:1", "job:2", "job:3"]),
        st.lists(st.sampled_from("abcd"), max_size=3),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_the_use_count_is_the_number_of_jobs_that_pin_whatever_was_done(steps) -> None:
    """The model is a set of (holder, dataset): no count to leak or to go negative."""
    wanted = set()
    boot = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        ledger = on_boot(path, "boot-0")
        for what, holder, datasets in steps:
            pairs = {(holder, dataset) for dataset in datasets}
            if what == "pin":
                ledger.pin(holder, datasets, uid=1)
                wanted |= pairs
            elif what == "reboot":
                ledger.close()
                boot += 1
                ledger = on_boot(path, f"boot-{boot}")
                wanted = {pair for pair in wanted if pair[0] == ADMINISTRATOR}
            elif what == "release":
                ledger.release(holder)
                wanted = {pair for pair in wanted if pair[0] != holder}
            else:
                ledger.release(holder, datasets)
                wanted -= pairs
            assert sorted(held(ledger)) == sorted(wanted)
        ledger.close()


def test_a_reboot_ends_the_pins_of_jobs_and_keeps_the_administrators(path) -> None:
    with on_boot(path, "boot-1") as ledger:
        ledger.pin(ADMINISTRATOR, ["imagenet"], uid=0)
        ledger.pin("job:1", ["imagenet", "coco"], uid=1000)
        asked_at = ledger.pins()[0].asked_at
    with on_boot(path, "boot-2") as ledger:
        assert held(ledger) == [(ADMINISTRATOR, "imagenet")]
        ledger.pin(ADMINISTRATOR, ["imagenet"], uid=0)
        assert ledger.pins()[0].asked_at == asked_at
        assert ledger.forget_other_boots() == (("coco", "job:1"), ("imagenet", "job:1"))
        assert ledger.forget_other_boots() == ()
        assert held(ledger) == [(ADMINISTRATOR, "imagenet")]


def test_a_job_id_that_comes_again_after_a_reboot_is_a_new_holder(path) -> None:
    with Ledger(path, boot_id="boot-1", now=lambda: 1.0) as ledger:
        ledger.pin("job:1", ["coco"], uid=1000)
    with Ledger(path, boot_id="boot-2", now=lambda: 2.0) as ledger:
        ledger.pin("job:1", ["coco"], uid=1001)
        assert [(pin.uid, pin.asked_at) for pin in ledger.pins()] == [(1001, 2.0)]


def test_twenty_jobs_start_and_end_at_the_same_moment_on_a_new_node(path, tmp_path) -> None:
    script = """
Path(arguments[1]).touch()
while not Path(arguments[2]).exists():
    time.sleep(0.001)
for _ in range(5):
    with open_ledger() as ledger:
        ledger.pin(f"job:{arguments[0]}", ["imagenet", f"own-{arguments[0]}"], uid=1)
        if arguments[0] not in ("3", "4"):
            ledger.release(f"job:{arguments[0]}")
            ledger.pin(f"job:{arguments[0]}", ["imagenet"], uid=1)
"""
    go = tmp_path / "go"
    jobs = [subprocess.Popen(command(script, path, job, tmp_path / f"ready-{job}", go)) for job in range(20)]
    while len(list(tmp_path.glob("ready-*"))) < len(jobs):
        time.sleep(0.01)
    go.touch()
    assert [job.wait(60) for job in jobs] == [0] * 20
    with on_boot(path, BOOT) as ledger:
        mine = {(job_holder(job), "imagenet") for job in range(20)}
        assert set(held(ledger)) == mine | {("job:3", "own-3"), ("job:4", "own-4")}
        assert ledger.moved_aside is None


WRITER_TO_KILL = """
print("begun", flush=True)
with open_ledger() as ledger:
    ledger.pin("job:1", ["a", "b", "c"], uid=1)
    print("pinned", flush=True)
    ledger.release("job:1")
    print("released", flush=True)
"""


def test_a_writer_killed_at_any_disk_call_leaves_all_of_a_change_or_nothing(tmp_path) -> None:
    deaths = 0
    for number in itertools.count(1):
        path = tmp_path / str(number) / "ledger.sqlite"
        done = tracing.run_killed_at(DISK_CALLS, number, command(WRITER_TO_KILL, path))
        assert "begun" in done.stdout, done.stderr
        with on_boot(path, BOOT) as ledger:
            pinned = {pin.dataset for pin in ledger.pins()}
            assert pinned in (set(), {"a", "b", "c"})
            if done.stdout.split()[-1] == "pinned":
                assert pinned or any(event.event == "released" for event in ledger.events(9))
            if done.stdout.split()[-1] == "released":
                assert not pinned
            assert ledger.moved_aside is None
            ledger.pin("job:2", ["d"], uid=1)
            assert ledger.release("job:1") == tuple(sorted(pinned))
            assert held(ledger) == [("job:2", "d")]
        if done.returncode == 0:
            break
        deaths += 1
    assert deaths > 10


def test_writers_killed_at_random_beside_others_break_nothing(path) -> None:
    script = """
ledger = open_ledger()
print("ready", flush=True)
while True:
    ledger.pin(f"job:{arguments[0]}", ["a", "b", "c"], uid=1)
    ledger.release(f"job:{arguments[0]}", ["b"])
    ledger.release(f"job:{arguments[0]}")
"""
    with on_boot(path, BOOT) as ledger:
        for number in range(8):
            with subprocess.Popen(command(script, path, number), stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                writer.stdout.readline()
                time.sleep(0.003 * number)
                ledger.pin("job:100", [f"d{number}"], uid=1)
                writer.send_signal(signal.SIGKILL)
            left = {pin.dataset for pin in ledger.pins() if pin.job_id == number}
            assert left in (set(), {"a", "b", "c"}, {"a", "c"})
        assert {pin.dataset for pin in ledger.pins() if pin.job_id == 100} == {f"d{n}" for n in range(8)}


def test_only_the_administrators_changes_wait_for_the_disk(path, tmp_path) -> None:
    def syncs(holder):
        script = f"ledger = open_ledger(); os.kill(os.getpid(), 0); ledger.pin({holder!r}, ['a'], uid=0); os._exit(0)"
        lines = tracing.trace("fdatasync,fsync,kill", command(script, path), tmp_path / "trace")
        begin = next(n for n, line in enumerate(lines) if "kill(" in line)
        return sum("sync(" in line for line in lines[begin:])

    with on_boot(path, BOOT):
        assert syncs("job:1") == 0
        assert syncs(ADMINISTRATOR) > 0


@pytest.mark.parametrize("fault", ["garbage", "cut", "torn-page"])
def test_a_corrupt_file_is_kept_aside_and_a_new_one_begun(path, fault) -> None:
    with on_boot(path, BOOT) as ledger:
        ledger.pin("job:1", ["coco"], uid=1000)
    content = path.read_bytes()
    pages = [content[at : at + 4096] for at in range(0, len(content), 4096)]
    bad = {
        "garbage": b"not a database " * 999,
        "cut": content[:5000],
        "torn-page": pages[0] + b"\xff" * (len(content) - 4096),
    }[fault]
    path.write_bytes(bad)
    with on_boot(path, BOOT) as ledger:
        ledger.pin("job:2", ["audio"], uid=1000)
        assert held(ledger) == [("job:2", "audio")]
        assert ledger.moved_aside == path.with_name("ledger.sqlite.corrupt-1")
        assert [event.event for event in ledger.events(9)] == ["pinned", "ledger-corrupt"]
        assert "ledger.sqlite.corrupt-1" in ledger.events(9)[1].detail
    assert path.with_name("ledger.sqlite.corrupt-1").read_bytes() == bad
    with on_boot(path, BOOT) as ledger:
        assert ledger.moved_aside is None
        assert held(ledger) == [("job:2", "audio")]


def test_a_second_corrupt_file_does_not_replace_the_first(path) -> None:
    for number in (1, 2):
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
        path.write_bytes(b"garbage %d" % number * 500)
        with on_boot(path, BOOT) as ledger:
            assert ledger.moved_aside.name == f"ledger.sqlite.corrupt-{number}"
    assert path.with_name("ledger.sqlite.corrupt-1").read_bytes().startswith(b"garbage 1")


def test_who_has_a_corrupt_file_open_goes_over_to_the_new_one(path) -> None:
    with on_boot(path, BOOT) as daemon:
        daemon.pin("job:1", ["coco"], uid=1000)
        path.write_bytes(b"garbage" * 999)
        path.with_name("ledger.sqlite-wal").write_bytes(b"garbage" * 9999)  # it holds every page of so new a file
        with on_boot(path, BOOT) as hook:
            hook.pin("job:2", ["audio"], uid=1000)
        assert held(daemon) == [("job:2", "audio")]
        daemon.pin("job:3", ["coco"], uid=1000)
    with on_boot(path, BOOT) as later:
        assert held(later) == [("job:2", "audio"), ("job:3", "coco")]
    assert [name for name in files(path) if "corrupt-2" in name] == []


def test_many_who_find_it_corrupt_move_it_aside_once(path, tmp_path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"garbage" * 999)
    script = "open_ledger().pin(f'job:{arguments[0]}', ['coco'], uid=1)"
    jobs = [subprocess.Popen(command(script, path, number)) for number in range(8)]
    assert [job.wait(60) for job in jobs] == [0] * 8
    with on_boot(path, BOOT) as ledger:
        assert len(ledger.pins()) == 8
    assert [name for name in files(path) if name.endswith("corrupt-2")] == []


def test_a_file_deleted_under_the_daemon_is_made_again(ledger, path) -> None:
    ledger.pin("job:1", ["coco"], uid=1000)
    for name in files(path):
        path.with_name(name).unlink()
    assert ledger.pins() == []
    ledger.pin("job:2", ["coco"], uid=1000)
    assert held(ledger) == [("job:2", "coco")]


def test_a_lock_that_is_held_costs_the_time_limit_and_no_more(ledger, path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began_at = time.monotonic()
        with pytest.raises(LedgerError, match=r"another process has been writing for 0\.2 s") as caught:
            ledger.pin("job:1", ["coco"], uid=1000)
        assert 0.1 < time.monotonic() - began_at < 2
        assert "fuser" in (caught.value.hint or "")
        assert ledger.pins() == []
        other.execute("ROLLBACK")
    ledger.pin("job:1", ["coco"], uid=1000)


def test_a_thread_that_hangs_in_the_file_does_not_hang_the_others_for_ever(path) -> None:
    end = threading.Event()
    begun = threading.Event()

    def now():
        begun.set()
        end.wait(10)
        return 1.0

    with Ledger(path, boot_id=BOOT, now=now, busy_timeout_s=0.2) as ledger:
        thread = threading.Thread(target=ledger.record, args=("an-event",))
        thread.start()
        # Its clock is read before its turn: the file itself is held by the next one.
        begun.wait(10)
        holder = threading.Thread(target=ledger._file.run, args=(lambda db: end.wait(10),))
        holder.start()
        deadline = time.monotonic() + 10
        while not ledger._file._turn.locked():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with pytest.raises(LedgerError, match="another thread"):
            ledger.pins()
        end.set()
        thread.join()
        holder.join()
        assert ledger.pins() == []


def test_threads_share_one_ledger(path) -> None:
    with on_boot(path, BOOT) as ledger:

        def work(job):
            for _ in range(20):
                ledger.pin(job_holder(job), ["a", "b"], uid=1)
                ledger.pins()
                ledger.release(job_holder(job), ["a"])

        threads = [threading.Thread(target=work, args=(job,)) for job in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(held(ledger)) == [(job_holder(job), "b") for job in range(6)]


@pytest.mark.root
def test_a_full_disk_is_an_error_and_a_later_call_works(tmp_path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", tmp_path], check=True)
    try:
        with on_boot(tmp_path / "ledger.sqlite", BOOT) as ledger:
            ledger.pin("job:1", ["coco"], uid=1000)
            with open(tmp_path / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
                while True:
                    ballast.write(b"x" * 4096)
            with pytest.raises(LedgerError, match=r"no space left|disk I/O error") as caught:
                for job in range(2, 500):
                    ledger.pin(job_holder(job), ["coco"], uid=1000)
            assert caught.value.hint
            pinned = held(ledger)
            assert pinned[0] == ("job:1", "coco")
            (tmp_path / "ballast").unlink()
            ledger.pin("job:1000", ["coco"], uid=1000)
            assert held(ledger) == [*pinned, ("job:1000", "coco")]
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_root_alone_may_look_whatever_the_umask(tmp_path) -> None:
    path = tmp_path / "var" / "state" / "ledger.sqlite"
    before = os.umask(0)
    try:
        with on_boot(path, BOOT) as ledger:
            ledger.pin("job:1", ["coco"], uid=1000)
            modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"ledger.sqlite": 0o600, "ledger.sqlite-wal": 0o600, "ledger.sqlite-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o755


def test_a_directory_that_others_may_write_is_refused(path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o770)
    with pytest.raises(LedgerError, match="mode 0770"):
        on_boot(path, BOOT)


@pytest.mark.root
def test_a_directory_of_somebody_else_is_refused(path) -> None:
    path.parent.mkdir(mode=0o700)
    os.chown(path.parent, 12345, 12345)
    with pytest.raises(LedgerError, match="uid 12345"):
        on_boot(path, BOOT)


def test_a_symlink_in_the_place_of_the_file_makes_nothing_elsewhere(path, tmp_path) -> None:
    path.parent.mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError):
        on_boot(path, BOOT)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_where_the_directory_should_be_is_an_error(tmp_path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(LedgerError, match="state"):
        on_boot(tmp_path / "state" / "ledger.sqlite", BOOT)


def test_a_file_of_a_newer_release_is_left_alone(path) -> None:
    on_boot(path, BOOT).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="version 99"):
        on_boot(path, BOOT)
    assert files(path) == ["ledger.sqlite"]


def test_a_user_with_many_jobs_does_not_push_out_what_happened_to_the_node(ledger) -> None:
    ledger.record("evicted", dataset="coco", detail="nobody reads it")
    for number in range(3):
        ledger.pin(f"job:{number}", [f"d{each}" for each in range(EVENTS_KEPT)], uid=1000)
    assert [each.event for each in ledger.events(10 * EVENTS_KEPT) if each.dataset == "coco"] == ["evicted"]
    assert len(ledger.events(10 * EVENTS_KEPT)) == EVENTS_KEPT + 1


def test_of_what_happened_to_the_node_the_newest_is_kept(ledger) -> None:
    ledger.pin("job:1", ["imagenet"], uid=1000)
    for number in range(OTHER_EVENTS_KEPT + 10):
        ledger.record("staged", dataset=f"d{number}")
    kept = ledger.events(10 * EVENTS_KEPT)
    assert len(kept) == OTHER_EVENTS_KEPT + 1
    assert (kept[0].dataset, kept[-1].event, kept[-2].dataset) == (f"d{OTHER_EVENTS_KEPT + 9}", "pinned", "d10")


def test_events_come_newest_first_and_the_oldest_are_forgotten(ledger) -> None:
    ledger.pin("job:1", ["coco"], uid=1000)
    ledger.release("job:1")
    ledger.record("evicted", dataset="coco", detail="room for imagenet")
    assert [(event.event, event.dataset, event.holder) for event in ledger.events(9)] == [
        ("evicted", "coco", ""),
        ("released", "coco", "job:1"),
        ("pinned", "coco", "job:1"),
    ]
    assert ledger.events(1)[0].detail == "room for imagenet"
    assert ledger.events(0) == []
    ledger.pin("job:2", [f"d{number}" for number in range(EVENTS_KEPT)], uid=1000)
    kept = ledger.events(2 * EVENTS_KEPT)
    assert len(kept) == EVENTS_KEPT + 1
    assert [each.event for each in kept[-2:]] == ["pinned", "evicted"]
    assert kept[-2].dataset == "d0"


def test_closing_twice_is_no_error(ledger) -> None:
    ledger.close()
    ledger.close()


def test_the_boot_id_is_the_kernels(tmp_path) -> None:
    assert len(read_boot_id()) == 36
    with pytest.raises(LedgerError, match="nothing"):
        read_boot_id(tmp_path / "nothing")
