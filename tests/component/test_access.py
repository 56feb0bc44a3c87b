"""Who may read what, with the real daemon, real images and mounts, and two users that every Debian has."""

import contextlib
import grp
import os
import pwd
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from scratch_slurm.build.directory import open_directory
from scratch_slurm.build.publish import Publication
from scratch_slurm.cli.main import run
from scratch_slurm.domain.errors import DaemonError, DeniedError, NotFoundError
from scratch_slurm.domain.messages import (
    DatasetState,
    DatasetStatus,
    NodeStatus,
    PlanAnswer,
    PlanRequest,
    ReleaseAnswer,
    ReleaseRequest,
    WaitAnswer,
    WaitRequest,
)
from scratch_slurm.domain.model import Permissions
from scratch_slurm.domain.pins import job_holder
from scratch_slurm.node import daemon_client, users
from scratch_slurm.node.kernel import roots
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.images import clean_up, in_child, opened
from tests.kit.people import reachable_directory

T = TypeVar("T")

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

MEMBER = pwd.getpwnam("games")
STRANGER = pwd.getpwnam("nobody")
GROUP = grp.getgrgid(MEMBER.pw_gid)
NOBODY_AT_ALL = 3_999_999_999


@pytest.fixture
def folder() -> Iterator[Path]:
    with reachable_directory() as path:
        yield path
        clean_up(path)


