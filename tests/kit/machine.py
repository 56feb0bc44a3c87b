"""A machine that a real systemd boots: a Debian root in namespaces of its own, with Slurm and scratch-slurm."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.kit.wheels import make_wheels
from tests.local_cluster.claim import choose_ports

REPOSITORY: Final = Path(__file__).parents[2]
BOOT: Final = REPOSITORY / "tests" / "systemd" / "boot.sh"
_UNSHARE: Final = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child", "--")

# What would change the machine around it: kernel settings, /dev.
_MASKED: Final = (
    "systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-kernel.socket",
    "systemd-udevd-control.socket", "systemd-sysctl.service", "systemd-modules-load.service",
    "systemd-tmpfiles-setup-dev.service", "systemd-random-seed.service", "systemd-journald-dev-log.socket",
    "systemd-remount-fs.service", "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "getty.target",
    "systemd-logind.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer",
    "systemd-networkd-wait-online.service", "networking.service",
)  # fmt: skip

_SLURM_CONF: Final = """\
ClusterName=machine
SlurmctldHost=node1(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
MpiDefault=none
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=ignore_prefer_validation
JobSubmitPlugins=lua
PrologFlags=Alloc
ReturnToService=2
MinJobAge=86400
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
SlurmctldDebug=verbose
SlurmctldPort={controller}
NodeName=node1 NodeAddr=127.0.0.1 Port={node} CPUs=8 RealMemory=1000 Feature=gpu State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

CONFIG: Final = """\
source_dir: /shared/datasets
cache_dir: /ssd/scratch-slurm
capacity: 200 MB
reserve: 0
interval: 1s
slurm:
  reconcile_interval: 2s
"""

_GOES_LAST: Final = "[Unit]\nBefore=scratch-slurmd.service slurmd.service\n"

# Signs of life are wanted sooner than every minute.
_DROP_IN: Final = "[Service]\nWatchdogSec=8\nRestartSec=1\n"


class Machine:
    """One machine; `boot` starts it.

    Args:
        tree: a Debian root with systemd, Slurm, munge, a compiler and Python.
        work: an empty directory on a file system that may hold a cache.
    """

    def __init__(self, tree: Path, work: Path) -> None:
        self._tree = tree
        self.work = work
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup = _cgroup2() / f"scratch-slurm-test-{os.getpid()}"

    def path(self, inside: str) -> Path:
        """Where a file that the machine wrote is found once it is off, or is put before it boots."""
        path = self.work / "upper" / inside.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def install(self) -> None:
        """`make install` and what docs/ADMIN.md says of Slurm's files."""
        source, wheels = self.path("/src"), self.work / "wheels"
        unwanted = shutil.ignore_patterns(
            ".git", ".venv", "build", "*.so", "*.o", "built-with", "__pycache__", ".*_cache"
        )
        shutil.copytree(REPOSITORY, source, ignore=unwanted)
        wheels.mkdir()
        make_wheels(wheels)
        shutil.copytree(wheels, source / "build" / "wheels")
        self._run_offline("make", "-s", "-C", "/src", "install", "PYTHON=/usr/bin/python3")
        controller, node = choose_ports(2)
        lib = self.path("/usr/local/lib/scratch-slurm")
        texts = {
            "/etc/slurm/slurm.conf": _SLURM_CONF.format(controller=controller, node=node),
            "/etc/slurm/cgroup.conf": "CgroupPlugin=cgroup/v1\n",
            "/etc/slurm/plugstack.conf": (lib / "plugstack.conf").read_text(),
            "/etc/slurm/job_submit.lua": (lib / "job_submit.lua").read_text(),
            "/etc/scratch-slurm/config.yaml": CONFIG,
            "/etc/systemd/system/scratch-slurmd.service.d/test.conf": _DROP_IN,
            # At a shutdown the controller goes last, as on a machine of its own.
            "/etc/systemd/system/slurmctld.service.d/test.conf": _GOES_LAST,
            "/etc/hostname": "node1\n",
            "/etc/hosts": "127.0.0.1 localhost node1\n",
        }
        for path, text in texts.items():
            self.path(path).write_text(text)
        for unit in _MASKED:
            with contextlib.suppress(FileExistsError):
                self.path(f"/etc/systemd/system/{unit}").symlink_to("/dev/null")
        for directory in ("/var/spool/slurmctld", "/var/spool/slurmd", "/var/log/journal"):
            self.path(directory).mkdir()
        self._run_offline("systemctl", "set-default", "multi-user.target")
        self._run_offline("systemctl", "enable", "scratch-slurmd.service", "slurmd", "slurmctld", "munge")

    def _run_offline(self, *words: str) -> None:
        done = subprocess.run(
            [*_UNSHARE, str(BOOT), str(self._tree), str(self.work), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def boot(self) -> None:
        """Start systemd, and wait until the system runs."""
        self._cgroup.mkdir()
        enter = f"echo $$ >{self._cgroup}/cgroup.procs; exec " + " ".join([*_UNSHARE, str(BOOT), '"$@"'])
        self._process = subprocess.Popen(
            ["sh", "-c", enter, "sh", str(self._tree), str(self.work)], stdin=subprocess.DEVNULL, start_new_session=True
        )
        until(self._is_up, "the system is up", 120)

    def _is_up(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "the machine has ended"
        return self.run("systemctl", "is-system-running", check=False) in ("running", "degraded")

    def _enter(self) -> list[str]:
        assert self._process is not None
        pid = self._process.pid
        init = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        return ["nsenter", f"--target={init}", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wd", "--"]

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command as an administrator; returns what it said."""
        try:
            enter = self._enter()
        except (OSError, IndexError):
            return ""
        env = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        done = subprocess.run([*enter, *words], env=env, capture_output=True, text=True, timeout=100, check=False)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return (done.stdout + done.stderr).strip()

    def popen(self, *words: str) -> "subprocess.Popen[str]":
        """Start a command with pipes."""
        return subprocess.Popen(
            [*self._enter(), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin"},
        )

    def unit(self, name: str, unit: str = "scratch-slurmd") -> str:
        """One property of a unit, as `systemctl show` tells it."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit)

    def journal(self, unit: str = "scratch-slurmd") -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def power_off(self, timeout_s: float = 120.0) -> None:
        """Shut the system down in order, and wait for its end."""
        assert self._process is not None
        self.run("systemctl", "poweroff", check=False)
        self._process.wait(timeout_s)

    def destroy(self) -> None:
        """End whatever there is."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # --kill-child
            self._process.wait()
        if self._cgroup.exists():
            until(lambda: _remove_cgroup(self._cgroup), "the machine's cgroup is empty")


def _cgroup2() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        words = line.split()
        if words[2] == "cgroup2":
            return Path(words[1])
    raise AssertionError("no cgroup2 is mounted on this machine")


def _remove_cgroup(directory: Path) -> bool:
    for below in sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            below.rmdir()
    with contextlib.suppress(OSError):
        directory.rmdir()
    return not directory.exists()


def until(is_so: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    """Wait for something that is about to be so."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)


@contextlib.contextmanager
def booted(tree: Path, work: Path) -> Iterator[Machine]:
    """Install a machine and boot it."""
    machine = Machine(tree, work)
    try:
        machine.install()
        machine.boot()
        yield machine
    except BaseException:
        print(machine.run("journalctl", "--no-pager", "--lines=80", check=False), file=sys.stderr)
        raise
    finally:
        machine.destroy()
