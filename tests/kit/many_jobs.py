"""Many short jobs, drawn at random, over a cache that is too small for them: what they are, and what becomes of them.

The jobs are a user's. So sdiag's counts for root are of slurmd, of our daemons and of our hooks alone.
"""

import functools
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import msgspec

from scratch_slurm.domain.messages import NodeStatus
from scratch_slurm.node import daemon_client
from tests.kit.support import MB, SHORT_S, Dataset, NodeView, ask_command, make_dataset, until
from tests.local_cluster import LocalCluster, kernel
from tests.local_cluster.jobs import JobInfo, parse_job

USER = "nobody"
CAPACITY_BYTES = 24 * MB
# The last one does not fit alone.
IMAGES_BYTES = {f"many{number}": size * MB for number, size in enumerate((2, 3, 4, 6, 8, 8, 12, 30))}
UNKNOWN = "nosuch"

IN_FLIGHT = 36
"""Submitted and not at their end, arrays counted once."""
PAUSE_S = 0.2
PATIENCE_S = 120.0
"""Some job ends within so long."""

# Of what a job's log may say, these are no normal want of room or time.
_NO_WORD = "left no word"
_BAD_WORDS = (_NO_WORD, "nothing is cached", "nothing more is cached", "was cut short", "cannot be read", "wrong")


class Fate(StrEnum):
    """What becomes of a job."""

    RUNS = "runs"
    RELEASES = "gives its datasets back early"
    REQUEUED = "is requeued while it runs"
    REQUEUED_IN_PROLOG = "is requeued in its prolog"
    CANCELLED = "is cancelled while it runs"
    CANCELLED_PENDING = "is cancelled before it runs"
    CANCELLED_IN_PROLOG = "is cancelled in its prolog"

    @property
    def is_cancelled(self) -> bool:
        return self.name.startswith("CANCELLED")

    @property
    def is_requeued(self) -> bool:
        return self.name.startswith("REQUEUED")


@dataclass(frozen=True)
class Plan:
    """One job, or one array.

    Args:
        wait: of --datasets-wait; empty: not given.
        tasks: of an array; 0: it is none.
        work_s: it does nothing for so long between two readings.
    """

    datasets: tuple[str, ...]
    wait: str
    nodes: int
    tasks: int
    exclusive: bool
    work_s: float
    fate: Fate

    @property
    def jobs(self) -> int:
        return max(1, self.tasks)


def draw_plans(rng: random.Random, jobs: int) -> list[Plan]:
    """Draw plans of `jobs` jobs in all, the tasks of arrays counted."""
    plans: list[Plan] = []
    left = jobs
    while left > 0:
        plan = _draw_plan(rng)
        plan = replace(plan, tasks=min(plan.tasks, left))
        plans.append(plan)
        left -= plan.jobs
    return plans


def _draw_plan(rng: random.Random) -> Plan:
    datasets = rng.sample(list(IMAGES_BYTES), rng.choice((0, 1, 1, 1, 2, 2, 3)))
    if datasets and rng.random() < 0.05:
        datasets.append(UNKNOWN)
    shape = rng.random()
    fates = {
        Fate.RUNS: 50,
        Fate.RELEASES: 10,
        Fate.REQUEUED: 5,
        Fate.REQUEUED_IN_PROLOG: 3,
        Fate.CANCELLED: 10,
        Fate.CANCELLED_PENDING: 8,
        Fate.CANCELLED_IN_PROLOG: 10,
    }
    fate = rng.choices(list(fates), list(fates.values()))[0]
    is_array = shape > 0.9 and not fate.is_requeued
    return Plan(
        datasets=tuple(datasets),
        wait=rng.choice(("", "", "0", "1s", "all")),
        nodes=rng.randint(2, 4) if shape < 0.15 else 1,
        tasks=rng.randint(2, 6) if is_array else 0,
        exclusive=rng.random() < 0.08,
        work_s=round(rng.uniform(0.0, 1.5), 2),
        fate=fate,
    )


