"""What the job_submit script makes of jobs, in both of the interpreters that Slurm is built with."""

import os
import shutil

import pytest

from tests.kit.lua_library import INTERPRETERS, SCRIPT, VALIDATION_OFF, Script


@pytest.fixture(params=INTERPRETERS)
def interpreter(request):
    if shutil.which(request.param) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"needs {request.param}; with CI=true nothing is skipped", pytrace=False)
        pytest.skip(f"needs {request.param} (Debian package {request.param})")
    return request.param


@pytest.fixture
def script(interpreter, tmp_path):
    return Script(interpreter, tmp_path)


def asking(*variables, **fields):
    return {"spank_job_env": variables, "spank_job_env_size": len(variables), **fields}


JOIN = [
    pytest.param("", "ds:a&ds:b", id="no-constraint"),
    pytest.param("gpu", "gpu&ds:a&ds:b", id="one-name"),
    pytest.param("gpu&big", "gpu&big&ds:a&ds:b", id="and"),
    pytest.param("cpu|gpu", "(cpu|gpu)&ds:a&ds:b", id="or-needs-parentheses"),
    pytest.param("(cpu|gpu)", "(cpu|gpu)&ds:a&ds:b", id="or-in-parentheses"),
    pytest.param("(cpu|gpu)&big", "(cpu|gpu)&big&ds:a&ds:b", id="group-first"),
    pytest.param("big&(cpu|gpu)", "big&(cpu|gpu)&ds:a&ds:b", id="group-last"),
    pytest.param("(a|b)&(c|d)", "(a|b)&(c|d)&ds:a&ds:b", id="two-groups"),
    pytest.param("(cpu&big)", "(cpu&big)&ds:a&ds:b", id="and-in-parentheses"),
    pytest.param("rack-1.2:x@y", "rack-1.2:x@y&ds:a&ds:b", id="signs-of-patterns-in-a-name"),
    pytest.param("größe", "größe&ds:a&ds:b", id="letters-beyond-ascii"),
]
CANNOT_JOIN = [
    "[a|b]", "a*2", "[a*1&b*2]", "a&[b|c]", "((a|b)&c)", "((a))", "a|b&c", "a&b|c", "(a|b&c)", "(a)|(b)", "(a&b)|c",
    "a,b", "a&", "&a", "|", "&", "()", "(", ")", "(a", "a)", ")a(", "a b", " a", "a\n", "a\nb", "a\x01", "!a", "(a)(b)",
    "a(b|c)", "(a|b)c", "\x01", "&\x01", "%b()", "x" * 1025,
]  # fmt: skip


@pytest.mark.parametrize(("constraint", "joined"), JOIN)
def test_the_preference_repeats_the_constraint(script, constraint, joined) -> None:
    outcome = script.submit(asking("DATASETS=a,b", features=constraint))
    assert (outcome.prefer, outcome.features) == (joined, constraint)
    assert outcome.told == ""


@pytest.mark.parametrize("constraint", CANNOT_JOIN)
def test_a_constraint_that_cannot_be_extended_stays_alone(script, constraint) -> None:
    outcome = script.submit(asking("DATASETS=a,b", features=constraint))
    assert (outcome.code, outcome.prefer, outcome.features) == (0, None, constraint)


NO_PREFERENCE = [
    pytest.param({}, id="no-control-environment"),
    pytest.param(asking(), id="empty-control-environment"),
    pytest.param(asking("PATH=/bin", "XDATASETS=a", "DATASETS"), id="asks-for-nothing"),
    pytest.param(asking("DATASETS="), id="empty-list"),
    pytest.param(asking("DATASETS=a,"), id="empty-name"),
    pytest.param(asking("DATASETS=a\n"), id="line-end"),
    pytest.param(asking("DATASETS=a\nb"), id="two-lines"),
    pytest.param(asking("DATASETS=a|b"), id="or"),
    pytest.param(asking("DATASETS=a&gpu"), id="and"),
    pytest.param(asking("DATASETS=a*2"), id="count"),
    pytest.param(asking("DATASETS=(a)"), id="parentheses"),
    pytest.param(asking("DATASETS=[a]"), id="brackets"),
    pytest.param(asking("DATASETS=-a"), id="begins-with-a-dash"),
    pytest.param(asking("DATASETS=%a"), id="percent"),
    pytest.param(asking("DATASETS=ü"), id="beyond-ascii"),
    pytest.param(asking("DATASETS=" + "x" * 65), id="long-name"),
    pytest.param(asking("DATASETS=" + ",".join(f"d{n}" for n in range(65))), id="more-than-64"),
    pytest.param(asking("DATASETS=" + "a," * 50_000 + "a"), id="huge"),
    pytest.param(asking(*["X=1"] * 256, "DATASETS=a"), id="behind-256-variables"),
    pytest.param({"spank_job_env": "DATASETS=a", "spank_job_env_size": 1}, id="environment-is-no-table"),
    pytest.param({"spank_job_env_size": 2**31}, id="size-without-environment"),
    pytest.param(asking("DATASETS=a", prefer="fast"), id="a-preference-of-the-users"),
    pytest.param(asking("DATASETS=a", req_nodes="n[1-2]"), id="nodes-by-name"),
    pytest.param(asking("DATASETS=a", array_inx="1-4"), id="an-array"),
    pytest.param(asking("DATASETS=a", array_inx="0-19"), id="an-array-would-wait-for-what-no-node-has"),
]


