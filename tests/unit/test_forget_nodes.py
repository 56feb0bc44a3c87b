"""What is taken back of nodes that are powered down, from what `scontrol show node` says."""

from scratch_slurm.domain.features import NodeFeatures, group_to_forget
from scratch_slurm.slurm.cluster import parse_nodes

# Slurm 22.05.8.
SHOWN = """\
NodeName=n1 Arch=x86_64 CoresPerSocket=1 
   CPUAlloc=0 CPUEfctv=8 CPUTot=8 CPULoad=0.10
   AvailableFeatures=gpu,ds:a
   ActiveFeatures=ds:a
   Gres=(null)
   NodeAddr=127.0.0.1 NodeHostName=n1 Port=20001 Version=22.05.8
   Comment=AvailableFeatures=none
   Extra={"scratch_slurm": {"datasets": ["a"]}}

NodeName=n2 CoresPerSocket=1 
   AvailableFeatures=(null)
   ActiveFeatures=(null)
   State=DOWN+CLOUD+POWERED_DOWN
   Extra=rack 7
   ActiveFeatures=ds:of-a-text

"""  # noqa: W291


def test_the_features_of_all_nodes_are_read() -> None:
    assert parse_nodes(SHOWN) == {
        "n1": NodeFeatures(("gpu", "ds:a"), ("ds:a",), '{"scratch_slurm": {"datasets": ["a"]}}'),
        "n2": NodeFeatures((), (), "rack 7"),
    }
    assert parse_nodes("") == {}
    assert parse_nodes("No nodes in the system\n") == {}


def node(*features: str, extra: str | None = "") -> NodeFeatures:
    return NodeFeatures(features, features, extra)


def test_ours_go_the_administrators_stay_and_equal_nodes_are_told_at_once() -> None:
    nodes = {
        "n1": node("gpu", "ds:a"),
        "n2": node("gpu", "ds:b", "ds:c"),
        "n3": node("cpu"),
        "n4": node("ds:a", extra="rack 7"),
        "n5": NodeFeatures(("cpu", "ds:a"), ("ds:a",), ""),
        "n6": NodeFeatures(("gpu",), ("gpu",), '{"scratch_slurm": {"datasets": ["a"]}}'),
    }
    assert group_to_forget(nodes, prefix="ds:") == [
        (NodeFeatures(("gpu",), ("gpu",), None), ("n1", "n2")),
        (NodeFeatures((), (), None), ("n4",)),
        (NodeFeatures(("cpu",), (), None), ("n5",)),
        (NodeFeatures(("gpu",), ("gpu",), ""), ("n6",)),
    ]
    assert group_to_forget({"n1": node("gpu")}, prefix="ds:") == []
    assert group_to_forget({"n1": node("cached.a", "ds:x")}, prefix="cached.") == [(node("ds:x", extra=None), ("n1",))]
