"""Jobs go to their data: what the job_submit script and the plugin make of --datasets at submit, on a real Slurm.

The features are set by hand, under a prefix that no daemon looks after.
"""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping

import pytest

from scratch_slurm.domain.sizes import format_bytes
from tests.kit.support import Gates, Make, Nodes, until
from tests.local_cluster import LocalCluster
from tests.local_cluster.configs import job_submit_lua, plugstack_conf, slurm_conf
from tests.local_cluster.requirements import has_job_submit_lua, slurm_release

pytestmark = [pytest.mark.cluster, pytest.mark.root]

needs_lua = pytest.mark.skipif(not has_job_submit_lua(), reason="needs Slurm's job_submit/lua")

# Of the datasets pa and pb none is in the source: features are all there is.
FEATURES: Mapping[str, tuple[str, ...]] = {
    "n1": ("cpu",),
    "n2": ("cpu", "at:pa"),
    "n3": ("gpu", "big", "at:pa", "at:pb"),
    "n4": ("gpu", "old"),
}


def write_features(cluster: LocalCluster, node: str, features: tuple[str, ...]) -> None:
    """Replace the features of a node, but for those that begin as the daemon's do."""
    found = cluster.run(["sinfo", "--noheader", f"--nodes={node}", "--Format=features:2000"]).stdout.strip()
    daemons = tuple(feature for feature in found.split(",") if feature.startswith("ds:"))
    words = ",".join([*features, *daemons])
    cluster.run(["scontrol", "update", f"nodename={node}", f"availablefeatures={words}", f"activefeatures={words}"])


@pytest.fixture(scope="module", autouse=True)
def features(cluster: LocalCluster) -> Iterator[None]:
    """Let the script look for features that begin with `at:`, and give the nodes some."""
    script = cluster.directory / "job_submit.lua"
    script.write_text(f"{job_submit_lua(cluster.layout)}scratch_slurm.feature_prefix = 'at:'\n")
    for node, words in FEATURES.items():
        write_features(cluster, node, words)
    yield
    for node in FEATURES:
        write_features(cluster, node, ())
    script.write_text(job_submit_lua(cluster.layout))


# Such a Slurm may hold a job for a preference: the script is careful there.
CAN_HOLD = slurm_release() >= (24, 11)


def run_job(cluster: LocalCluster, *options: str) -> str:
    """Run a job of no work, and tell where it ran."""
    info = cluster.wait_job(cluster.sbatch("true", *options))
    assert info.state == "COMPLETED"
    return info.node_list


@contextlib.contextmanager
def busy(cluster: LocalCluster, gate: Gates, *nodes: str) -> Iterator[None]:
    """Keep nodes full with jobs of others."""
    holds = [(node, gate()) for node in nodes]
    jobs = [cluster.sbatch(hold.lines, f"-w{node}", "--exclusive") for node, hold in holds]
    for node, hold in holds:
        hold.wait_reached(node)
    try:
        yield
    finally:
        for (_, hold), job in zip(holds, jobs, strict=True):
            hold.open()
            cluster.wait_job(job)