@pytest.mark.parametrize("job", NO_PREFERENCE)
def test_no_preference(script, job) -> None:
    outcome = script.submit(job)
    assert outcome.code == 0
    assert (outcome.prefer, outcome.features) == (job.get("prefer"), None)
    assert not [message for message in outcome.messages if not message.startswith("debug: ")]


def test_a_hole_in_the_control_environment_hides_nothing(script) -> None:
    job = "job = {spank_job_env = {[3] = 'DATASETS=a'}, spank_job_env_size = 4}"
    assert script.run(f"{job}\nshow(slurm_job_submit(job), job)").prefer == "ds:a"


def test_each_dataset_once(script) -> None:
    assert script.submit(asking("DATASETS=b,a,b")).prefer == "ds:b&ds:a"


NAMES = [f"{n:064d}" for n in range(64)]


@pytest.mark.parametrize("constraint", ["", "g" * 300, "(a|b)"])
def test_of_a_long_list_the_first_that_slurm_takes(script, constraint) -> None:
    outcome = script.submit(asking("DATASETS=" + ",".join(NAMES), features=constraint))
    terms = outcome.prefer.removeprefix(f"{constraint}&").split("&")
    assert terms == [f"ds:{name}" for name in NAMES[: len(terms)]]
    assert 1024 - 68 < len(outcome.prefer) <= 1024


def test_a_constraint_that_leaves_no_room(script) -> None:
    outcome = script.submit(asking("DATASETS=ab", features="x" * 1020))
    assert (outcome.code, outcome.prefer) == (0, None)
    assert script.submit(asking("DATASETS=ab", features="x" * 1018)).prefer == "x" * 1018 + "&ds:ab"


REQUIRED = ("DATASETS=a,b", "DATASETS_REQUIRED=1")


def test_required_binds_an_array_too(script) -> None:
    assert script.submit(asking(*REQUIRED, array_inx="1-4")).features == "ds:a&ds:b"


def test_required_binds(script) -> None:
    outcome = script.submit(asking(*REQUIRED, features="cpu|gpu"))
    assert (outcome.features, outcome.prefer) == ("(cpu|gpu)&ds:a&ds:b", None)
    assert "the job needs nodes with ds:a, ds:b" in outcome.told


def test_required_binds_without_ignore_prefer_validation_too(interpreter, tmp_path) -> None:
    assert Script(interpreter, tmp_path, "").submit(asking(*REQUIRED)).features == "ds:a&ds:b"


def test_required_binds_a_preference_of_the_users_which_would_replace_it(script) -> None:
    outcome = script.submit(asking(*REQUIRED, features="gpu", prefer="fast"))
    assert (outcome.features, outcome.prefer) == ("gpu&ds:a&ds:b", "fast&ds:a&ds:b")


def test_required_goes_before_a_preference_that_cannot_be_bound(script) -> None:
    outcome = script.submit(asking(*REQUIRED, prefer="[x|y]"))
    assert (outcome.features, outcome.prefer) == ("ds:a&ds:b", "")
    assert "--prefer does nothing" in outcome.told


def test_required_that_cannot_be_expressed_is_told(script) -> None:
    outcome = script.submit(asking(*REQUIRED, features="[x|y]"))
    assert (outcome.code, outcome.features, outcome.prefer) == (0, "[x|y]", None)
    assert "--datasets-required does nothing" in outcome.told


@pytest.mark.parametrize("value", ["0", "", "2", "1 ", "11"])
def test_other_values_require_nothing(script, value) -> None:
    outcome = script.submit(asking("DATASETS=a", f"DATASETS_REQUIRED={value}"))
    assert (outcome.features, outcome.prefer) == (None, "ds:a")


