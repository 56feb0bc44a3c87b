"""The stubs and the hook as Slurm runs them: whatever is wrong, exit code 0, no hang, and the job is told."""

import contextlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scratch_slurm.domain.model import ADMINISTRATOR
from scratch_slurm.node.ledger.ledger import Ledger, read_boot_id
from tests.kit import tracing
from tests.kit.fake_daemon import FakeDaemon, http, states
from tests.kit.images import wait_until
from tests.kit.people import STRANGER_UID, stranger_listens

ROOT = Path(__file__).parents[2]
PROLOG = ROOT / "prolog.d" / "50-scratch-slurm"
EPILOG = ROOT / "epilog.d" / "50-scratch-slurm"
CACHED = {"name": "imagenet", "state": "cached"}


class Node:
    """A node's directories, its configuration, and a `scratch-slurm-hook` that runs this source tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.run_dir = folder / "run"
        self.ledger_path = folder / "state" / "ledger.sqlite"
        self.socket_path = self.run_dir / "daemon.sock"
        self.configure()
        hook = folder / "bin" / "scratch-slurm-hook"
        hook.parent.mkdir()
        hook.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            "from scratch_slurm.hooks.main import main\nsys.exit(main())\n"
        )
        hook.chmod(0o755)
        self.hook = hook
        self.stderr = ""

    def configure(self, extra: str = "") -> None:
        lines = [f"{key}_dir: {self.folder / key}" for key in ("source", "cache", "mount", "state", "run")]
        self.config.write_text("\n".join((*lines, "preheat: {wait: 0s, timeout: 20s}", extra)))
        self.config.chmod(0o644)

    def environment(self, job: str = "7", **variables: str) -> dict[str, str]:
        """What Slurm gives: no PATH, no HOME; and what an administrator's wrapper adds."""
        return {
            "SLURM_JOB_ID": job,
            "SLURM_JOB_UID": "1000",
            "SCRATCH_SLURM_CONFIG": str(self.config),
            "SCRATCH_SLURM_BIN": str(self.hook.parent),
            "SCRATCH_SLURM_RUN_DIR": str(self.run_dir),
            **variables,
        }

    def run_stub(self, stub: Path, job: str = "7", **variables: str) -> None:
        done = subprocess.run(
            [stub], env=self.environment(job, **variables), capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def run_hook(self, *arguments: str, job: str = "7", **variables: str) -> str:
        """Run the hook itself, whose log lines are on its standard error."""
        done = subprocess.run(
            [self.hook, *arguments],
            env=self.environment(job, **variables),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        return done.stderr

    def prolog(self, datasets: str = "imagenet", **variables: str) -> str:
        return self.run_hook("prolog", SPANK_DATASETS=datasets, **variables)

    def report(self, job: str = "7") -> list[str]:
        return (self.run_dir / "jobs" / job).read_text().splitlines()

    def messages(self) -> list[str]:
        return [line.removeprefix("message=") for line in self.report() if line.startswith("message=")]

    def ledger(self) -> Ledger:
        return Ledger(self.ledger_path, boot_id=read_boot_id(), now=time.time)

    def held(self) -> list[tuple[str, str]]:
        with self.ledger() as ledger:
            return [(pin.holder, pin.dataset) for pin in ledger.pins()]


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_hooks_ask_at_the_socket_that_is_root_s_alone_where_there_is_one(node) -> None:
    with FakeDaemon(node.socket_path, states(CACHED)) as everybody_s:
        with FakeDaemon(node.run_dir / "root.sock", states(CACHED)) as root_s:
            node.run_stub(PROLOG, SPANK_DATASETS="imagenet")
            node.run_stub(EPILOG, SPANK_DATASETS="imagenet")
        assert (len(root_s.requests), len(everybody_s.requests)) == (2, 0)


def test_a_job_with_everything_cached(node) -> None:
    both = [CACHED, {"name": "coco", "state": "cached"}]
    with FakeDaemon(node.socket_path, states(*both)) as daemon:
        node.run_stub(PROLOG, SPANK_DATASETS="imagenet,coco,imagenet")
        assert daemon.requests == [
            {
                "method": "POST",
                "path": "/v1/wait",
                "body": {"datasets": ["imagenet", "coco"], "timeout_s": 0.0, "uid": 1000, "node": ""},
            }
        ]
        assert node.held() == [("job:7", "imagenet"), ("job:7", "coco")]
        assert node.report() == [
            f"SCRATCH_DATASETS_DIR={node.folder}/mount",
            "SCRATCH_DATASETS=imagenet,coco",
            "SCRATCH_DATASETS_STATE=imagenet:cached,coco:cached",
            f"SCRATCH_DATASET_IMAGENET={node.folder}/mount/imagenet",
            f"SCRATCH_DATASET_COCO={node.folder}/mount/coco",
        ]
        node.run_stub(EPILOG, SPANK_DATASETS="imagenet,coco")
        assert daemon.requests[1]["body"] == {"datasets": [], "timeout_s": 0.0, "uid": None, "node": ""}
    assert node.held() == []
    assert list((node.run_dir / "jobs").iterdir()) == []


@pytest.mark.parametrize("umask", [0o077, 0o022, 0])
def test_the_report_is_roots_alone_whatever_the_umask(node, umask) -> None:
    before = os.umask(umask)
    try:
        node.prolog()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (node.run_dir, node.run_dir / "jobs")]
    assert modes == [0o755, 0o755]
    assert stat.S_IMODE((node.run_dir / "jobs" / "7").stat().st_mode) == 0o600


def test_the_log_has_a_line_a_state_change(node) -> None:
    with FakeDaemon(node.socket_path, states(CACHED)):
        began = node.prolog()
        ended = node.run_hook("epilog")
    assert [line.partition("]: ")[2].rpartition("=")[0] for line in began.splitlines()] == [
        "pinned job=7 uid=1000 datasets",
        "cached job=7 states=imagenet:cached waited_s",
    ]
    assert [line.partition("]: ")[2] for line in ended.splitlines()] == ["released job=7 datasets=imagenet"]


WORDS = [
    pytest.param(
        {"name": "x", "state": "staging", "size_bytes": 150 * 10**9, "staged_bytes": 67 * 10**9, "eta_s": 720.0},
        ["x: is read from the source until its copy is complete (44 % of 150.0 GB, about 12 min left)"],
        id="staging",
    ),
    pytest.param(
        {"name": "x", "state": "staging"},
        ["x: is read from the source until its copy is complete"],
        id="staging-of-unknown-size",
    ),
    pytest.param(
        {"name": "x", "state": "queued", "problem": "waits for room: needs 2.0 TB"},
        ["x: is read from the source until its copy is complete; the copy has not begun: waits for room: needs 2.0 TB"],
        id="queued",
    ),
    pytest.param(
        {"name": "x", "state": "source", "problem": "does not fit: 9.0 TB, the capacity is 2.0 TB"},
        ["x: is read from the source: does not fit: 9.0 TB, the capacity is 2.0 TB"],
        id="does-not-fit",
    ),
    pytest.param(
        {"name": "x", "state": "unknown", "problem": "no such dataset on this node; did you mean xy?"},
        ["x: no such dataset on this node; did you mean xy?"],
        id="unknown",
    ),
    pytest.param(
        {"name": "x", "state": "unmounted", "problem": "bad\nSCRATCH_X=1\x1b[1mimage"},
        ["x: cannot be read: bad?SCRATCH_X=1?[1mimage"],
        id="what-is-not-printable-stays-on-its-line",
    ),
]


@pytest.mark.parametrize(("status", "messages"), WORDS)
def test_a_job_is_told_what_is_not_as_asked(node, status, messages) -> None:
    with FakeDaemon(node.socket_path, states(status)):
        node.prolog("x")
    assert node.messages() == messages
    assert f"SCRATCH_DATASETS_STATE=x:{status['state']}" in node.report()


HOSTILE = [
    pytest.param("$(touch /tmp/pwned);`id`", id="shell"),
    pytest.param("a\nSCRATCH_DATASETS=b", id="newline"),
    pytest.param("../../etc/passwd", id="path"),
    pytest.param("a,,b", id="empty-name"),
    pytest.param(",".join(f"d{number}" for number in range(65)), id="65-names"),
    pytest.param("x" * 130_000, id="as-long-as-the-kernel-takes"),
    pytest.param("a b", id="blank"),
    pytest.param("-rf", id="option"),
    pytest.param("caf\udce9", id="not-utf-8"),
    pytest.param("\x1b]0;title\x07", id="escape"),
]


@pytest.mark.parametrize("datasets", HOSTILE)
def test_a_name_that_is_none_pins_nothing_and_is_said(node, datasets) -> None:
    node.run_stub(PROLOG, SPANK_DATASETS=datasets)
    report = node.report()
    assert report[0].startswith("SCRATCH_DATASETS_DIR=")
    assert len(report) == 2
    assert report[1].startswith("message=")
    assert "nothing is cached" in report[1]
    assert report[1].isprintable()
    assert len(report[1]) < 600
    assert not node.ledger_path.exists()
    assert sorted(path.name for path in node.folder.iterdir()) == ["bin", "config.yaml", "run"]
    node.run_stub(EPILOG, SPANK_DATASETS=datasets)
    assert list((node.run_dir / "jobs").iterdir()) == []


@pytest.mark.parametrize("job", ["../x", "", "0", "-1", "7 8", "4294967296", "7\n8", "٣", "x" * 1000])
def test_a_job_id_that_is_none_does_nothing(node, job) -> None:
    for stub in (PROLOG, EPILOG):
        node.run_stub(stub, job, SPANK_DATASETS="imagenet")
    assert "hook-failed" in node.prolog(job=job)
    assert sorted(path.name for path in node.folder.iterdir()) == ["bin", "config.yaml"]


def test_a_user_that_is_none_leaves_the_pins_to_root(node) -> None:
    node.prolog(SLURM_JOB_UID="$(id)")
    with node.ledger() as ledger:
        assert [pin.uid for pin in ledger.pins()] == [0]


def test_no_request_does_nothing(node) -> None:
    for stub in (PROLOG, EPILOG):
        node.run_stub(stub)
        node.run_stub(stub, SPANK_DATASETS="")
    assert node.prolog("") == ""
    assert sorted(path.name for path in node.folder.iterdir()) == ["bin", "config.yaml"]


def test_the_epilog_of_a_job_without_a_request_releases_what_the_prolog_left_word_of(node) -> None:
    node.run_stub(PROLOG, SPANK_DATASETS="imagenet")
    assert node.held() == [("job:7", "imagenet")]
    node.run_stub(EPILOG)
    assert node.held() == []


def test_an_epilog_may_come_twice_or_alone_and_takes_only_its_jobs_pins(node) -> None:
    node.prolog("imagenet", job="8")
    with node.ledger() as ledger:
        ledger.pin(ADMINISTRATOR, ["coco"], uid=0)
    node.prolog("imagenet,coco")
    for job in ("7", "7", "99"):
        node.run_stub(EPILOG, job, SPANK_DATASETS="imagenet,coco")
    assert node.held() == [("job:8", "imagenet"), (ADMINISTRATOR, "coco")]
    assert [path.name for path in (node.run_dir / "jobs").iterdir()] == ["8"]


def test_a_requeued_job_pins_anew(node) -> None:
    for _ in range(2):
        node.prolog("imagenet")
        node.prolog("imagenet")
        assert node.held() == [("job:7", "imagenet")]
        node.run_stub(EPILOG, SPANK_DATASETS="imagenet")
        assert node.held() == []


CONFIGS = [
    pytest.param(None, id="missing"),
    pytest.param("{", id="not-yaml"),
    pytest.param("source_dir: /a\n", id="no-cache"),
    pytest.param("source_dir: /a\ncache_dir: 7\n", id="wrong-value"),
]


@pytest.mark.parametrize("text", CONFIGS)
def test_a_broken_configuration_costs_the_cache_and_not_the_job(node, text) -> None:
    node.config.unlink()
    if text is not None:
        node.config.write_text(text)
    for stub in (PROLOG, EPILOG):
        node.run_stub(stub, SPANK_DATASETS="imagenet")
    assert "hook-failed job=7 hook=prolog" in node.prolog()


def test_a_broken_installation_costs_the_cache_and_not_the_job(node) -> None:
    node.hook.write_text("#!/bin/sh\nexit 1\n")
    node.run_stub(PROLOG, SPANK_DATASETS="imagenet")
    node.hook.write_text("#!/nowhere/python\n")
    node.run_stub(PROLOG, SPANK_DATASETS="imagenet")
    node.hook.unlink()
    node.run_stub(PROLOG, SPANK_DATASETS="imagenet")
    node.run_stub(EPILOG, SPANK_DATASETS="imagenet")


def test_a_missing_library_costs_the_cache_and_not_the_job(node) -> None:
    (node.folder / "bin" / "msgspec.py").write_text("raise ImportError('gone')\n")
    assert 'hook-failed job=7 hook=prolog error="ImportError: gone"' in node.prolog()


def test_a_ledger_that_cannot_be_written_is_said_and_the_daemon_asked_all_the_same(node) -> None:
    (node.folder / "state").write_text("a file in the way")
    with FakeDaemon(node.socket_path, states({"name": "imagenet", "state": "source"})) as daemon:
        log = node.prolog()
        assert len(daemon.requests) == 1
    assert "not-pinned job=7" in log
    assert node.messages()[0].startswith("nothing is cached for this job: ")
    assert node.messages()[1:] == ["imagenet: is read from the source"]
    assert "not-released job=7" in node.run_hook("epilog")


@pytest.mark.root
@pytest.mark.parametrize("option", ["ro", "size=4k"])
def test_a_read_only_or_full_state_directory(node, option) -> None:
    (node.folder / "state").mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{option}", "tmpfs", node.folder / "state"]
    subprocess.run(command, check=True)
    try:
        node.run_stub(PROLOG, SPANK_DATASETS="imagenet")
        assert node.messages()[0].startswith("nothing is cached for this job: ")
        node.run_stub(EPILOG, SPANK_DATASETS="imagenet")
    finally:
        subprocess.run(["umount", "-l", node.folder / "state"], check=True)


@pytest.mark.root
def test_a_full_run_directory_leaves_the_pins_and_no_half_a_report(node) -> None:
    node.run_dir.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=0755", "tmpfs", node.run_dir], check=True)
    try:
        with open(node.run_dir / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(b"x" * 4096)
        assert "no-report job=7" in node.prolog()
        assert node.held() == [("job:7", "imagenet")]
        assert not (node.run_dir / "jobs" / "7").exists()
        node.run_stub(EPILOG, SPANK_DATASETS="imagenet")
        assert node.held() == []
        assert list((node.run_dir / "jobs").iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", node.run_dir], check=True)


def test_a_jobs_directory_that_others_may_write_is_not_used(node) -> None:
    (node.run_dir / "jobs").mkdir(parents=True)
    (node.run_dir / "jobs").chmod(0o777)
    assert "no-report job=7" in node.prolog()
    assert list((node.run_dir / "jobs").iterdir()) == []
    assert node.held() == [("job:7", "imagenet")]


def test_no_symlink_is_followed(node) -> None:
    victim = node.folder / "victim"
    victim.write_text("precious")
    (node.run_dir / "jobs").mkdir(parents=True)
    for name in ("7", ".7.new"):
        (node.run_dir / "jobs" / name).symlink_to(victim)
    node.prolog()
    assert node.report()[1] == "SCRATCH_DATASETS=imagenet"
    assert victim.read_text() == "precious"
    shutil.rmtree(node.run_dir / "jobs")
    (node.folder / "elsewhere").mkdir()
    (node.run_dir / "jobs").symlink_to(node.folder / "elsewhere")
    assert "no-report job=7" in node.prolog()
    assert list((node.folder / "elsewhere").iterdir()) == []


def test_no_daemon_means_no_waiting(node) -> None:
    began_at = time.monotonic()
    node.prolog(SPANK_DATASETS_WAIT="all")
    assert time.monotonic() - began_at < 5
    assert node.held() == [("job:7", "imagenet")]
    assert node.messages() == [
        f"nothing more is cached for this job now: {node.socket_path}: the daemon does not run",
        f"imagenet: cannot be read: {node.folder}/source: cannot list the source: No such file or directory",
    ]


GARBAGE = [
    pytest.param(b"\xff" * 9000, id="noise"),
    pytest.param(http({"datasets": "?"}), id="another-shape"),
    pytest.param(http({"datasets": [{"name": "imagenet", "state": "boiling"}], "settled": True}), id="another-state"),
    pytest.param(http({"datasets": [], "settled": False}), id="nothing-seen-yet"),
    pytest.param(http({"error": "SourceError", "message": "m"}, 500), id="an-error"),
    pytest.param(http({"error": "__import__", "message": "m"}, 500), id="an-error-of-no-name"),
    pytest.param(b"", id="nothing"),
]


@pytest.mark.parametrize("answer", GARBAGE)
def test_a_daemon_that_talks_nonsense(node, answer) -> None:
    with FakeDaemon(node.socket_path, lambda _: answer):
        node.run_stub(PROLOG, SPANK_DATASETS="imagenet")
    assert node.held() == [("job:7", "imagenet")]
    assert node.messages()[0].startswith("nothing more is cached for this job now: ")


def test_a_daemon_that_hangs_is_left_by_the_stubs_limit_with_pins_and_a_report(node) -> None:
    with FakeDaemon(node.socket_path, lambda _: None):
        began_at = time.monotonic()
        node.run_stub(PROLOG, SPANK_DATASETS="imagenet", SCRATCH_SLURM_HOOK_LIMIT="2")
        assert time.monotonic() - began_at < 8
        assert node.held() == [("job:7", "imagenet")]
        assert "SCRATCH_DATASETS=imagenet" in node.report()
        assert "cut short" in node.messages()[0]
        node.run_stub(EPILOG, SPANK_DATASETS="imagenet")
    assert node.held() == []


@pytest.mark.parametrize("limit", ["0", "soon", "", "-1", "2; reboot"])
def test_a_limit_that_is_none_is_not_no_limit(node, limit) -> None:
    with FakeDaemon(node.socket_path, states(CACHED)):
        node.run_stub(PROLOG, SPANK_DATASETS="imagenet", SCRATCH_SLURM_HOOK_LIMIT=limit)
    assert node.messages() == []


def test_the_wait_goes_over_a_restart_of_the_daemon(node) -> None:
    still = {"name": "imagenet", "state": "staging", "size_bytes": 100, "staged_bytes": 9}
    environment = node.environment(SPANK_DATASETS="imagenet", SPANK_DATASETS_WAIT="15s")
    answer_early = http({"datasets": [still], "settled": False})
    with FakeDaemon(node.socket_path, lambda _: answer_early) as daemon:
        job = subprocess.Popen([node.hook, "prolog"], env=environment, stderr=subprocess.DEVNULL)
        wait_until(lambda: daemon.requests)
    time.sleep(1.5)  # the second question finds nobody
    with FakeDaemon(node.socket_path, states(CACHED)) as daemon:
        assert job.wait(30) == 0
        assert 8 < daemon.requests[0]["body"]["timeout_s"] <= 10
    assert node.report()[2] == "SCRATCH_DATASETS_STATE=imagenet:cached"
    assert node.messages() == []


def test_the_wait_ends_when_its_time_is_over(node) -> None:
    still = {"name": "imagenet", "state": "staging", "size_bytes": 100, "staged_bytes": 9, "eta_s": 500.0}
    with FakeDaemon(node.socket_path, states(still, settled=False)) as daemon:
        began_at = time.monotonic()
        node.prolog(SPANK_DATASETS_WAIT="2s")
        assert 2 <= time.monotonic() - began_at < 6
        assert 1 <= len(daemon.requests) <= 3
        assert 1.9 < daemon.requests[0]["body"]["timeout_s"] <= 2
    assert node.messages() == [
        "imagenet: is read from the source until its copy is complete (9 % of 100 B, about 8 min left)"
    ]


WAITS = [
    pytest.param("soon", "--datasets-wait='soon' is not a time; the job's start waits 0 s at most", id="no-time"),
    pytest.param(
        "$(reboot)", "--datasets-wait='$(reboot)' is not a time; the job's start waits 0 s at most", id="shell"
    ),
    pytest.param("1h", "--datasets-wait: this node waits 20 s at most", id="more-than-the-site-allows"),
]


@pytest.mark.parametrize(("wait", "message"), WAITS)
def test_a_wait_that_cannot_be_is_said(node, wait, message) -> None:
    with FakeDaemon(node.socket_path, states(CACHED)):
        node.prolog(SPANK_DATASETS_WAIT=wait)
    assert node.messages() == [message]


@pytest.mark.root
def test_another_users_socket_is_not_asked(node) -> None:
    node.run_dir.mkdir()
    with stranger_listens(node.socket_path) as stranger:
        log = node.prolog()
        assert stranger.wait(10) == 0
    assert f"uid {STRANGER_UID} listens there" in log


def test_a_prolog_killed_anywhere_leaves_nothing_that_the_epilog_does_not_clear(node) -> None:
    """At each call that changes a file, one after the other, as at the kill -9 of a time limit."""
    calls = "pwrite64,write,rename,renameat,unlinkat,connect"
    deaths = 0
    for number in range(1, 200, 3):
        done = tracing.run_killed_at(
            calls,
            number,
            [
                "env",
                "-i",
                *(f"{key}={value}" for key, value in node.environment(SPANK_DATASETS="a,b").items()),
                str(node.hook),
                "prolog",
            ],
        )
        assert {dataset for _, dataset in node.held()} in (set(), {"a", "b"})
        report = node.run_dir / "jobs" / "7"
        assert not report.exists() or report.read_text().endswith("\n")
        node.run_stub(EPILOG, SPANK_DATASETS="a,b")
        assert node.held() == []
        assert not (node.run_dir / "jobs").exists() or list((node.run_dir / "jobs").iterdir()) == []
        if done.returncode == 0:
            break
        deaths += 1
    assert deaths > 5


def test_a_job_without_a_request_costs_no_process_but_the_shell(node, tmp_path) -> None:
    for stub in (PROLOG, EPILOG):
        lines = tracing.trace(
            "process", [str(stub)], tmp_path / "trace", env={"SLURM_JOB_ID": "7", "SLURM_JOB_UID": "1"}
        )
        started = [line for line in lines if any(call in line for call in ("execve(", "fork(", "clone(", "clone3("))]
        assert len(started) == 1
        assert f'execve("{stub}"' in started[0]


def test_the_stub_ends_well_when_no_process_can_be_started(node) -> None:
    """As on a node whose process table is full; the limit binds no root, so the stub runs as another user."""

    def crippled():
        if os.geteuid() == 0:
            os.setgid(12345)
            os.setuid(12345)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

    for stub in (PROLOG, EPILOG):
        done = subprocess.run(
            [stub], env=node.environment(SPANK_DATASETS="a"), preexec_fn=crippled, timeout=30, check=False
        )
        assert done.returncode == 0


def test_killing_the_stubs_process_group_kills_the_hook_too(node) -> None:
    """As Slurm does when its own limit is over; a hook that lived on could write a report after the epilog."""
    with FakeDaemon(node.socket_path, lambda _: None) as daemon:
        stub = subprocess.Popen([PROLOG], env=node.environment(SPANK_DATASETS="imagenet"), start_new_session=True)
        wait_until(lambda: daemon.requests)
        os.killpg(stub.pid, signal.SIGKILL)
        stub.wait(10)
        wait_until(lambda: not hooks_below(node.hook))


@pytest.mark.parametrize("stub", [PROLOG, EPILOG], ids=["prolog", "epilog"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["TERM", "INT", "HUP"])
def test_a_stub_told_to_end_exits_0_at_once_whatever_its_hook_does(node, stub, number) -> None:
    """Slurm sends SIGTERM when its own limit is over, leaves 10 ms, and drains the node of a stub that was killed."""
    started, gate = node.folder / "started", node.folder / "gate"
    os.mkfifo(gate)
    node.hook.write_text(f"#!/bin/sh\ntrap '' TERM INT HUP\necho >{started}\nread _ <{gate}\n")
    running = subprocess.Popen([stub], env=node.environment(SPANK_DATASETS="imagenet"), start_new_session=True)
    try:
        wait_until(started.exists)
        os.kill(running.pid, number)
        assert running.wait(30) == 0
        assert hooks_below(node.hook), "the hook did not end first"
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(10)


BLOCKED = ["/usr/bin/env", "--block-signal=CHLD", "--block-signal=TERM", "--block-signal=ALRM"]


@pytest.mark.parametrize("stub", [PROLOG, EPILOG], ids=["prolog", "epilog"])
@pytest.mark.parametrize("env_is", ["new", "old"])
def test_a_stub_sees_its_hook_end_where_slurm_has_signals_blocked(node, stub, env_is) -> None:
    """As under PrologFlags=RunInJob on 26.05."""
    if env_is == "old":
        env = node.hook.with_name("env")
        env.write_text("#!/bin/sh\nexit 125\n")
        env.chmod(0o755)
    node.hook.write_text(f"#!/bin/sh\necho ran >>{node.folder}/ran\n")
    done = subprocess.run([*BLOCKED, stub], env=node.environment(SPANK_DATASETS="a"), timeout=30, check=False)
    assert done.returncode == 0
    assert (node.folder / "ran").read_text() == "ran\n"


def test_a_stub_told_to_end_by_a_blocked_signal_exits_0_at_once(node) -> None:
    started, gate = node.folder / "started", node.folder / "gate"
    os.mkfifo(gate)
    node.hook.write_text(f"#!/bin/sh\ntrap '' TERM\necho >{started}\nread _ <{gate}\n")
    environment = node.environment(SPANK_DATASETS="a")
    running = subprocess.Popen([*BLOCKED, PROLOG], env=environment, start_new_session=True)
    try:
        wait_until(started.exists)
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait(30) == 0
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(10)


def hooks_below(hook: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(hook).encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
    return found


def test_a_child_that_stays_behind_does_not_keep_slurms_pipe(node) -> None:
    """slurmd reads its hook's output to the end: a pipe that stays open blocks it."""
    node.hook.write_text(f"#!/bin/sh\necho noise\necho noise >&2\nsleep 20 &\necho $! >{node.folder}/pid\n")
    began_at = time.monotonic()
    for stub in (PROLOG, EPILOG):
        node.run_stub(stub, SPANK_DATASETS="imagenet")
        os.kill(int((node.folder / "pid").read_text()), signal.SIGKILL)
    assert time.monotonic() - began_at < 10


@pytest.mark.parametrize("arguments", [(), ("prologue",), ("prolog", "epilog")])
def test_wrong_words_say_how_it_is_used(node, arguments) -> None:
    assert node.run_hook(*arguments).startswith("usage: scratch-slurm-hook prolog|epilog")
    by_hand = subprocess.run([node.hook, *arguments], env={}, capture_output=True, text=True, check=False)
    assert by_hand.returncode == 2
    assert by_hand.stderr.startswith("usage: ")


SYSLOG = """
import os, socket, subprocess, sys
os.mkdir("/dev/shm")
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
subprocess.run(sys.argv[1:], stdin=subprocess.PIPE, capture_output=True)
log.setblocking(False)
print(log.recv(9999).decode())
"""


@pytest.mark.root
def test_syslog_gets_the_lines(node) -> None:
    with_own_dev = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /dev && exec "$@"', "sh"]
    done = subprocess.run(
        [*with_own_dev, sys.executable, "-c", SYSLOG, node.hook, "prolog"],
        env=node.environment(SPANK_DATASETS="imagenet", PATH="/usr/sbin:/usr/bin:/sbin:/bin"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert " scratch-slurm-hook[" in done.stdout
    assert done.stdout.startswith("<30>")  # daemon.info
    assert done.stdout.rstrip().rstrip("\0").endswith("]: pinned job=7 uid=1000 datasets=imagenet")


def test_the_hook_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from scratch_slurm.hooks import main, prolog, epilog;"
        " import scratch_slurm.node.configfile; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, ROOT], capture_output=True, text=True, check=True)
    heavy = {"click", "rich", "aiohttp", "asyncio", "http.client", "logging", "argparse", "subprocess", "ctypes", "ssl"}
    assert heavy & set(done.stdout.split()) == set()
