"""One path, whatever happens behind it: readers go on, and no copy is served that is not whole."""

import re

import pytest

from tests.kit.support import MB, Dataset, Gates, Make, Nodes, NodeView, digest_of, until
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.root]

# Opens the file once and reads it again and again from its device; one line a pass, until the file `stop` is there.
READER = """#!/usr/bin/env python3
import hashlib, os, sys
path, stop = {path!r}, {stop!r}
with open(path, "rb", buffering=0) as file:
    number = 0
    while not os.path.exists(stop):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        number += 1
        print(number, digest.hexdigest(), flush=True)
"""


class Reader:
    """A job without --datasets that holds one file of a dataset open, and reads it all the time."""

    def __init__(self, cluster: LocalCluster, view: NodeView, dataset: Dataset) -> None:
        self.cluster, self.view, self.dataset = cluster, view, dataset
        self._stop = cluster.layout.work_dir / f"stop-{dataset.name}"
        path = f"{cluster.settings['mount_dir']}/{dataset.name}/data"
        self.job = cluster.sbatch(READER.format(path=path, stop=str(self._stop)), f"-w{view.name}")
        cluster.wait_running(self.job)
        self.await_passes()

    def passes(self) -> list[str]:
        """The digests so far."""
        return re.findall(r"^\d+ ([0-9a-f]{64})$", self.cluster.job_output(self.job), re.M)

    def await_passes(self) -> None:
        """Wait until a whole pass began and ended after this call, and the device was really read."""
        before, reads = len(self.passes()), self.view.device_reads(self.dataset.name)
        until(lambda: len(self.passes()) >= before + 2, "the reader goes on", 20)
        assert self.view.device_reads(self.dataset.name) > reads

    def end(self) -> None:
        """End the reader, and look at all it has read."""
        self._stop.touch()
        assert self.cluster.wait_job(self.job).state == "COMPLETED"
        assert set(self.passes()) == {self.dataset.sha256}


def test_an_open_file_is_read_on_from_source_to_cache_to_source(cluster: LocalCluster, make: Make, node: Nodes) -> None:
    d, n2 = make(data_bytes=20 * MB), node("n2")
    n2.status(d.name)
    reader = Reader(cluster, n2, d)
    before = n2.mounted(d.name)
    assert n2.is_served_from_source(d.name)
    for _ in range(2):
        n2.command("preheat", d.name)
        assert n2.is_served_from_cache(d.name)
        reader.await_passes()
        n2.command("evict", d.name)
        assert n2.is_served_from_source(d.name)
        assert d.name not in n2.cached()
        reader.await_passes()
    assert n2.mounted(d.name) == before, "one mount and one device all along"
    reader.end()