A = ("DATASETS=a",)
MODIFY = [
    pytest.param({"features": "cpu"}, asking(*A, features="gpu", prefer="gpu&ds:a"), "cpu&ds:a", id="follows"),
    pytest.param(
        {"features": "cpu"}, asking(*A, features="gpu"), "cpu&ds:a", id="follows-where-slurm-tells-no-preference"
    ),
    pytest.param(
        {"features": "a|b"}, asking(*A, features="gpu", prefer="gpu&ds:a"), "(a|b)&ds:a", id="with-parentheses"
    ),
    pytest.param({"features": ""}, asking(*A, features="gpu", prefer="gpu&ds:a"), "ds:a", id="constraint-goes"),
    pytest.param({"features": "cpu"}, asking(*A, prefer="ds:a"), "cpu&ds:a", id="constraint-comes"),
    pytest.param({"features": "[x|y]"}, asking(*A, features="gpu"), "ds:-", id="cannot-follow-and-goes"),
    pytest.param({}, asking(*A, features="gpu", prefer="gpu&ds:a"), None, id="constraint-is-not-changed"),
    pytest.param({"features": "cpu"}, asking(*A, features="gpu", prefer="fast"), None, id="a-preference-of-the-users"),
    pytest.param({"features": "cpu"}, asking(features="gpu"), None, id="no-datasets"),
    pytest.param({"features": "cpu"}, asking("DATASETS=a&b", features="gpu"), None, id="no-list-of-datasets"),
    pytest.param({"features": "cpu"}, asking(*A, features="gpu", array_job_id=7), None, id="a-task-of-an-array"),
    pytest.param({"features": "cpu"}, asking(*A, features="gpu", array_job_id=0), "cpu&ds:a", id="no-task-of-an-array"),
    pytest.param({"features": "cpu"}, asking(*A, "DATASETS_REQUIRED=1", features="ds:a"), None, id="required"),
    pytest.param({"features": "cpu", "prefer": "x"}, asking(*A, features="gpu"), "x", id="both-are-changed"),
]


@pytest.mark.parametrize(("change", "record", "prefer"), MODIFY)
def test_a_job_that_is_changed(script, change, record, prefer) -> None:
    outcome = script.modify(change, record)
    assert (outcome.code, outcome.prefer, outcome.features) == (0, prefer, change.get("features"))


def test_a_job_that_is_changed_without_ignore_prefer_validation(interpreter, tmp_path) -> None:
    outcome = Script(interpreter, tmp_path, "").modify({"features": "cpu"}, asking(*A, features="gpu"))
    assert (outcome.code, outcome.prefer) == (0, None)


# A name that Slurm's table has from 24.11 on.
CAN_HOLD = "slurm.ESLURM_AUTH_EXPIRED = 7000\n"
ALIKE = "script.nodes_are_alike = true\n"
NOT_SET = 0xFFFFFFFE


@pytest.fixture
def holding(interpreter, tmp_path):
    """The script under a Slurm that can hold a job for its preference, on nodes that are alike."""
    return Script(interpreter, tmp_path, settings=ALIKE, before=CAN_HOLD)


def test_a_slurm_that_can_hold_a_job_gets_no_preference_unless_nodes_are_alike(interpreter, tmp_path) -> None:
    script = Script(interpreter, tmp_path, before=CAN_HOLD)
    outcome = script.submit(asking("DATASETS=a"))
    assert outcome.prefer is None
    assert "alike by slurm.conf: none" in "\n".join(outcome.messages)
    assert Script(interpreter, tmp_path, before=CAN_HOLD).submit(asking(*REQUIRED)).features == "ds:a&ds:b"


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"min_nodes": 1, "num_tasks": 1, "max_nodes": NOT_SET},
        {"min_nodes": NOT_SET, "num_tasks": NOT_SET, "tres_per_job": ""},
        {"min_nodes": 1, "max_nodes": 1, "num_tasks": 8, "tres_per_job": "gres/gpu:8"},
        {"tres_per_node": "gres/gpu:8"},
    ],
)
def test_there_a_job_on_one_node_of_many_alike_prefers(holding, shape) -> None:
    assert holding.submit(asking(*A, features="gpu", **shape)).prefer == "gpu&ds:a"


