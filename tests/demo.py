"""`make demo`: the main job on a real local Slurm cluster, step by step; `--keep` (`make cluster`) leaves it up.

Everything shown is what Slurm, the node daemons and the jobs say; nothing is printed that was not seen.
"""

import argparse
import functools
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.kit.demo_data import find_real_data, lay_out
from tests.local_cluster import AlreadyRunsError, ClusterError, LocalCluster
from tests.local_cluster.__main__ import DEFAULT_DIRECTORY

_NODES = 3
# Small enough that a third data set needs the room of another; slow enough that the copies can be watched.
# So short a horizon pays for no copy: what happens here happens because a job asked.
_SETTINGS = {"capacity": "48 MB", "copy": {"bandwidth": "8 MB"}, "horizon": "1s"}
_POLL_S = 0.5
_LIMIT_S = 90.0

_READ_AND_CHECK = """\
for d in $(echo $SCRATCH_DATASETS | tr , ' '); do
    served=$(scratch-slurm status --json $d | sed -n 's/.*"state": *"\\([a-z]*\\)".*/\\1/p')
    cd $SCRATCH_DATASETS_DIR/$d && sha256sum --quiet --check {sums}/$d.sha256 \\
        && echo "$(hostname): $d: SHA-256 of $(wc -l <{sums}/$d.sha256) files is right; state: $served"
done
"""


class DemoError(Exception):
    """What was shown is not what should have happened."""