def build(daemon: RunningDaemon, name: str, *options: str) -> Path:
    """Publish a dataset with the file `data` by `scratch-slurm build`; returns its image."""
    tree = daemon.folder / f"tree-{name}"
    tree.mkdir()
    (tree / "data").write_bytes(os.urandom(300_000))
    # A program of its own: the hash library's threads, which tests before may have left here, are in no forked child.
    command: list[str | Path] = [
        Path(sys.executable).with_name("scratch-slurm"),
        "build",
        tree,
        name,
        "--to",
        daemon.source_dir,
        *options,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return daemon.source_dir / f"{name}.squashfs"


def build_private(daemon: RunningDaemon, name: str) -> Path:
    return build(daemon, name, "--group", GROUP.gr_name, "--mode", "0640")


def as_user(account: pwd.struct_passwd, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a child that is this user, with his groups."""

    def become_and_call():
        os.setgroups(os.getgrouplist(account.pw_name, account.pw_gid))
        os.setresgid(*[account.pw_gid] * 3)
        os.setresuid(*[account.pw_uid] * 3)
        return function(*arguments)

    return in_child(become_and_call)


def ask(daemon: RunningDaemon, method: str, path: str, request: msgspec.Struct | None, kind: type[T]) -> T:
    body = None if request is None else msgspec.json.encode(request)
    answer = daemon_client.request(daemon.run_dir / "daemon.sock", method, path, body, 30.0)
    return msgspec.json.decode(answer, type=kind)


def wait_for(daemon: RunningDaemon, account: pwd.struct_passwd, *names: str, timeout_s: float = 10.0) -> WaitAnswer:
    """Ask for a user as his prolog does."""
    return ask(daemon, "POST", "/v1/wait", WaitRequest(names, timeout_s, account.pw_uid), WaitAnswer)


def pin(daemon: RunningDaemon, job_id: int, uid: int, *names: str) -> None:
    with daemon.ledger() as ledger:
        ledger.pin(job_holder(job_id), names, uid=uid)


def held(daemon: RunningDaemon) -> set[tuple[str, str]]:
    with daemon.ledger() as ledger:
        return {(each.holder, each.dataset) for each in ledger.pins()}


def events(daemon: RunningDaemon, dataset: str) -> list[str]:
    with daemon.ledger() as ledger:
        return [each.event for each in ledger.events(100) if each.dataset == dataset][::-1]


def test_a_private_image_is_for_its_group_from_file_to_mount_and_cache(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        image = build_private(daemon, "secret")
        daemon.until(lambda: daemon.is_mounted("secret"))
        for each in (image, daemon.source_dir / "secret.json"):
            found = each.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o640, GROUP.gr_gid)
        root = daemon.path("secret").parent.stat()
        assert (stat.S_IMODE(root.st_mode), root.st_uid, root.st_gid) == (0o750, 0, GROUP.gr_gid)
        data = daemon.read("secret")
        pin(daemon, 1, MEMBER.pw_uid, "secret")
        (status,) = wait_for(daemon, MEMBER, "secret").datasets
        assert (status.state, status.use_count, status.problem) == (DatasetState.CACHED, 1, "")
        for running in (True, False):
            if not running:
                daemon.stop()
            assert as_user(MEMBER, daemon.path("secret").read_bytes) == data
            with pytest.raises(PermissionError):
                as_user(STRANGER, daemon.path("secret").read_bytes)
            with pytest.raises(PermissionError):
                as_user(STRANGER, os.listdir, daemon.path("secret").parent)


def test_a_stranger_s_pin_is_taken_back_and_he_learns_that_the_dataset_exists(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        build_private(daemon, "secret")
        build(daemon, "common")
        daemon.until(lambda: daemon.is_mounted("secret", "common"))
        pin(daemon, 1, STRANGER.pw_uid, "secret", "common")
        answer = wait_for(daemon, STRANGER, "secret", "common")
        assert answer.settled
        secret, common = answer.datasets
        assert secret == DatasetStatus(
            "secret", DatasetState.PRIVATE, problem=f"user {STRANGER.pw_uid} may not read its image"
        )
        assert (common.state, common.use_count) == (DatasetState.CACHED, 1)
        daemon.until(lambda: held(daemon) == {("job:1", "common")}, "the pin is taken back")
        assert daemon.state("secret") is DatasetState.SOURCE
        assert "staged" not in events(daemon, "secret")
        assert events(daemon, "secret")[-2:] == ["pinned", "refused"]


def test_others_see_only_that_a_private_dataset_exists(folder: Path) -> None:
    def status(account):
        node = as_user(account, ask, daemon, "GET", "/v1/status", None, NodeStatus)
        return {each.name: each for each in node.datasets}

    def planned(account):
        plan = as_user(account, ask, daemon, "POST", "/v1/plan", PlanRequest(), PlanAnswer)
        return {each.name for each in plan.verdicts}

    with RunningDaemon(folder) as daemon:
        build_private(daemon, "secret")
        build(daemon, "common")
        daemon.until(lambda: daemon.is_mounted("secret", "common"))
        pin(daemon, 1, MEMBER.pw_uid, "secret", "common")
        assert wait_for(daemon, MEMBER, "secret", "common").settled
        assert status(STRANGER)["secret"] == DatasetStatus("secret", DatasetState.PRIVATE)
        assert status(STRANGER)["common"].holders == ("job:1",)
        assert status(MEMBER)["secret"] == daemon.dataset("secret")
        assert status(MEMBER)["secret"].use_count == 1
        assert (planned(STRANGER), planned(MEMBER)) == ({"common"}, {"common", "secret"})
        # Only root may ask for somebody else.
        question = WaitRequest(("secret",), 0.0, MEMBER.pw_uid)
        (told,) = as_user(STRANGER, ask, daemon, "POST", "/v1/wait", question, WaitAnswer).datasets
        assert told.state is DatasetState.PRIVATE


def test_what_is_not_known_yet_is_private_and_a_pin_on_it_neither_counts_nor_is_taken_back(folder: Path) -> None:
    def told(account):
        (status,) = wait_for(daemon, account, "secret", timeout_s=0.0).datasets
        return status.state, status.problem

    with RunningDaemon(folder) as daemon:
        image = build_private(daemon, "secret")
        pin(daemon, 1, MEMBER.pw_uid, "secret")
        daemon.until(lambda: daemon.is_cached("secret"))
        daemon.stop()
        # A node that boots before its source is there, and has kept nothing but the copy.
        image.rename(folder / "away")
        for path in (folder / "state").glob("catalog*"):
            path.unlink()
        clean_up(folder / "datasets")
        pin(daemon, 2, STRANGER.pw_uid, "secret")
        daemon.start()
        unknown = (DatasetState.PRIVATE, "whether user {} may read it is not known: its image has not been read")
        for account in (MEMBER, STRANGER):
            assert told(account) == (unknown[0], unknown[1].format(account.pw_uid))
        node = as_user(STRANGER, ask, daemon, "GET", "/v1/status", None, NodeStatus)
        assert node.datasets == (DatasetStatus("secret", DatasetState.PRIVATE),)
        assert daemon.dataset("secret").use_count == 0
        assert held(daemon) == {("job:1", "secret"), ("job:2", "secret")}
        assert len(daemon.cached_files()) == 1, "the copy stays, for whoever may turn out to read it"
        (folder / "away").rename(image)
        daemon.until(lambda: held(daemon) == {("job:1", "secret")}, "now it is known")
        daemon.until(lambda: daemon.is_cached("secret") and daemon.dataset("secret").use_count == 1)


def test_an_image_that_is_more_open_inside_than_its_file_is_not_mounted_until_it_is_mended(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        new = folder / "new"
        new.mkdir()
        image = make_version(new, "secret").image
        image.chmod(0o640)
        image.rename(daemon.source_dir / image.name)
        image = daemon.source_dir / image.name
        daemon.until(lambda: (found := daemon.dataset("secret")) and "build it again with" in found.problem)
        assert "lets in everybody" in daemon.dataset("secret").problem
        assert daemon.state("secret") is DatasetState.UNMOUNTED
        pin(daemon, 1, 0, "secret")
        assert daemon.wait("secret", timeout_s=10).settled
        assert not os.path.ismount(daemon.path("secret").parent)
        assert events(daemon, "secret").count("refused") == 1, "it is not tried again as it is"
        image.chmod(0o644)
        daemon.until(lambda: daemon.is_cached("secret"), "what everybody may read is served")


@pytest.mark.parametrize("running", [True, False], ids=["running", "not-running"])
def test_a_mount_goes_at_once_when_its_image_is_closed_pinned_or_not_and_comes_back(
    folder: Path, running: bool
) -> None:
    with RunningDaemon(folder) as daemon:
        version = make_version(daemon.source_dir, "coco")
        daemon.until(lambda: daemon.is_mounted("coco"))
        pin(daemon, 1, 0, "coco")
        assert daemon.wait("coco", timeout_s=10).datasets[0].state is DatasetState.CACHED
        with opened(daemon.path("coco")) as descriptor:
            if not running:
                daemon.stop()
            version.image.chmod(0o640)
            if not running:
                daemon.start()
            daemon.until(lambda: not os.path.ismount(daemon.path("coco").parent), "it is unmounted")
            assert os.read(descriptor, 100) == version.data[:100], "open files stay open"
        daemon.until(lambda: daemon.state("coco") is DatasetState.UNMOUNTED)
        assert "build it again" in daemon.dataset("coco").problem
        assert held(daemon) == {("job:1", "coco")}, "root may read it"
        version.image.chmod(0o644)
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == version.data
        assert events(daemon, "coco").count("staged") == 1, "its copy was kept"


def test_a_copy_under_way_is_stopped_when_its_image_is_closed(folder: Path) -> None:
    with RunningDaemon(folder, copy={"bandwidth": "1 MB"}) as daemon:
        version = make_version(daemon.source_dir, "coco", file_bytes=60_000_000)
        daemon.until(lambda: daemon.is_mounted("coco"))
        pin(daemon, 1, 0, "coco")
        daemon.until(lambda: daemon.wait("coco").datasets[0].state is DatasetState.STAGING)
        version.image.chmod(0o600)
        daemon.until(lambda: not os.path.ismount(daemon.path("coco").parent), "it is unmounted")
        daemon.until(lambda: list((daemon.cache_dir / ".staging").iterdir()) == [], "nothing is left of the copy")


def test_a_closed_image_that_is_private_inside_loses_the_pins_of_who_may_not_read_it_now(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        image = build_private(daemon, "secret")
        pin(daemon, 1, MEMBER.pw_uid, "secret")
        daemon.until(lambda: daemon.is_cached("secret"))
        image.chmod(0o600)
        os.chown(image, 0, 0)
        daemon.until(lambda: held(daemon) == set(), "the pin is taken back")
        daemon.until(lambda: not os.path.ismount(daemon.path("secret").parent), "its group may not enter any more")


def test_images_of_strangers_are_not_mounted_unless_their_owner_is_trusted(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        daemon.stop()
        version = make_version(daemon.source_dir, "coco")
        os.chown(version.image, STRANGER.pw_uid, 0)
        daemon.start()
        daemon.until(lambda: (found := daemon.dataset("coco")) and f"user {STRANGER.pw_uid}" in found.problem)
        assert daemon.state("coco") is DatasetState.UNMOUNTED
        daemon.stop()
        daemon.start(source_owners=[STRANGER.pw_name])
        daemon.until(lambda: daemon.is_mounted("coco"))
        os.chown(version.image, MEMBER.pw_uid, 0)
        daemon.until(lambda: "belongs to user" in daemon.dataset("coco").problem)
        assert daemon.is_mounted("coco"), "what was mounted while it was trusted stays"


def test_the_owner_of_the_source_is_trusted(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        os.chown(daemon.source_dir, STRANGER.pw_uid, 0)
        os.chown(make_version(daemon.source_dir, "coco").image, STRANGER.pw_uid, 0)
        daemon.until(lambda: daemon.is_mounted("coco"))


@pytest.mark.parametrize("mode", [0o644, 0o664, 0o646])
def test_an_image_that_others_may_write_is_not_mounted(folder: Path, mode: int) -> None:
    with RunningDaemon(folder) as daemon:
        daemon.stop()
        make_version(daemon.source_dir, "coco").image.chmod(mode)
        daemon.start()
        daemon.until(lambda: daemon.dataset("coco"))
        if mode == 0o644:
            daemon.until(lambda: daemon.is_mounted("coco"))
        else:
            daemon.until(lambda: "may be written by" in daemon.dataset("coco").problem)


def test_nothing_is_mounted_from_a_source_in_which_everybody_may_write(folder: Path) -> None:
    daemon = RunningDaemon(folder)
    make_version(daemon.source_dir, "coco")
    daemon.source_dir.chmod(0o777)
    with daemon:
        daemon.until(lambda: "may be written by everybody" in daemon.status().problem)
        assert daemon.status().datasets == ()
        daemon.source_dir.chmod(0o1777)
        daemon.until(lambda: daemon.is_mounted("coco"))
        assert daemon.status().problem == ""


def test_a_user_whom_the_name_service_does_not_know_pins_nothing_private_and_is_told(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        build_private(daemon, "secret")
        daemon.until(lambda: daemon.is_mounted("secret"))
        pin(daemon, 1, NOBODY_AT_ALL, "secret")
        unknown = pwd.struct_passwd(("x", "x", NOBODY_AT_ALL, 0, "", "/", "/bin/sh"))
        answer = wait_for(daemon, unknown, "secret")
        assert answer.settled
        assert "is not known to this node" in answer.datasets[0].problem
        assert daemon.dataset("secret").use_count == 0
        assert held(daemon) == {("job:1", "secret")}, "it may be a fault of the name service: nothing is taken back"


def cached_secret(daemon: RunningDaemon) -> None:
    """Have `secret` cached, and pinned by a user whom the name service does not know."""
    image = build_private(daemon, "secret")
    daemon.pin(1, "secret")
    daemon.until(lambda: daemon.is_cached("secret"))
    pin(daemon, 2, NOBODY_AT_ALL, "secret")
    daemon.release(1)
    assert image.exists()


def run_rounds(daemon: RunningDaemon) -> list[str]:
    """Run many rounds within an interval; returns what was logged meanwhile."""
    before = len(daemon.log())
    for _ in range(40):
        daemon.wait("secret")
    return [line for line in daemon.log()[before:] if "dataset=" in line]


def test_a_newer_image_of_what_somebody_unknown_pins_is_waited_for_at_rest(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        cached_secret(daemon)
        daemon.stop()
        (daemon.folder / "tree-secret").rename(daemon.folder / "old-tree")
        build(daemon, "secret", "--group", GROUP.gr_name, "--mode", "0640", "--replace")
        daemon.start(interval="600")
        daemon.until(lambda: daemon.dataset("secret").update_waiting)
        assert run_rounds(daemon) == []
        assert "when nobody pins the old one" in daemon.dataset("secret").problem


def test_the_room_of_what_somebody_unknown_pins_is_waited_for_at_rest(folder: Path) -> None:
    with RunningDaemon(folder, capacity="500 KB") as daemon:
        cached_secret(daemon)
        daemon.stop()
        make_version(daemon.source_dir, "coco", 1, file_bytes=300_000)
        daemon.start(interval="600")
        daemon.pin(3, "coco")
        daemon.until(lambda: daemon.is_mounted("coco", "secret"))
        daemon.until(lambda: "waits for room" in daemon.dataset("coco").problem)
        assert run_rounds(daemon) == []
        assert daemon.is_cached("secret")


def release(daemon: RunningDaemon, job_id: int, *names: str) -> tuple[str, ...]:
    return ask(daemon, "POST", "/v1/release", ReleaseRequest(job_id, names), ReleaseAnswer).released


def test_a_job_gives_back_its_own_pins_only_as_often_as_it_likes(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        for name in ("a", "b", "c"):
            make_version(daemon.source_dir, name)
        daemon.until(lambda: daemon.is_mounted("a", "b", "c"))
        pin(daemon, 1, MEMBER.pw_uid, "a", "b", "c")
        pin(daemon, 2, STRANGER.pw_uid, "a")
        (daemon.run_dir / "jobs" / "1").touch()  # as the prolog leaves it
        assert wait_for(daemon, MEMBER, "a", "b", "c").settled
        with pytest.raises(DeniedError, match="another user's"):
            as_user(STRANGER, release, daemon, 1)
        assert as_user(MEMBER, release, daemon, 1, "b", "nosuch") == ("b",)
        assert daemon.dataset("b").use_count == 0, "the answer comes when it is so"
        assert daemon.dataset("a").use_count == 2
        assert as_user(MEMBER, release, daemon, 1, "b") == ()
        assert release(daemon, 1) == ("a", "c")
        assert as_user(MEMBER, release, daemon, 1) == ()
        assert held(daemon) == {("job:2", "a")}
        assert events(daemon, "b")[-1] == "released-early"
        with pytest.raises(NotFoundError, match="job 3"):
            as_user(MEMBER, release, daemon, 3)
        assert daemon.is_cached("a", "b", "c"), "a copy stays while there is room"


def test_the_command_speaks_for_the_job_that_it_runs_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunningDaemon(folder) as daemon:
        make_version(daemon.source_dir, "coco")
        pin(daemon, 7, 0, "coco")
        monkeypatch.setenv("SCRATCH_SLURM_CONFIG", str(folder / "config.yaml"))
        for name in ("SLURM_JOB_ID", "SCRATCH_DATASETS_JOB"):
            monkeypatch.delenv(name, raising=False)
        assert run(["release"]) == 2
        assert "SLURM_JOB_ID is not set" in capsys.readouterr().err
        monkeypatch.setenv("SLURM_JOB_ID", "5")  # of a heterogeneous job: the leader
        monkeypatch.setenv("SCRATCH_DATASETS_JOB", "7")
        monkeypatch.setenv("SCRATCH_DATASETS", "coco")
        assert run(["release", "cocoo"]) == 4
        assert "did you mean coco?" in capsys.readouterr().err
        assert run(["release", "coco"]) == 0
        assert capsys.readouterr().out == "coco: released\n"
        assert held(daemon) == set()
        monkeypatch.delenv("SCRATCH_DATASETS_JOB")
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        pin(daemon, 7, 0, "coco")
        assert run(["release"]) == 0
        assert run(["release", "--job", "9", "--json"]) == 4
        assert run(["release", "--job", "-1"]) == 2
        daemon.stop()
        assert run(["release"]) == DaemonError.exit_code


@pytest.mark.parametrize("mode", ["644x", "0755", "0664", "0244", "7", "0o640", "\u0664640"])
def test_build_refuses_a_mode_that_no_image_may_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    (tmp_path / "file").touch()
    assert run(["build", str(tmp_path), "a", "--to", "/tmp", "--mode", mode]) == 2
    assert "--mode" in capsys.readouterr().err


def test_build_refuses_an_unknown_group_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    assert run(["build", str(tmp_path / "tree"), "a", "--to", str(tmp_path), "--group", "no such group"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_a_user_cannot_build_for_a_group_that_is_not_his(folder: Path) -> None:
    def attempt() -> None:
        with Publication(open_directory(folder), "a", mode=0o640, gid=0):
            pass

    folder.chmod(0o777)
    with pytest.raises(DeniedError, match="may not give a file to group 0 here"):
        as_user(STRANGER, attempt)
    assert list(folder.iterdir()) == []


def test_an_access_control_list_on_the_root_directory_counts_as_open_to_all(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with opened(tmp_path) as descriptor:
        assert roots.root_permissions(descriptor) == Permissions(0, 0, 0o750)
        # Version 2; user::rwx, user:nobody:r-x, group::r-x, mask::r-x, other::---.
        # Source: acl(5), linux/posix_acl_xattr.h
        entries = [
            (1, 7, 2**32 - 1),
            (2, 5, STRANGER.pw_uid),
            (4, 5, 2**32 - 1),
            (16, 5, 2**32 - 1),
            (32, 0, 2**32 - 1),
        ]
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
        with contextlib.suppress(OSError):
            os.setxattr(tmp_path, "system.posix_acl_access", value)
        if not os.listxattr(tmp_path):
            pytest.skip("this file system has no access control lists")
        assert roots.root_permissions(descriptor) == Permissions(0, 0, 0o755)


def test_groups_come_from_the_name_service() -> None:
    assert users.read_groups(MEMBER.pw_uid) == tuple(os.getgrouplist(MEMBER.pw_name, MEMBER.pw_gid))
    assert users.read_uids([STRANGER.pw_name, "12", 13]) == (STRANGER.pw_uid, 12, 13)
    with pytest.raises(NotFoundError, match="user 3999999999"):
        users.read_groups(NOBODY_AT_ALL)
    with pytest.raises(NotFoundError, match="'no such user'"):
        users.read_uids(["no such user"])