@pytest.mark.parametrize(
    "shape",
    [
        {"min_nodes": 2},
        {"min_nodes": 1, "max_nodes": 2, "num_tasks": 2},
        {"num_tasks": 2},
        {"tres_per_job": "gres/gpu:8"},
        {"min_nodes": 1, "max_nodes": 1, "req_nodes": "n1"},
        {"array_inx": "1-4"},
        {"reservation": "course"},
    ],
)
def test_there_a_job_that_may_need_more_does_not(holding, shape) -> None:
    assert holding.submit(asking(*A, **shape)).prefer is None


@pytest.mark.parametrize(
    "change",
    [
        {"features": "cpu"},
        {"features": ""},
        {"min_nodes": 2},
        {"max_nodes": 3},
        {"num_tasks": 9},
        {"req_nodes": "n1"},
        {"partition": "other"},
        {"reservation": "course"},
        {"tres_per_node": "gres/gpu:2"},
    ],
)
def test_there_a_job_that_is_reshaped_loses_its_preference(holding, change) -> None:
    record = asking(*A, features="gpu", job_state=0)
    assert holding.modify(change, record).prefer == "ds:-"


@pytest.mark.parametrize(
    ("change", "record"),
    [
        ({"min_nodes": NOT_SET, "time_limit": 60}, asking(*A, job_state=0)),
        ({"min_nodes": 1}, asking(*A, job_state=1)),
        ({"min_nodes": 2}, asking(job_state=0)),
        ({"min_nodes": 2}, asking(*REQUIRED, job_state=0)),
        ({"min_nodes": 2, "prefer": "fast"}, asking(*A, job_state=0)),
    ],
    ids=["not-reshaped", "runs", "no-datasets", "required", "a-preference-of-the-users"],
)
def test_there_no_other_job_loses_it(holding, change, record) -> None:
    assert holding.modify(change, record).prefer == change.get("prefer")


def test_there_without_nodes_that_are_alike_a_preference_of_the_users_stays(interpreter, tmp_path) -> None:
    script = Script(interpreter, tmp_path, before=CAN_HOLD)
    assert script.modify({"features": "cpu"}, asking(*A, job_state=0)).prefer is None