class Demo:
    """The steps, on one cluster."""

    def __init__(self, cluster: LocalCluster, console: Console) -> None:
        self.cluster = cluster
        self.console = console
        self.sums = cluster.directory / "work" / "data"
        self.env = {"SCRATCH_SLURM_CONFIG": str(cluster.layout.config), "COLUMNS": "100"}
        self.number = 0

    def step(self, title: str) -> None:
        self.number += 1
        self.console.print(f"\n[bold cyan]{self.number}. {title}[/]")

    def say(self, text: str) -> None:
        self.console.print(f"   {text}", markup=False, highlight=False)

    def show(self, text: str) -> None:
        """Print another program's words, set off by a bar."""
        for line in text.rstrip().splitlines():
            self.console.print(f"   [dim]|[/] {line}" if "[" not in line else f"   | {line}", highlight=False)

    def build_images(self) -> None:
        """Pack the real data into images in the source."""
        self.step("Build the images: scratch-slurm build DIR NAME")
        for data in find_real_data():
            directory = lay_out(data, self.sums)
            words = ["scratch-slurm", "build", "--compression", "none", "--json", str(directory), data.name]
            built = json.loads(self.cluster.run(words, env=self.env).stdout)
            size = built["manifest"]["size_bytes"] / 1e6
            self.say(f"{data.name:<8} {size:5.1f} MB, {len(data.files):>3} files: {data.origin}")
        self.sums.chmod(0o755)
        for node in self.cluster.nodes:
            self.until(
                functools.partial(self.has_all, node.name),
                f"{node.name} to mount the images",
            )
        self.say(f"Every node has mounted all four below {self.cluster.settings['mount_dir']}, read from the source.")

    def preheat(self) -> None:
        """One job, two datasets; its start waits for them."""
        self.step("A job asks for two datasets; its prolog pins them and waits while they are staged")
        script = "#SBATCH --datasets=unicode,sklearn\n#SBATCH --datasets-wait=2m\n#SBATCH --nodelist=n1\n"
        job = self.submit(script, self.check())
        seen = ""
        while True:
            unicode = self.dataset("n1", "unicode")
            line = f"{unicode['state']:<8} {_bar(unicode)}  use count {unicode.get('use_count', 0)}"
            if line != seen:
                reason = self.cluster.jobs(job)[0].reason
                self.say(f"n1 unicode {line}" + (f"   squeue: {reason}" if reason != "None" else ""))
            seen = line
            if unicode["state"] == "cached" or self.cluster.jobs(job)[0].is_final:
                break
            time.sleep(_POLL_S)
        self.finish(job)
        self.expect_use("n1", {"unicode": 0, "sklearn": 0}, "after the epilog")

    def switch_under_a_reader(self) -> None:
        """A job that does not wait, and whose open file is switched to the SSD while it reads."""
        self.step("A job that does not wait: it reads the source at once, and its open file moves to the SSD")
        script = "#SBATCH --datasets=unicode\n#SBATCH --datasets-wait=0\n#SBATCH --nodelist=n2\n"
        job = self.submit(script, _switch_script())
        self.finish(job)

    def share(self) -> None:
        """Two jobs with one dataset: the use count says so."""
        self.step("Two jobs share a dataset on n1: one copy, use count 2, then 1, then 0")
        gates = [self.sums / f"end-{number}" for number in (1, 2)]
        jobs = []
        for gate in gates:
            script = "#SBATCH --datasets=unicode\n#SBATCH --nodelist=n1\n"
            jobs.append(self.submit(script, f"until [ -e {gate} ]; do sleep 0.1; done\n"))
        self.expect_use("n1", {"unicode": 2}, f"held by jobs {jobs[0]} and {jobs[1]}")
        self.show(self.cluster.run(["scratch-slurm", "status"], node="n1", env=self.env).stdout)
        for gate, job, left in zip(gates, jobs, (1, 0), strict=True):
            gate.touch()
            self.cluster.wait_job(job)
            self.expect_use("n1", {"unicode": left}, f"job {job} has ended")

    def evict(self) -> None:
        """A third dataset that needs the room."""
        self.step("A job on n1 asks for gcide, and the cache (48 MB) is full: what nobody pins makes room")
        job = self.submit("#SBATCH --datasets=gcide\n#SBATCH --datasets-wait=2m\n#SBATCH --nodelist=n1\n", self.check())
        self.finish(job)
        log = self.cluster.daemon_log("n1")
        for line in log.splitlines():
            if "evicted" in line or "staged dataset=gcide" in line:
                self.show(line)
        if "evicted dataset=unicode" not in log:
            raise DemoError("unicode was not evicted")
        self.say("unicode is read from the source again, under the same path:")
        self.show(self.cluster.run(["scratch-slurm", "status"], node="n1", env=self.env).stdout)

    def three_nodes(self) -> None:
        """One job on three nodes: each has its own copy and its own pin."""
        self.step("A job on three nodes: each node pins and stages for itself")
        options = f"#SBATCH --datasets=vega\n#SBATCH --datasets-wait=1m\n#SBATCH --nodes={_NODES}\n"
        script = self.sums / "check.sh"
        script.write_text("#!/bin/bash\n" + self.check())
        job = self.submit(options, f"srun bash {script}\n")
        self.finish(job)
        for node in self.cluster.nodes:
            self.expect_use(node.name, {"vega": 0}, "after the epilog")

    def end(self) -> None:
        """Nothing drained, nothing pinned."""
        self.step("At the end")
        if drained := self.cluster.drained():
            raise DemoError(f"drained: {drained}")
        self.say("sinfo -R is empty: no node was drained.")

    def check(self) -> str:
        """The job script that checks the SHA-256 of what it reads."""
        return _READ_AND_CHECK.format(sums=self.sums)

    def submit(self, options: str, script: str) -> int:
        for line in options.splitlines():
            self.say(line)
        job = self.cluster.sbatch(f"#!/bin/bash\n{options}{script}", env=self.env)
        self.say(f"Submitted batch job {job}")
        return job

    def finish(self, job: int) -> None:
        ended = self.cluster.wait_job(job, timeout=_LIMIT_S)
        self.say(f"job {job}: {ended.state}; its output:")
        output = self.cluster.job_output(job)
        self.show(output)
        if ended.state != "COMPLETED" or "FAILED" in output:
            raise DemoError(f"job {job} is {ended.state}")

    def status(self, node: str, *datasets: str) -> Any:
        words = ["scratch-slurm", "status", "--json", *datasets]
        return json.loads(self.cluster.run(words, node=node, env=self.env).stdout)

    def dataset(self, node: str, name: str) -> Any:
        return self.status(node, name)["datasets"][0]

    def mounted(self, node: str) -> bool:
        return all(each.get("path") for each in self.status(node)["datasets"])

    def has_all(self, node: str) -> bool:
        return len(self.status(node)["datasets"]) == 4 and self.mounted(node)

    def is_used(self, node: str, name: str, count: int) -> bool:
        return bool(self.dataset(node, name).get("use_count", 0) == count)

    def expect_use(self, node: str, counts: dict[str, int], when: str) -> None:
        for name, count in counts.items():
            self.until(
                functools.partial(self.is_used, node, name, count),
                f"use count {count} of {name} on {node}",
            )
            self.say(f"{node}: use count of {name} is {count} ({when})")

    def until(self, happened: Callable[[], bool], what: str) -> None:
        give_up_at = time.monotonic() + _LIMIT_S
        while not happened():
            if time.monotonic() > give_up_at:
                raise DemoError(f"waited {_LIMIT_S:.0f} s for {what}")
            time.sleep(0.1)