# What is asked: (options, where the job may land). Few enough to run at once, on nodes of eight CPUs.
Landing = dict[str, tuple[list[str], set[str]]]
ANYWHERE = set(FEATURES)
ANY_TWO = {"n[1-2]", "n[1,3]", "n[1,4]", "n[2-3]", "n[2,4]", "n[3-4]"}
ALONE: Landing = {
    "asks-for-nothing": ([], ANYWHERE),
    "one-dataset": (["--datasets=pb"], {"n3"}),
    "the-node-that-has-both": (["--datasets=pa,pb"], {"n3"}),
    "one-of-two-that-have-it": (["--datasets=pa"], {"n2", "n3"}),
    "no-node-has-all": (["--datasets=pa,nosuch"], ANYWHERE),
    "no-node-has-it": (["--datasets=nosuch"], ANYWHERE),
    "nodes-by-name": (["--datasets=pb", "-wn1"], {"n1"}),
    "two-nodes": (["--datasets=pa", "-N2"], {"n[2-3]"}),
    "more-nodes-than-have-it": (["--datasets=pa", "-N3"], {"n[1-3]", "n[1-2,4]", "n[1,3-4]", "n[2-4]"}),
    "64-long-names": (["--datasets=" + ",".join(["pb", *(f"{n:064d}" for n in range(63))])], ANYWHERE),
}
BESIDE_WISHES_OF_THE_USERS: Landing = {
    "with-a-constraint": (["--datasets=pa", "--constraint=gpu"], {"n3"}),
    "with-or": (["--datasets=pa", "--constraint=big|cpu", "-xn2"], {"n3"}),
    "the-constraint-goes-first": (["--datasets=pb", "--constraint=old"], {"n4"}),
    "with-groups": (["--datasets=pb", "--constraint=(cpu|gpu)&(big|old)"], {"n3"}),
    "with-groups-that-exclude-it": (["--datasets=pb", "--constraint=(gpu|big)&(old|cpu)"], {"n4"}),
    "with-a-group-that-excludes-it": (["--datasets=pb", "--constraint=gpu&(cpu|old)"], {"n4"}),
    "with-what-cannot-be-joined": (["--datasets=pa", "--constraint=[gpu|old]"], {"n3"}),
    "the-users-own-preference-stays": (["--datasets=pb", "--prefer=old"], {"n4"}),
}


@needs_lua
@pytest.mark.parametrize("cases", [ALONE, BESIDE_WISHES_OF_THE_USERS], ids=["alone", "beside-wishes-of-the-users"])
def test_where_a_job_lands(cluster: LocalCluster, cases: Landing) -> None:
    # No job ends before all have landed: Slurm gives no job to a node on which another's epilog runs.
    with (cluster.layout.work_dir / "landing").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        jobs = {case: cluster.sbatch(f"flock -s {file.name} true", *options) for case, (options, _) in cases.items()}
        landed = {case: cluster.wait_state(job, "RUNNING").node_list for case, job in jobs.items()}
    assert {cluster.wait_job(job).state for job in jobs.values()} == {"COMPLETED"}
    allowed = {case: nodes for case, (_, nodes) in cases.items()}
    if CAN_HOLD:
        allowed["two-nodes"] = ANY_TWO
    assert {case: node for case, node in landed.items() if node not in allowed[case]} == {}


@needs_lua
def test_elsewhere_when_the_preferred_node_is_busy(cluster: LocalCluster, gate: Gates) -> None:
    with busy(cluster, gate, "n3"):
        assert run_job(cluster, "--datasets=pb") in ANYWHERE - {"n3"}
        assert run_job(cluster, "--datasets=pb", "--constraint=gpu") == "n4"
        assert run_job(cluster, "--datasets=pa") == "n2"


@needs_lua
@pytest.mark.parametrize("constraint", ["gpu", "[gpu|old]"])
def test_a_constraint_that_is_changed_is_obeyed(cluster: LocalCluster, constraint: str) -> None:
    job = cluster.sbatch("true", "--datasets=pa", "--constraint=cpu", "--hold")
    cluster.run(["scontrol", "update", f"jobid={job}", f"features={constraint}"])
    cluster.run(["scontrol", "release", str(job)])
    loses_it = CAN_HOLD or constraint != "gpu"
    assert cluster.wait_job(job).node_list in ({"n3", "n4"} if loses_it else {"n3"})


@needs_lua
def test_a_job_that_is_given_another_shape_starts(cluster: LocalCluster) -> None:
    job = cluster.sbatch("true", "--datasets=pb", "--hold")
    cluster.run(["scontrol", "update", f"jobid={job}", "numnodes=3"])
    cluster.run(["scontrol", "release", str(job)])
    assert cluster.wait_job(job).state == "COMPLETED"