def test_a_copy_that_arrives_later_is_switched_under_the_running_job(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n2, hold = make(image_bytes=60 * MB), node("n2"), gate()
    n2.status(d.name)  # a job that does not wait may be quicker than the mount of what has just been published
    script = f"echo $SCRATCH_DATASETS_STATE\n{hold.lines}sha256sum $SCRATCH_DATASETS_DIR/{d.name}/data"
    job = cluster.sbatch(script, f"--datasets={d.name}", "--datasets-wait=0", "-wn2")
    hold.wait_reached("n2")
    until(lambda: n2.is_served_from_cache(d.name), "the copy is switched to")
    hold.open()
    assert cluster.wait_job(job).state == "COMPLETED"
    output = cluster.job_output(job)
    assert re.search(rf"^{d.name}:(queued|staging)$", output, re.M)
    assert f"scratch-slurm: {d.name}: is read from the source until its copy is complete" in output
    assert d.sha256 in output


def test_kill_9_of_the_daemon_in_a_copy_is_not_noticed_and_the_next_daemon_finishes_the_copy(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n2, hold = make(data_bytes=20 * MB, image_bytes=120 * MB), node("n2"), gate()
    n2.status(d.name)
    reader = Reader(cluster, n2, d)
    job = cluster.sbatch(hold.lines, f"--datasets={d.name}", "--datasets-wait=0", "-wn2")
    hold.wait_reached("n2")
    staging = n2.path("cache_dir") / ".staging"

    def chunks() -> int:
        return sum(path.read_text().count('"chunk"') for path in staging.glob("*.journal"))

    until(lambda: chunks() >= 1, "a part of the copy is durable")
    before = n2.mounted(d.name)
    cluster.kill_daemon("n2")
    until(lambda: n2.workers() == [], "the worker died with the daemon")
    (part,) = staging.glob("*.part")
    inode = part.stat().st_ino
    assert d.name not in n2.cached(), "half a copy is not served"
    assert n2.is_served_from_source(d.name)
    reader.await_passes()
    cluster.start_daemon("n2")
    until(lambda: d.name in n2.cached(), "the copy is complete", 30)
    assert digest_of(n2.cached()[d.name]) == d.image_digest
    assert n2.cached()[d.name].stat().st_ino == inode, "the copy was gone on with"
    until(lambda: n2.is_served_from_cache(d.name), "the copy is switched to")
    assert n2.mounted(d.name) == before, "the mount was adopted"
    assert n2.pins() == {(d.name, f"job:{job}")}
    reader.await_passes()
    hold.open()
    cluster.wait_job(job)
    reader.end()


def test_sigterm_leaves_the_mounts_serving_and_unmount_takes_all_down(
    cluster: LocalCluster, make: Make, node: Nodes
) -> None:
    cached, other, n3 = make(), make(), node("n3")
    cluster.run(["srun", f"--datasets={cached.name}", "-wn3", "true"])
    n3.status(other.name)
    until(lambda: not n3.pins(), "the epilog has released")
    before = n3.mounted(cached.name)
    with n3.daemon_stopped():
        assert n3.mounted(cached.name) == before
        assert n3.is_served_from_cache(cached.name)
        assert n3.is_served_from_source(other.name)
        assert (n3.read(cached.name), n3.read(other.name)) == (cached.data, other.data)
        env = {"SCRATCH_SLURM_CONFIG": str(cluster.layout.config)}
        cluster.run(["scratch-slurmd", "--unmount"], node="n3", env=env)
        assert cluster.run(["ls", cluster.settings["mount_dir"]], node="n3").stdout == ""
        assert n3.backing(cached.name) == n3.backing(other.name) == ""
        assert cached.name in n3.cached(), "the cache stays"
    assert n3.status(cached.name).state == "cached"
    assert n3.read(cached.name) == cached.data
    assert n3.copies(cached.name) == 1


def test_after_a_crash_of_the_node_its_pins_are_gone_and_its_cache_is_served_without_a_new_copy(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, half, n3, hold = make(), make(image_bytes=4000 * MB), node("n3"), gate()
    options = ["--datasets-wait=0", "--no-requeue", "-wn3"]
    cluster.run(["srun", f"--datasets={d.name}", "-wn3", "true"])
    job = cluster.sbatch(hold.lines, f"--datasets={d.name},{half.name}", *options)
    hold.wait_reached("n3")
    until(lambda: n3.status(half.name).staged_bytes > 0, "a copy is under way")
    assert n3.pins() == {(d.name, f"job:{job}"), (half.name, f"job:{job}")}
    image = n3.cached()[d.name].stat()
    cluster.crash_node("n3")
    cluster.boot_node("n3")
    until(lambda: n3.pins() == set(), "what is of the earlier boot goes with the first round")
    assert (n3.use_count(d.name), n3.use_count(half.name)) == (0, 0)
    until(lambda: n3.is_served_from_cache(d.name), "the mount is back")
    until(lambda: n3.staging() == [], "what nobody wants any more is deleted")
    assert n3.read(d.name) == d.data
    found = n3.cached()[d.name].stat()
    assert (found.st_ino, found.st_mtime_ns) == (image.st_ino, image.st_mtime_ns)
    assert n3.copies(d.name) == 1
    cluster.run(["scancel", str(job)], check=False)
    assert cluster.wait_job(job).state in ("CANCELLED", "NODE_FAIL", "FAILED")


def test_what_jobs_read_without_asking_is_cached_by_itself_and_an_administrator_may_evict_it_all_the_same(
    cluster: LocalCluster, make: Make, node: Nodes
) -> None:
    d, n2 = make(data_bytes=20 * MB), node("n2")
    with n2.settings({"horizon": "30m"}):
        n2.status(d.name)
        reader = Reader(cluster, n2, d)
        until(lambda: n2.is_served_from_cache(d.name), "the daemon has seen the reads and cached the dataset")
        assert n2.pins() == set()
        n2.command("evict", d.name)
        # Not copied again at once, although it is read as before; a whole pass over it takes several rounds.
        reader.await_passes()
        assert n2.is_served_from_source(d.name)
        reader.end()
