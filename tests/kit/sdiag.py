"""What Slurm's controller was asked, as sdiag counts it."""

import re
from collections import Counter
from dataclasses import dataclass

from tests.local_cluster import LocalCluster

_COUNT = re.compile(r"\t(\S+)\s+\(\s*\d+\) count:(\d+)\s")


@dataclass(frozen=True)
class Rpcs:
    """RPCs that the controller has served since it began: message type -> how many, user -> how many."""

    by_type: Counter[str]
    by_user: Counter[str]

    def __sub__(self, before: "Rpcs") -> "Rpcs":
        return Rpcs(self.by_type - before.by_type, self.by_user - before.by_user)


def read_rpcs(cluster: LocalCluster, user: str) -> Rpcs:
    """Ask the controller, which counts that for `user`."""
    return parse_sdiag(cluster.run(["sdiag"], user=user).stdout)


def parse_sdiag(text: str) -> Rpcs:
    """Parse the two tables of sdiag."""
    types, _, users = text.partition("by message type")[2].partition("by user")
    by_type, by_user = (Counter({name: int(count) for name, count in _COUNT.findall(part)}) for part in (types, users))
    return Rpcs(by_type, by_user)


def compare_rpcs(ours: Rpcs, bare: Rpcs, nodes: int) -> list[str]:
    """A table for people: what the controller was asked with scratch-slurm and without, and how much more that is."""
    rows = [(name, ours.by_type[name], bare.by_type[name]) for name in sorted(ours.by_type | bare.by_type)]
    rows += [(f"all of {name}", ours.by_user[name], bare.by_user[name]) for name in sorted(ours.by_user | bare.by_user)]
    lines = [f"{'RPCs to the controller':31}{'with':>6}{'without':>9}{'more':>7}{'a node':>8}"]
    for name, with_us, without in rows:
        more = with_us - without
        lines.append(f"{name:31}{with_us:6}{without:9}{more:+7}{more / nodes:+8.1f}")
    return lines