def make_datasets(cluster: LocalCluster) -> dict[str, Dataset]:
    """Fill the source; every node has all mounted when it returns."""
    made = {
        name: make_dataset(cluster.source_dir, name, data_bytes=MB, image_bytes=size)
        for name, size in IMAGES_BYTES.items()
    }
    for node in cluster.nodes:
        view = NodeView(cluster, node.name)
        until(functools.partial(_has_mounted, view, made), f"all are mounted on {view.name}")
    return made


def _has_mounted(view: NodeView, names: Iterable[str]) -> bool:
    return all(view.mounted(name)[1] for name in names)


@dataclass
class ManyJobs:
    """Runs plans on a cluster; `run` and then `find_wrong`.

    Args:
        datasets: all of the source's.
    """

    cluster: LocalCluster
    plans: Sequence[Plan]
    datasets: Mapping[str, Dataset]
    submitted: dict[int, Plan] = field(default_factory=dict)
    most_bytes: Counter[str] = field(default_factory=Counter)
    """Node -> the most that was seen used, by the directory's and the daemon's word."""
    looks: int = 0
    """At the queue, and at every node."""
    met: Counter[Fate] = field(default_factory=Counter)
    in_prolog: int = 0
    """Fates that were met while a prolog ran."""
    problems: list[str] = field(default_factory=list)
    """Seen on the way."""
    took_s: float = 0.0
    events: dict[str, dict[str, int]] = field(default_factory=dict)
    """What the daemons did -> node -> how often."""

    @property
    def views(self) -> list[NodeView]:
        return [NodeView(self.cluster, node.name) for node in self.cluster.nodes]

    @property
    def _work(self) -> Path:
        return self.cluster.layout.work_dir

    # The run.

    def run(self) -> None:
        """Submit all, see to their fates, and return when all have ended, epilogs included."""
        began_at = time.monotonic()
        self._write_reader()
        ask = ask_command(self.cluster)
        waiting, alive, is_met = list(self.plans), dict[int, Plan](), set[int]()
        ended_at = began_at
        while waiting or alive:
            while waiting and len(alive) < IN_FLIGHT:
                plan = waiting.pop(0)
                alive[self._submit(plan, ask)] = plan
            rows = self._squeue()
            for job, plan in list(alive.items()):
                if job not in rows:
                    self.submitted[job] = alive.pop(job)
                    ended_at = time.monotonic()
                elif job not in is_met and self._meet_fate(job, plan, rows[job]):
                    is_met.add(job)
            assert time.monotonic() < ended_at + PATIENCE_S, f"no job ends any more: {rows}"
            self._look()
            time.sleep(PAUSE_S)
        self.took_s = time.monotonic() - began_at
        self.events = {event: self.count(event) for event in ("staged", "evicted", "stopped", "features")}

    def _write_reader(self) -> None:
        """The program of the jobs: read datasets from their devices, past the page cache, and compare."""
        sums = self._work / "sums"
        sums.mkdir(exist_ok=True)
        mount_dir = self.cluster.settings["mount_dir"]
        for name, dataset in self.datasets.items():
            (sums / name).write_text(f"{dataset.sha256}  {mount_dir}/{name}/data\n")
        (self._work / "read.sh").write_text(f"""#!/bin/sh
for name; do
    dd if={mount_dir}/$name/data of=/dev/null iflag=nocache count=0 status=none &&
        sha256sum --check --status {sums}/$name || {{ echo "wrong: $name on $(hostname)"; exit 1; }}
done
echo "right on $(hostname)"
""")

    def _submit(self, plan: Plan, ask: str) -> int:
        words = " ".join(name for name in plan.datasets if name != UNKNOWN and name in self.datasets)
        everywhere = f"srun --ntasks-per-node=1 --nodes={plan.nodes} " if plan.nodes > 1 else ""
        read = f"{everywhere}sh {self._work}/read.sh {words} || exit 1\n"
        middle = {
            Fate.RELEASES: f"""{ask} POST /v1/release '{{"job_id": $SLURM_JOB_ID}}'\n""" if words else "",
            Fate.REQUEUED: "[ ${SLURM_RESTART_COUNT:-0} = 1 ] || exec sleep 600\n",
            Fate.REQUEUED_IN_PROLOG: "[ ${SLURM_RESTART_COUNT:-0} = 1 ] || exec sleep 600\n",
            Fate.CANCELLED: "exec sleep 600\n",
            Fate.CANCELLED_IN_PROLOG: "exec sleep 600\n",
        }.get(plan.fate, "")
        options = [f"--nodes={plan.nodes}", "--requeue", "--open-mode=append"]
        options += [f"--datasets={','.join(plan.datasets)}"] if plan.datasets else []
        options += [f"--datasets-wait={plan.wait}"] if plan.datasets and plan.wait else []
        options += [f"--array=1-{plan.tasks}"] if plan.tasks else []
        options += ["--exclusive"] if plan.exclusive else []
        options += ["--hold"] if plan.fate is Fate.CANCELLED_PENDING else []
        return self.cluster.sbatch(f"{read}{middle}sleep {plan.work_s}\n{read}", *options, user=USER)

    def _squeue(self) -> dict[int, list[tuple[str, str]]]:
        """Job, or array -> state and reason, of each task."""
        text = self.cluster.run(["squeue", "--noheader", "--array", "--format=%F|%T|%r"], user=USER).stdout
        rows: dict[int, list[tuple[str, str]]] = {}
        for line in text.splitlines():
            job, state, reason = line.split("|", 2)
            rows.setdefault(int(job), []).append((state, reason))
        return rows

    def _meet_fate(self, job: int, plan: Plan, rows: Sequence[tuple[str, str]]) -> bool:
        in_prolog = any(state == "CONFIGURING" or reason == "Prolog" for state, reason in rows)
        running = any(state == "RUNNING" and reason != "Prolog" for state, reason in rows)
        due = {
            Fate.REQUEUED: running,
            Fate.REQUEUED_IN_PROLOG: running or in_prolog,
            Fate.CANCELLED: running,
            Fate.CANCELLED_PENDING: True,
            Fate.CANCELLED_IN_PROLOG: running or in_prolog,
        }.get(plan.fate, False)
        if not due:
            return False
        words = ["scancel", str(job)] if plan.fate.is_cancelled else ["scontrol", "requeue", str(job)]
        if self.cluster.run(words, user=USER, check=False).returncode != 0:
            return False  # just now it could not be: next time
        self.met[plan.fate] += 1
        self.in_prolog += in_prolog
        return True

    def _look(self) -> None:
        """See what the caches take."""
        self.looks += 1
        for view in self.views if self.datasets else []:
            status = node_status(view)
            on_disk_bytes = view.used_bytes()
            used_bytes = max(on_disk_bytes, status.used_bytes)
            self.most_bytes[view.name] = max(self.most_bytes[view.name], used_bytes)
            if used_bytes > CAPACITY_BYTES:
                self.problems.append(f"{view.name} takes {on_disk_bytes} bytes, and says {status.used_bytes}")
            if status.problem:
                self.problems.append(f"{view.name}: {status.problem}")

    # The end.

    def find_wrong(self) -> list[str]:
        """Say all that is not as it must be when every job has ended."""
        wrong = [*self.problems, *self._wrong_jobs()]
        wrong += [f"{node.name} is {node.state}: {node.reason}" for node in self.cluster.drained()]
        for view in self.views if self.datasets else []:
            wrong += [f"{view.name}: {what}" for what in self._wrong_on(view)]
        return wrong

    def _wrong_jobs(self) -> list[str]:
        text = self.cluster.run(["scontrol", "show", "job", "--oneliner"], user=USER).stdout
        jobs = [parse_job(line) for line in text.splitlines() if line]
        wrong = []
        for job in jobs:
            plan = self.submitted[int(job.fields.get("ArrayJobId", job.job_id))]
            wrong += [f"job {job.job_id} {plan}: {what}" for what in _wrong_with(job, plan)]
        seen = {int(job.fields.get("ArrayJobId", job.job_id)) for job in jobs}
        return wrong + [f"job {job} {plan}: Slurm lost it" for job, plan in self.submitted.items() if job not in seen]

    def _wrong_on(self, view: NodeView) -> list[str]:
        names = sorted(self.datasets)
        view.statuses(*names)  # so that the daemon has seen the ledger as it is now
        status = msgspec.json.decode(view.command("status", "--json").stdout, type=NodeStatus)
        wrong = [f"use count of {each.name}: {each.use_count}" for each in status.datasets if each.use_count]
        wrong += [f"pin {pin}" for pin in view.pins()]
        wrong += [f"report {path.name}" for path in (view.path("run_dir") / "jobs").iterdir()]
        wrong += [f"partial copy {name}" for name in view.staging()]
        mounts = sorted(name for name, _, _ in view.mounts())
        if mounts != names:
            wrong.append(f"mounts {mounts}")
        log = self.cluster.daemon_log(view.name).splitlines()
        return wrong + [line for line in log if not line.startswith(("INFO ", "WARNING ")) or " degraded " in line]

    def find_wrong_devices(self) -> list[str]:
        """More loop devices than datasets on nodes, those that read a deleted image included."""
        loops = kernel.loops_under(self.cluster.directory)
        return [] if len(loops) == len(self.views) * len(self.datasets) else [str(loop) for loop in loops]

    def count(self, event: str) -> dict[str, int]:
        """Node -> how often its daemon logged an event."""
        logs = {view.name: self.cluster.daemon_log(view.name).splitlines() for view in self.views}
        return {node: sum(line.startswith(f"INFO {event} ") for line in log) for node, log in logs.items()}


