"""The text of the cluster's configuration files, as pure functions of its layout."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.local_cluster.layout import HEAD, Layout

HOOK_NAME: Final = "50-scratch-slurm"

# Numbers that differ from Slurm's defaults do so for tests: they should wait for nothing but the work.
_SLURM_OPTIONS: Final = {
    "ClusterName": "local",
    "SlurmUser": "root",
    "AuthType": "auth/munge",
    "MpiDefault": "none",
    "MailProg": "/bin/true",
    # No cgroups and no accounting: neither needs to exist on the machine.
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "JobAcctGatherType": "jobacct_gather/none",
    "AccountingStorageType": "accounting_storage/none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_CPU",
    # More CPUs than the machine has: jobs of tests wait more than they compute.
    "SlurmdParameters": "config_overrides",
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": (
        "batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,ignore_prefer_validation"
    ),
    # Alloc: the prolog runs on every node when the job starts. Without DeferBatch the batch step waits
    # for its own node's prolog only.
    "PrologFlags": "Alloc",
    "PrologEpilogTimeout": "1800",
    "ReturnToService": "2",
    "JobRequeue": "1",
    "KillWait": "2",
    "CompleteWait": "0",
    "InactiveLimit": "0",
    "MinJobAge": "86400",
    "MessageTimeout": "30",
    "SlurmctldTimeout": "30",
    "SlurmdTimeout": "60",
    "PropagateResourceLimits": "NONE",
    "SlurmctldDebug": "verbose",
    "SlurmdDebug": "verbose",
}


def slurm_conf(layout: Layout) -> str:
    """Write slurm.conf; `layout.slurm_options` replace or follow the lines here."""
    options = {
        **_SLURM_OPTIONS,
        "AuthInfo": f"socket={layout.munge_socket}",
        "SlurmctldHost": f"{HEAD}(127.0.0.1)",
        "SlurmctldPort": str(layout.controller_port),
        "StateSaveLocation": str(layout.machine_dir(HEAD) / "state"),
        "SlurmctldPidFile": str(layout.machine_dir(HEAD) / "slurmctld.pid"),
        "SlurmctldLogFile": str(layout.log("slurmctld")),
        "SlurmdSpoolDir": str(layout.machine_dir("%n") / "spool"),
        "SlurmdPidFile": str(layout.machine_dir("%n") / "slurmd.pid"),
        "SlurmdLogFile": str(layout.log("slurmd-%n")),
        "PlugStackConfig": str(layout.directory / "plugstack.conf"),
        **layout.slurm_options,
    }
    if layout.slurm_runs_hooks:
        options |= {hook.capitalize(): f"{layout.directory}/{hook}.d/*" for hook in ("prolog", "epilog")}
    lines = [f"{key}={value}" for key, value in options.items()]
    for name, port in zip(layout.node_names, layout.node_ports, strict=True):
        lines.append(
            f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port}"
            f" CPUs={layout.cpus_per_node} RealMemory=4096 State=UNKNOWN"
        )
    lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    return "\n".join(lines) + "\n"


def plugstack_conf(layout: Layout, *, plugin_exists: bool) -> str:
    """Write plugstack.conf: our plugin, once it is built."""
    if not plugin_exists:
        return "# spank/scratch_slurm.so is not built: make -C spank\n"
    words = ["optional", str(layout.spank_plugin)]
    words += [f"{key}={layout.settings[key]}" for key in ("mount_dir", "run_dir")]
    if not layout.slurm_runs_hooks:
        words.append(f"hooks={layout.directory}")
    return " ".join(words) + "\n"


def job_submit_lua(layout: Layout) -> str:
    """Write job_submit.lua as sites are told to: it loads ours."""
    example = layout.job_submit_script.with_name("job_submit.lua").read_text()
    return example.replace("/usr/local/lib/scratch-slurm/scratch_slurm.lua", str(layout.job_submit_script))


def config_yaml(settings: Mapping[str, Any], indent: str = "") -> str:
    """Write scratch-slurm's configuration; every scalar as JSON, which YAML contains."""
    lines = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key}:\n{config_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{key}: {json.dumps(value)}\n")
    return "".join(lines)


def hook_wrapper(layout: Layout, stub: Path) -> str:
    """Write a hook that points the real stub at this cluster; without the stub it does nothing."""
    return f"""#!/bin/sh
[ -x {shlex.quote(str(stub))} ] || exit 0
SCRATCH_SLURM_CONFIG={shlex.quote(str(layout.config))}
SCRATCH_SLURM_BIN={shlex.quote(str(layout.bin_dir))}
export SCRATCH_SLURM_CONFIG SCRATCH_SLURM_BIN
exec {shlex.quote(str(stub))}
"""


def cgroup_conf(release: tuple[int, int]) -> str:
    """Write cgroup.conf: nothing here uses cgroups, and slurmd looks for them all the same from 24.05 on."""
    return "CgroupPlugin=disabled\n" if release >= (24, 5) else ""


def config_files(layout: Layout, *, plugin_exists: bool, release: tuple[int, int]) -> dict[Path, str]:
    """All generated files; those in prolog.d and epilog.d are programs.

    Args:
        release: Slurm's, (22, 5) for 22.05.
    """
    files = {
        layout.slurm_conf: slurm_conf(layout),
        layout.directory / "plugstack.conf": plugstack_conf(layout, plugin_exists=plugin_exists),
        layout.directory / "job_submit.lua": job_submit_lua(layout),
        layout.directory / "cgroup.conf": cgroup_conf(release),
        layout.config: config_yaml(layout.settings),
        **{layout.directory / name: text for name, text in layout.files.items()},
    }
    for hooks in ("prolog.d", "epilog.d"):
        stub = layout.repository / hooks / HOOK_NAME
        files[layout.directory / hooks / HOOK_NAME] = hook_wrapper(layout, stub)
    return files