NODES = "NodeName=n[1-3] CPUs=8\n"
GPU = "PartitionName=gpu Nodes=n[1-2]\n"
ALIKE_CONFS = [
    pytest.param(NODES + GPU, id="one-line"),
    pytest.param("NodeName=n1 CPUs=8 RealMemory=9\nNodeName=n2 RealMemory=9 CPUs=8\n" + GPU, id="any-order"),
    pytest.param("nodename=N[1-2]  cpus = 8 \n" + GPU, id="any-case-and-blanks"),
    pytest.param(
        "NodeName=n1 NodeHostname=a NodeAddr=1.2.3.4 Port=1 Weight=5 CPUs=8 State=UNKNOWN\n"
        'NodeName=n2 NodeHostname=b NodeAddr=1.2.3.5 Port=2 CPUs=8 State=CLOUD Reason="moved, CPUs=4"\n' + GPU,
        id="addresses-and-reasons-say-nothing",
    ),
    pytest.param("NodeName=DEFAULT CPUs=8\nNodeName=n1\nNodeName=n2 CPUs=8\n" + GPU, id="a-default"),
    pytest.param(
        "NodeName=default CPUs=8\nNodeName=DEFAULT RealMemory=9\nNodeName=n1\nNodeName=n2\n" + GPU, id="two-defaults"
    ),
    pytest.param(NODES + "NodeName=fat CPUs=64\n" + GPU, id="another-kind-elsewhere"),
    pytest.param("NodeName=n[1-2] CPUs=8\nPartitionName=gpu Nodes=ALL\n", id="all"),
    pytest.param(NODES + "PartitionName=DEFAULT Nodes=n[1-2] MaxTime=1\nPartitionName=gpu\n", id="default-nodes"),
    pytest.param(NODES + "NodeSet=set Nodes=n[1-2]\nPartitionName=gpu Nodes=set\n", id="a-set"),
    pytest.param(NODES + "PartitionName=gpu Nodes=set\nNodeSet=set Nodes=n2\n" + "", id="a-set-that-comes-later"),
    pytest.param("Include nodes.conf\n" + GPU, id="included"),
    pytest.param("NodeName=n[1-3] CPUs=8 \\\n RealMemory=9 # four\n" + GPU, id="over-two-lines"),
    pytest.param("NodeName=n1,n2,m[01-10]x[1-2]y CPUs=8\n" + GPU, id="a-list"),
]
UNLIKE_CONFS = [
    pytest.param(GPU, id="unknown-nodes"),
    pytest.param("", id="unknown-partition"),
    pytest.param("NodeName=n1 CPUs=8\nNodeName=n2 CPUs=9\n" + GPU, id="other-processors"),
    pytest.param("NodeName=n1 CPUs=8 Gres=gpu:a:1\nNodeName=n2 CPUs=8\n" + GPU, id="gpus-on-one"),
    pytest.param("NodeName=n1 CPUs=8 TmpDisk=9\nNodeName=n2 CPUs=8\n" + GPU, id="a-key-on-one"),
    pytest.param("NodeName=n1 Procs=8\nNodeName=n2 CPUs=8\n" + GPU, id="said-otherwise"),
    pytest.param("NodeName=n1\nNodeName=DEFAULT CPUs=8\nNodeName=n2\n" + GPU, id="a-default-between"),
    pytest.param("NodeName=n1 CPUs=8\nNodeName=n2 CPUs=8 State=FUTURE\n" + GPU, id="a-node-of-the-future"),
    pytest.param(NODES + "NodeName=n2 CPUs=8\n" + GPU, id="twice"),
    pytest.param("NodeName=n[1-2] CPUs+=8\n" + GPU, id="a-sign-that-is-not-known"),
    pytest.param("NodeName=n[1-3 CPUs=8\n" + GPU, id="a-bracket"),
    pytest.param("NodeName=n[1-2] CPUs=8 Feature=a\\#b\n" + GPU, id="a-backslash"),
    pytest.param(NODES + "what is this\n" + GPU, id="a-line"),
    pytest.param(NODES + "Include nosuch.conf\n" + GPU, id="includes-nothing"),
    pytest.param(NODES + GPU + "Include slurm.conf\n", id="includes-itself"),
    pytest.param(NODES + "MaxNodeCount=9\n" + GPU, id="dynamic-nodes"),
    pytest.param(NODES + "NodeSet=set Feature=a\nPartitionName=gpu Nodes=set\n", id="a-set-of-a-feature"),
    pytest.param(
        NODES + "NodeSet=set Nodes=n[1-2] Feature=a\nPartitionName=gpu Nodes=set\n", id="a-set-of-nodes-and-a-feature"
    ),
    pytest.param(
        NODES + "NodeSet=set Nodes=n[1-2]\nNodeSet=set Nodes=n3\nPartitionName=gpu Nodes=set\n", id="a-set-twice"
    ),
    pytest.param(NODES + "PartitionName=gpu Nodes=n[1-2],-n3\n", id="an-exclusion"),
    pytest.param(NODES + GPU + GPU, id="partition-twice"),
    pytest.param(NODES + "PartitionName=gpu Nodes=n1\n", id="another-list-than-slurm-has"),
    pytest.param(NODES + "PartitionName=gpu Nodes=n[1-3]\n", id="a-longer-list-than-slurm-has"),
    pytest.param(NODES + "PartitionName=gpu Nodes=n[2-3]\n", id="as-many-others-as-slurm-has"),
    pytest.param("ClusterName=a NodeName=n3 CPUs=9\n" + NODES + GPU, id="a-node-on-a-line-of-another"),
]
PARTITIONS = {"gpu": {"nodes": "n[1-2]", "flag_default": 0}, "cpu": {"nodes": "n3", "flag_default": 1}}


def deriving(interpreter, directory, conf):
    """The script under a Slurm that can hold a job, with no word of the site's."""
    (directory / "nodes.conf").write_text(NODES)
    return Script(interpreter, directory, VALIDATION_OFF + conf, before=CAN_HOLD)


@pytest.mark.parametrize("conf", ALIKE_CONFS)
def test_there_nodes_that_slurm_conf_defines_the_same_are_alike(interpreter, tmp_path, conf) -> None:
    script = deriving(interpreter, tmp_path, conf)
    now = {"gpu": {"nodes": "n2" if "Nodes=n2" in conf else "n[1-2]"}}
    if "m[01" in conf:
        assert script.submit(asking(*A, partition="gpu"), {"gpu": {"nodes": "n1,n2"}}).prefer == "ds:a"
    assert script.submit(asking(*A, partition="gpu"), now).prefer == "ds:a"


@pytest.mark.parametrize("conf", UNLIKE_CONFS)
def test_there_whatever_is_not_certain_is_not_alike(interpreter, tmp_path, conf) -> None:
    script = deriving(interpreter, tmp_path, conf)
    outcome = script.submit(asking(*A, partition="gpu"), PARTITIONS)
    assert (outcome.code, outcome.prefer) == (0, None)