@needs_lua
def test_an_array_does_not_wait_for_a_node_that_has_its_datasets(cluster: LocalCluster) -> None:
    arrays = [cluster.sbatch("true", f"--datasets={names}", "--array=1-3") for names in ("nosuch", "pa", "pa,nosuch")]
    changed = cluster.sbatch("true", "--datasets=nosuch", "--constraint=cpu", "--array=1-3", "--hold")
    cluster.run(["scontrol", "update", f"jobid={changed}", "features=gpu"])
    cluster.run(["scontrol", "release", str(changed)])
    for job in (*arrays, changed):
        assert {task.state for task in cluster.wait_jobs(job)} == {"COMPLETED"}


@needs_lua
def test_a_job_that_the_preferred_nodes_could_never_run_starts_elsewhere() -> None:
    """On a cluster of its own, where no backfill comes to help within minutes."""
    slurm = {"SchedulerParameters": "ignore_prefer_validation,bf_interval=600"}
    asked = [["-wn1"], ["-N2"], ["-n9"], ["--datasets=nosuch"], ["-xn2"], []]
    with LocalCluster(nodes=2, slurm=slurm, daemons=False) as own:
        own.run(["scontrol", "update", "nodename=n2", "availablefeatures=ds:pb", "activefeatures=ds:pb"])
        for options in asked:
            job = own.sbatch("true", "--datasets=pb", *options)
            assert own.wait_job(job).state == "COMPLETED", options


@needs_lua
def test_required_waits_for_a_node_that_has_it(cluster: LocalCluster, gate: Gates) -> None:
    required = ["--datasets=pa,pb", "--datasets-required"]
    with busy(cluster, gate, "n3"):
        job = cluster.sbatch("true", *required)
        later = cluster.sbatch("true")
        assert cluster.wait_job(later).state == "COMPLETED", "the scheduler has passed the first one over"
        assert cluster.jobs(job)[0].state == "PENDING"
        assert cluster.jobs(job)[0].fields["Features"] == "at:pa&at:pb"
    assert cluster.wait_job(job).node_list == "n3"


@needs_lua
def test_required_says_what_it_does(cluster: LocalCluster) -> None:
    def submit(*options: str) -> tuple[int, str]:
        found = cluster.run(["sbatch", "--parsable", *options, "--wrap=true"], check=False)
        if found.returncode == 0:
            cluster.wait_job(int(found.stdout))
        return found.returncode, found.stderr

    code, words = submit("--datasets=pa", "--datasets-required", "--constraint=gpu")
    assert (code, "the job needs nodes with at:pa" in words) == (0, True)
    code, words = submit("--datasets=nosuch", "--datasets-required")
    assert (code, "the job needs nodes with at:nosuch" in words) == (1, True)
    code, words = submit("--datasets=pa", "--datasets-required", "--constraint=[gpu|old]")
    assert (code, "--datasets-required does nothing" in words) == (0, True)
    code, words = submit("--datasets-required")
    assert (code, "--datasets-required does nothing without --datasets" in words) == (0, True)


def test_required_is_not_inherited(cluster: LocalCluster) -> None:
    inner = "sbatch --parsable --wait --output=inner-%j --datasets=pb -xn3 --wrap='env | grep -c DATASETS_REQUIRED'"
    job = cluster.sbatch(
        f"env | grep -c _SLURM_SPANK_OPTION\n{inner}; true", "--datasets=pa", "--datasets-required", "-wn2"
    )
    assert cluster.wait_job(job).state == "COMPLETED"
    count, nested = cluster.job_output(job).split()[-2:]
    assert count == "0"
    cluster.wait_job(int(nested))
    assert cluster.job_output(int(nested)).splitlines()[-1] == "0"