def _switch_script() -> str:
    """Read one open file over and over with direct reads, and say when its backing changes."""
    return f"""\
{shlex.quote(sys.executable)} - <<'PYTHON'
import hashlib, json, os, subprocess
path = os.environ["SCRATCH_DATASETS_DIR"] + "/unicode/UnicodeData.txt"
sums, states, rounds = set(), [], 0
with open(path, "rb") as file:
    while not states or states[-1] != "cached":
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        sums.add(hashlib.sha256(file.read()).hexdigest())
        rounds += 1
        answer = subprocess.run(["scratch-slurm", "status", "--json", "unicode"], capture_output=True, check=True)
        state = json.loads(answer.stdout)["datasets"][0]["state"]
        if state not in states:
            states.append(state)
    file.seek(0)
    sums.add(hashlib.sha256(file.read()).hexdigest())
print(f"one open file, read {{rounds + 1}} times: {{' -> '.join(states)}}; {{len(sums)}} SHA-256 in all of them")
assert len(sums) == 1
PYTHON
"""


def _bar(dataset: Any, width: int = 24) -> str:
    total = dataset.get("size_bytes", 0) or 1
    done = total if dataset["state"] == "cached" else dataset.get("staged_bytes", 0)
    filled = round(width * done / total)
    rate = dataset.get("stage_bytes_per_s", 0.0) / 1e6
    return f"[{'#' * filled}{'.' * (width - filled)}] {done / 1e6:5.1f} of {total / 1e6:.1f} MB" + (
        f", {rate:.1f} MB/s" if rate and dataset["state"] != "cached" else ""
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when everything happened as it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="only start the cluster with its images, and leave it up")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(width=110 if not sys.stdout.isatty() else None, highlight=False)
    try:
        return _keep(console) if options.keep else _run(console)
    except (ClusterError, DemoError, FileNotFoundError) as exc:
        console.print(f"[bold red]the demo failed:[/] {exc}")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; everything was taken down")
        return 130


def _run(console: Console) -> int:
    began = time.monotonic()
    console.print(f"[bold]scratch-slurm on a real Slurm cluster of {_NODES} nodes on this machine[/]")
    with LocalCluster(nodes=_NODES, settings=_SETTINGS) as cluster:
        demo = Demo(cluster, console)
        demo.step("Start slurmctld, three slurmd and a node daemon on each")
        demo.show(cluster.run(["sinfo", "--Node", "--format=%N %T"]).stdout)
        demo.say(f"up in {time.monotonic() - began:.1f} s")
        demo.build_images()
        demo.preheat()
        demo.switch_under_a_reader()
        demo.share()
        demo.evict()
        demo.three_nodes()
        demo.end()
        directory = cluster.directory
    # Leaving the cluster raises when a process, mount or loop device of it is left.
    console.print("   The cluster is down: no process, mount, loop device or file of it is left.", highlight=False)
    if directory.exists():
        raise DemoError(f"{directory} is still there")
    console.print(
        f"\n[bold green]All as it should be[/], in {time.monotonic() - began:.0f} s. To play with such a cluster:\n"
        "   make cluster         # start it and leave it up; it prints what to type\n"
        "   make cluster-down    # take it down",
        highlight=False,
    )
    return 0


def _keep(console: Console) -> int:
    cluster = LocalCluster(nodes=_NODES, settings=_SETTINGS, directory=DEFAULT_DIRECTORY)
    try:
        cluster.start(detach=True)
    except AlreadyRunsError:
        console.print(f"a cluster runs already in {DEFAULT_DIRECTORY}; `make cluster-down` ends it")
        return 0
    try:
        Demo(cluster, console).build_images()
    except BaseException:
        cluster.stop()
        raise
    conf, config = cluster.layout.slurm_conf, cluster.layout.config
    nsenter = shlex.join(cluster.nsenter("n1", ["scratch-slurm", "status"]))
    console.print(
        f"\nThe cluster is up. In any shell:\n"
        f"   export SLURM_CONF={conf} SCRATCH_SLURM_CONFIG={config} PATH={Path(sys.executable).parent}:$PATH\n"
        f"   sbatch --datasets=unicode,vega -D /tmp --wrap 'ls -l $SCRATCH_DATASETS_DIR/*; scratch-slurm status'\n"
        f"   srun -N3 --datasets=gcide --datasets-wait=1m scratch-slurm status\n"
        f"   sbatch --datasets=unicod -D /tmp --wrap hostname      # a name that is not there: the job is told\n"
        f"   squeue; sinfo -N\n"
        f"   {nsenter}\n"
        f"Take it down with: make cluster-down",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