def test_there_each_partition_is_looked_at_alone(interpreter, tmp_path) -> None:
    conf = "NodeName=n[1-2] CPUs=8\nNodeName=n3 CPUs=9\nPartitionName=cpu Nodes=n3\nPartitionName=all Nodes=ALL\n"
    script = deriving(interpreter, tmp_path, conf + GPU)
    now = {**PARTITIONS, "all": {"nodes": "n[1-3]"}}
    asked = {
        name: script.submit(asking(*A, partition=name), now).prefer for name in ("gpu", "all", "gpu,cpu", "gpu,all")
    }
    assert asked == {"gpu": "ds:a", "all": None, "gpu,cpu": "ds:a", "gpu,all": None}
    assert script.submit(asking(*A), now).prefer == "ds:a", "the default partition"
    assert script.submit(asking(*A, partition="gpu")).prefer is None, "Slurm does not tell what it has now"
    said = script.submit(asking(*A), now).messages
    assert any("alike by slurm.conf: cpu, gpu" in text for text in said)
    assert any("partition all: no job" in text and "not defined the same" in text for text in said)


def test_there_a_slurm_conf_of_which_nothing_is_certain_is_told(interpreter, tmp_path) -> None:
    said = deriving(interpreter, tmp_path, NODES + GPU + "MaxNodeCount=9\n").submit({}).messages
    assert any("partition any: no job will prefer" in text and "MaxNodeCount" in text for text in said)


def test_there_the_sites_own_word_goes_before_slurm_conf(interpreter, tmp_path) -> None:
    conf = VALIDATION_OFF + NODES + GPU
    no = Script(interpreter, tmp_path, conf, "script.nodes_are_alike = false\n", before=CAN_HOLD)
    assert no.submit(asking(*A, partition="gpu"), PARTITIONS).prefer is None


GRES = [
    ("gpu:a100:4", {"tres_per_node": "gres/gpu:a100:1"}, True),
    ("gpu:4", {}, True),
    ("gpu:4", {"tres_per_node": "gres/gpu:1"}, True),
    ("gpu:4", {"tres_per_node": "gres:gpu:1"}, True),
    ("gpu:4", {"tres_per_node": "gres/gpu=2,gres/shard:1"}, True),
    ("gpu:4", {"tres_per_node": "gres/gpu"}, True),
    ("gpu:4", {"tres_per_node": "gres/gpu:a100:1"}, False),
    ("gpu:4", {"tres_per_node": "gres/gpu:a"}, False),
    ("gpu:4", {"tres_per_socket": "gres/gpu:a100"}, False),
    ("gpu:a:2,gpu", {"tres_per_task": "cpu=2,gres/gpu:a:1"}, False),
    ("gpu:a:2,mps:100", {"tres_per_node": "gres/gpu:a:1"}, False),
]


@pytest.mark.parametrize(("gres", "asked", "alike"), GRES)
def test_there_a_type_that_slurm_conf_does_not_name_is_not_certain(interpreter, tmp_path, gres, asked, alike) -> None:
    script = deriving(interpreter, tmp_path, f"NodeName=n[1-3] Gres={gres}\n{GPU}")
    assert script.submit(asking(*A, partition="gpu", **asked), PARTITIONS).prefer == ("ds:a" if alike else None)


def test_there_a_job_of_a_partition_that_is_not_alike_keeps_what_the_user_prefers(interpreter, tmp_path) -> None:
    script = deriving(interpreter, tmp_path, NODES + GPU)
    record = asking(*A, job_state=0, partition="gpu")
    assert script.modify({"min_nodes": 2}, record, PARTITIONS).prefer == "ds:-"
    assert script.modify({"min_nodes": 2}, {**record, "partition": "cpu"}, PARTITIONS).prefer is None


LISTS = [
    ("n1", ["n1"]),
    ("n[1-3,07]", ["n1", "n2", "n3", "n07"]),
    ("n[0-10]", [f"n{n}" for n in range(11)]),
    ("n[008-010],m", ["n008", "n009", "n010", "m"]),
    ("a[1-2]b[3,5]c", ["a1b3c", "a1b5c", "a2b3c", "a2b5c"]),
    ("n-1.x_y", ["n-1.x_y"]),
    ("n[1-65536]", None),
]
NO_LISTS = [
    "", ",", "n1,", "n[", "n]", "n[]", "n[1-]", "n[-1]", "n[a]", "n[3-1]", "n[1-65537]", "n[1-99999999999]", "-n1",
    "n[8-010]", "n[1;2]", "n 1", "n[1-9][1-9][1-9][1-9][1-9][1-9]", "!n", "n{1,2}",
]  # fmt: skip