@pytest.fixture(scope="module")
def login_node(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> "Hosts":
    """Environments of submit hosts that see the source: policy -> SLURM_CONF."""
    hosts: Hosts = {}
    for policy in ("refuse", "warn", "ignore", "empty"):
        directory = cluster.directory / f"login-{policy}"
        directory.mkdir()
        source = cluster.source_dir if policy != "empty" else directory
        plugstack = directory / "plugstack.conf"
        words = plugstack_conf(cluster.layout, plugin_exists=True).rstrip()
        unknown = f" unknown={policy}" if policy in ("warn", "ignore") else ""
        plugstack.write_text(f"{words} source_dir={source}{unknown}\n")
        options = {**cluster.layout.slurm_options, "PlugStackConfig": str(plugstack)}
        conf = directory / "slurm.conf"
        conf.write_text(slurm_conf(dataclasses.replace(cluster.layout, slurm_options=options)))
        hosts[policy] = {"SLURM_CONF": str(conf)}
    return hosts


Hosts = dict[str, Mapping[str, str]]


@pytest.mark.parametrize("command", ["sbatch", "salloc", "srun"])
def test_an_unknown_dataset_is_refused_at_submit(
    cluster: LocalCluster, make: Make, login_node: Hosts, command: str
) -> None:
    d = make()
    work = ["--wrap=true"] if command == "sbatch" else ["true"]
    words = [command, f"--datasets={d.name}x", *work]
    found = cluster.run(words, user="nobody", env=login_node["refuse"], check=False)
    assert found.returncode != 0
    said = f"'{d.name}x': no such dataset in {cluster.source_dir}; did you mean {d.name}"
    assert said in found.stderr
    assert cluster.run(["squeue", "--noheader"]).stdout == ""


def test_a_known_dataset_is_not(cluster: LocalCluster, make: Make, login_node: Hosts) -> None:
    d = make()
    job = cluster.sbatch("true", f"--datasets={d.name}", "-wn1", env=login_node["refuse"])
    assert cluster.wait_job(job).state == "COMPLETED"


@pytest.mark.parametrize(("policy", "said"), [("warn", True), ("ignore", False), ("empty", False)])
def test_a_site_that_does_not_refuse(
    cluster: LocalCluster, make: Make, login_node: Hosts, policy: str, said: bool
) -> None:
    d = make()
    words = ["sbatch", "--parsable", f"--datasets={d.name}x", "--wrap=true"]
    found = cluster.run(words, env=login_node[policy])
    assert (f"{d.name}x: no such dataset in" in found.stderr) == said
    assert cluster.wait_job(int(found.stdout)).state == "COMPLETED"


def test_a_step_is_never_refused(cluster: LocalCluster, make: Make, login_node: Hosts) -> None:
    make()
    conf = login_node["refuse"]["SLURM_CONF"]
    job = cluster.sbatch(f"SLURM_CONF={conf} srun --datasets=nosuch echo ran")
    assert cluster.wait_job(job).state == "COMPLETED"
    assert "ran" in cluster.job_output(job).splitlines()


def test_datasets_tells_on_how_many_nodes_each_is_cached(cluster: LocalCluster, make: Make, node: Nodes) -> None:
    """As a user on a login node: no daemon, no root."""
    d, other, n1 = make(), make(), node("n1")
    n1.command("preheat", d.name)
    config = {"SCRATCH_SLURM_CONFIG": str(cluster.layout.config)}

    def ask() -> dict[str, list[str]]:
        found = cluster.run(["scratch-slurm", "datasets", "--json"], user="nobody", env=config)
        return {each["name"]: each["nodes"] for each in json.loads(found.stdout)["datasets"]}

    until(lambda: ask().get(d.name) == ["n1"], "the feature of what is cached on n1", 15)
    assert ask()[other.name] == []
    n1.command("evict", d.name)
    words = ["scratch-slurm", "datasets", "--source", str(cluster.source_dir), d.name]
    line = next(line for line in cluster.run(words, user="nobody").stdout.splitlines() if line.startswith(f"{d.name} "))
    assert line.split()[1:3] == format_bytes(d.image.stat().st_size).split()
    assert line.endswith("of 4 nodes")
