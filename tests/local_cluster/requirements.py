"""What a machine must have to run a local cluster."""

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.local_cluster.layout import CLIENT_PATH

_PROGRAMS: Final = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "mksquashfs": "squashfs-tools",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}


def has_job_submit_lua() -> bool:
    """Tell whether Slurm was built with the plugin that runs job_submit.lua; slurmctld does not start without it."""
    return any(Path("/usr/lib").glob("*/slurm*/job_submit_lua.so"))


def slurm_release() -> tuple[int, int]:
    """The release of Slurm that is installed: (22, 5) of 22.05.8; (0, 0) where there is none."""
    try:
        # The one command that tells it without any configuration.
        said = subprocess.run(["slurmd", "-V"], env={"PATH": CLIENT_PATH}, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    found = re.search(r"(\d+)\.(\d+)", said.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def missing_for_root_tests() -> list[str]:
    """What is missing for loop devices and mounts; empty when nothing is."""
    if os.geteuid() != 0:
        return ["root"]
    return [] if Path("/dev/loop-control").exists() else ["/dev/loop-control (modprobe loop)"]


def missing_for_cluster() -> list[str]:
    """What is missing for a local cluster; empty when nothing is."""
    missing = missing_for_root_tests()
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=CLIENT_PATH) is None:
            missing.append(f"{program} (Debian package {package})")
    try:
        pwd.getpwnam("munge")
    except KeyError:
        missing.append("the user munge (Debian package munge)")
    return missing