@pytest.mark.parametrize(("text", "names"), LISTS)
def test_a_list_of_nodes_is_read_as_slurm_reads_it(script, text, names) -> None:
    joined = f"table.concat(script.expand({text!r}), ',')"
    found = script.run(f"show(0, {{features = {joined}}})").features.split(",")
    assert found == names or (names is None and len(found) == 65536)


@pytest.mark.parametrize("text", NO_LISTS)
def test_what_is_no_list_of_nodes_is_none(script, text) -> None:
    assert script.run(f"show(0, {{features = script.expand({text!r})}})").features is None


COMMENTS = [
    pytest.param(asking("DATASETS=b,a,b"), "datasets=b,a", id="each-once"),
    pytest.param(asking(*REQUIRED), "datasets=a,b", id="required"),
    pytest.param(asking(*A, array_inx="1-4"), "datasets=a", id="an-array"),
    pytest.param(asking(*A, features="[x|y]"), "datasets=a", id="no-preference-is-possible"),
    pytest.param(asking(*A, admin_comment=""), "datasets=a", id="an-empty-one"),
    pytest.param(asking(*A, admin_comment="paid by physics"), "paid by physics", id="what-is-there-stays"),
    pytest.param(asking("X=1"), None, id="asks-for-nothing"),
    pytest.param(asking("DATASETS=a b"), None, id="no-list"),
    pytest.param(asking("DATASETS=a\nb"), None, id="two-lines"),
]


@pytest.mark.parametrize(("job", "comment"), COMMENTS)
def test_the_admin_comment_tells_the_datasets(script, job, comment) -> None:
    assert script.submit(job).admin_comment == comment


IN_COMMENTS = [
    pytest.param({"comment": "datasets=a,b"}, "ds:a&ds:b", id="the-whole-comment"),
    pytest.param(asking(comment="night run datasets=a,b now"), "ds:a&ds:b", id="a-word-of-it"),
    pytest.param(asking("DATASETS=c", comment="datasets=a"), "ds:c", id="the-option-counts"),
    pytest.param(asking("DATASETS=", comment="datasets=a"), "ds:a", id="an-empty-option-does-not"),
    pytest.param({"comment": "datasets= datasets=a"}, "ds:a", id="an-empty-word-does-not"),
    pytest.param({"comment": "mydatasets=a"}, None, id="another-word"),
    pytest.param({"comment": "datasets=a&b"}, None, id="no-list"),
    pytest.param({"comment": "datasets=a\nb"}, None, id="two-lines"),
    pytest.param(asking("DATASETS_REQUIRED=1", comment="datasets=a"), "ds:a", id="requires-nothing"),
]


@pytest.mark.parametrize(("job", "preference"), IN_COMMENTS)
def test_a_job_can_ask_in_its_comment(script, job, preference) -> None:
    outcome = script.submit(job)
    names = preference and preference.replace("ds:", "").replace("&", ",")
    assert (outcome.code, outcome.prefer, outcome.features) == (0, preference, None)
    assert outcome.admin_comment == (names and f"datasets={names}")


def test_a_site_can_leave_the_admin_comment_alone(interpreter, tmp_path) -> None:
    outcome = Script(interpreter, tmp_path, settings="script.admin_comment = false\n").submit(asking(*A))
    assert (outcome.admin_comment, outcome.prefer) == (None, "ds:a")


def test_of_a_long_list_the_admin_comment_has_the_first_names(script) -> None:
    comment = script.submit(asking("DATASETS=" + ",".join(NAMES))).admin_comment
    names = comment.removeprefix("datasets=").split(",")
    assert names == [*NAMES[: len(names) - 1], "..."]
    assert 1024 - 70 < len(comment) <= 1024


def test_a_slurm_that_takes_no_admin_comment_takes_the_preference(script) -> None:
    newindex = "function(t, k, v) if k == 'admin_comment' then error('no') end rawset(t, k, v) end"
    job = f"setmetatable({{spank_job_env = {{[0] = 'DATASETS=a'}}}}, {{__newindex = {newindex}}})"
    outcome = script.run(f"job = {job}\nshow(slurm_job_submit(job), job)")
    assert (outcome.code, outcome.prefer) == (0, "ds:a")


