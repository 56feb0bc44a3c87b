"""Jobs in mount namespaces of their own, as Slurm makes them for a private /tmp: they see the node's datasets."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.kit.support import NodeView, make_dataset
from tests.local_cluster import LocalCluster
from tests.local_cluster.requirements import slurm_release

pytestmark = [pytest.mark.cluster, pytest.mark.root]

RELEASE = slurm_release()
# Plugin -> its option in slurm.conf, and its own file with the directory BASE.
TMPFS_CONF = ("job_container.conf", "AutoBasePath=true\nBasePath=BASE\n")
LINUX_CONF = ("namespace.yaml", "defaults:\n  auto_base_path: true\n  base_path: BASE\n")
if RELEASE >= (25, 11):
    PLUGINS = {
        "namespace/tmpfs": ("NamespaceType", *TMPFS_CONF),
        "namespace/linux": ("NamespaceType", *LINUX_CONF),
    }
else:
    PLUGINS = {"job_container/tmpfs": ("JobContainerType", *TMPFS_CONF)}
# Where the prolog runs in the job, the namespace is made before it.
FLAGS = ["Contain", "Contain,RunInJob"] if RELEASE >= (24, 5) else ["Contain"]


@contextlib.contextmanager
def one_node(plugin: str, flags: str, clone: Sequence[str] = ()) -> Iterator[LocalCluster]:
    """A cluster of one node, not below /tmp, which jobs have for themselves."""
    option, file, text = PLUGINS[plugin]
    if clone:
        text += f"  clone_ns_flags: {json.dumps(clone)}\n"
    directory = Path(tempfile.mkdtemp(prefix="scratch-slurm-", dir="/var/tmp"))
    directory.chmod(0o755)
    processors = os.sched_getaffinity(0)
    # Linux 6.18 numbers namespaces on each processor for itself, and Slurm takes a higher number for a later one.
    os.sched_setaffinity(0, {min(processors)})
    try:
        with LocalCluster(
            1,
            {"slurm": {"reconcile_interval": "1s"}, "preheat": {"wait": "20s"}},
            directory,
            slurm={option: plugin, "PrologFlags": flags},
            files={file: text.replace("BASE", f"{directory}/private")},
            slurm_runs_hooks="RunInJob" in flags,
        ) as running:
            yield running
    finally:
        os.sched_setaffinity(0, processors)
        directory.rmdir()


@pytest.fixture(scope="module", params=[(plugin, flags) for plugin in PLUGINS for flags in FLAGS], ids="-".join)
def private(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    with one_node(*request.param) as running:
        yield running


def test_a_job_reads_what_was_mounted_for_it_in_its_prolog(private: LocalCluster) -> None:
    d = make_dataset(private.source_dir, "alpha")  # the prolog is the first to look for it
    step = "srun --overlap sh -c 'sha256sum $SCRATCH_DATASET_ALPHA/data'"
    script = f"echo state=$SCRATCH_DATASETS_STATE; sha256sum $SCRATCH_DATASET_ALPHA/data; {step}"
    job = private.sbatch(script, "--datasets=alpha", user="nobody")
    assert private.wait_job(job).state == "COMPLETED"
    output = private.job_output(job)
    assert "state=alpha:cached" in output
    assert output.count(d.sha256) == 2, "the batch script and its step"
    assert "scratch-slurm:" not in output
    assert NodeView(private, "n1").was_ever_pinned_by(job)


def test_a_job_reads_what_is_mounted_while_it_runs(private: LocalCluster) -> None:
    path = f"{private.settings['mount_dir']}/later/data"
    job = private.sbatch(f"until [ -e {path} ]; do sleep 0.1; done; sha256sum {path}", user="nobody")
    private.wait_running(job)
    d = make_dataset(private.source_dir, "later")
    assert private.wait_job(job).state == "COMPLETED"
    assert d.sha256 in private.job_output(job)


@pytest.mark.parametrize(
    ("mount_dir", "told"),
    [
        pytest.param(
            "/not/there", "cannot be seen in this job's own mount namespace: cannot find its mount", id="no-directory"
        ),
        pytest.param("/srv", "is not mounted for this job", id="nothing-is-mounted-there"),
    ],
)
def test_a_job_that_cannot_see_its_datasets_is_told_and_finds_no_state(
    private: LocalCluster, mount_dir: str, told: str
) -> None:
    make_dataset(private.source_dir, name := f"gamma{mount_dir.count('/')}")
    plugstack = private.directory / "plugstack.conf"
    right = plugstack.read_text()
    plugstack.write_text(right.replace(f"mount_dir={private.settings['mount_dir']}", f"mount_dir={mount_dir}"))
    try:
        job = private.sbatch("echo state=$SCRATCH_DATASETS_STATE.", f"--datasets={name}", user="nobody")
        assert private.wait_job(job).state == "COMPLETED"
    finally:
        plugstack.write_text(right)
    output = private.job_output(job)
    assert f"scratch-slurm: {name}: {told}" in output
    assert "state=." in output


if "namespace/linux" in PLUGINS:

    def test_a_job_in_a_pid_namespace_reads_its_datasets_or_is_told() -> None:
        """There is no way from there to the node's mounts."""
        with one_node("namespace/linux", "Contain", clone=["CLONE_NEWPID"]) as cluster:
            d = make_dataset(cluster.source_dir, "alpha")
            script = "echo state=$SCRATCH_DATASETS_STATE; sha256sum $SCRATCH_DATASET_ALPHA/data"
            output = cluster.job_output(cluster.wait_job(cluster.sbatch(script, "--datasets=alpha")).job_id)
            assert d.sha256 in output or "scratch-slurm: alpha: is not mounted for this job" in output