def _wrong_with(job: JobInfo, plan: Plan) -> list[str]:
    state = "CANCELLED" if plan.fate.is_cancelled else "COMPLETED"
    wrong = [] if job.state == state else [f"is {job.state}, exit code {job.exit_code}, {job.reason}"]
    if job.restarts != plan.fate.is_requeued:
        wrong.append(f"was requeued {job.restarts} times")
    output = Path(job.output).read_text() if Path(job.output).exists() else ""
    wrong += [line for line in output.splitlines() if _is_bad(line, plan)]
    if state == "COMPLETED" and output.count("right on ") < 2 * plan.nodes:
        wrong.append(f"has not read all: {output}")
    return wrong


def _is_bad(line: str, plan: Plan) -> bool:
    # On a node that remembers its first run, the script of a requeued job does not wait for the prolog when Slurm's two
    # messages arrive in the wrong order (22.05).
    is_early = plan.fate.is_requeued and _NO_WORD in line
    return any(words in line for words in _BAD_WORDS) and not is_early


def node_status(view: NodeView) -> NodeStatus:
    """Ask a daemon for the latest it knows of its node."""
    answer = daemon_client.request(view.path("run_dir") / "daemon.sock", "GET", "/v1/status", None, SHORT_S)
    return msgspec.json.decode(answer, type=NodeStatus)


def describe(many: ManyJobs) -> list[str]:
    """What a run was, in all and node by node, for people."""
    jobs = sum(plan.jobs for plan in many.plans)
    fates = ", ".join(f"{count} {fate.value}" for fate, count in sorted(many.met.items()))
    lines = [
        f"{jobs} jobs in {len(many.plans)} submissions, {many.took_s:.0f} s; capacity {CAPACITY_BYTES} bytes,"
        f" {sum(IMAGES_BYTES.values())} bytes of images, {many.looks} looks at each node",
        f"submissions: {fates}; {many.in_prolog} of these in a prolog",
        "",
        f"{'node':8}{'most bytes':>12}" + "".join(f"{event:>10}" for event in many.events),
    ]
    for node, most_bytes in sorted(many.most_bytes.items()):
        lines.append(f"{node:8}{most_bytes:12}" + "".join(f"{counts[node]:10}" for counts in many.events.values()))
    return lines