KIB = 1024
TOO_LARGE = [
    pytest.param(["BIG=" + "x" * (128 * KIB)], "variable BIG has 131076 bytes", id="one-string"),
    pytest.param(["x" * (121 * KIB)], "variable xxxxxxxx", id="no-name"),
    pytest.param(["A\n%s=" + "x" * (121 * KIB)], "variable A??s has", id="a-strange-name"),
    pytest.param([f"A{n}=" + "x" * (100 * KIB) for n in range(11)], "it takes 11", id="all-together"),
    pytest.param(["A=" + "x" * 40] * 30_000, "it takes 17", id="very-many"),
]


@pytest.mark.parametrize(("variables", "said"), TOO_LARGE)
def test_a_job_whose_control_environment_no_prolog_could_start_with_is_refused(script, variables, said) -> None:
    outcome = script.submit(asking(*variables, *A))
    assert (outcome.code, outcome.prefer) == (-1, None)
    assert said in outcome.told


def test_a_large_control_environment_is_not(script) -> None:
    outcome = script.submit(asking(*[f"A{n}=" + "x" * (100 * KIB) for n in range(9)], *A))
    assert (outcome.code, outcome.prefer, outcome.told) == (0, "ds:a", "")


CONFS = [
    pytest.param(VALIDATION_OFF, True, id="plain"),
    pytest.param("  schedulerparameters = a,Ignore_Prefer_Validation  # why", True, id="any-case"),
    pytest.param("SchedulerParameters=a,\\\n ignore_prefer_validation", True, id="over-two-lines"),
    pytest.param("include more.conf\n", True, id="included"),
    pytest.param("SchedulerParameters=b\n" + VALIDATION_OFF, True, id="the-last-counts"),
    pytest.param(VALIDATION_OFF + "SchedulerParameters=b", False, id="the-last-counts-without"),
    pytest.param("#" + VALIDATION_OFF, False, id="comment"),
    pytest.param("SchedulerParameters=a # ignore_prefer_validation", False, id="comment-behind"),
    pytest.param("Include slurm.conf\n", False, id="includes-itself"),
    pytest.param("Include nosuch\nSchedulerParameters=a", False, id="includes-nothing"),
    pytest.param("", False, id="empty"),
    pytest.param(None, False, id="missing"),
]


@pytest.mark.parametrize(("conf", "off"), CONFS)
def test_without_ignore_prefer_validation_there_is_no_preference(interpreter, tmp_path, conf, off) -> None:
    (tmp_path / "more.conf").write_text(VALIDATION_OFF)
    outcome = Script(interpreter, tmp_path, conf).submit(asking("DATASETS=a"))
    assert outcome.prefer == ("ds:a" if off else None)
    assert outcome.code == 0
    assert any("error: " in message and "ignore_prefer_validation" in message for message in outcome.messages) != off


def test_a_site_can_say_its_prefix_and_that_validation_is_off(interpreter, tmp_path) -> None:
    settings = "script.feature_prefix = 'cache.'\nscript.validation_is_off = true\njob = {spank_job_env = "
    call = "{[0] = 'DATASETS=a'}, spank_job_env_size = 1}\nshow(slurm_job_submit(job), job)"
    assert Script(interpreter, tmp_path, "").run(settings + call).prefer == "cache.a"


def test_an_error_refuses_no_job(script) -> None:
    broken = "setmetatable({}, {__index = function() error('broken') end, __newindex = function() error('x') end})"
    for call in ("slurm_job_submit(job)", "slurm_job_modify(job, job)", "slurm_job_submit(nil)"):
        outcome = script.run(f"job = {broken}\nshow({call}, {{}})")
        assert outcome.code == 0
        assert any(message.startswith("error: scratch-slurm: job_submit: ") for message in outcome.messages)


def test_a_slurm_that_cannot_set_a_preference_refuses_no_job(script) -> None:
    job = "setmetatable({spank_job_env = {[0] = 'DATASETS=a'}, spank_job_env_size = 1}, {__newindex = error})"
    assert script.run(f"job = {job}\nshow(slurm_job_submit(job), {{}})").code == 0


def test_it_loads_where_slurm_logs_nothing(script) -> None:
    assert script.run("slurm = {SUCCESS = 0}\njob = {}\nshow(slurm_job_submit(job), job)").code == 0


def test_the_functions_of_a_site_stay(script) -> None:
    mine = "slurm_job_submit = function() return 7 end\nslurm_job_modify = slurm_job_submit\n"
    load = f"dofile({str(SCRIPT)!r})\nshow(slurm_job_submit(), {{}})"
    assert script.run(mine + load).code == 7
