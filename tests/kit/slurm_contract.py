"""The contract of `scratch_slurm.slurm.interface`: tests that the fake and the real ones all pass.

A subclass gives the fixture `world`.
"""

import contextlib
from typing import Protocol

import pytest

from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.domain.features import NodeFeatures, format_extra
from scratch_slurm.domain.jobs import Presence
from scratch_slurm.slurm.interface import Slurm

LIVE, GONE, UNKNOWN = Presence.LIVE, Presence.GONE, Presence.UNKNOWN
NO_SUCH_JOB = 999_999


class World(Protocol):
    """A Slurm with the nodes n1 to n4 and the means to bring jobs into a state."""

    slurm: Slurm

    def run_job(self, *nodes: str) -> int:
        """Start a job on nodes, and return when it runs."""
        ...

    def hold_job(self) -> int:
        """Submit a job that does not start."""
        ...

    def suspend(self, job_id: int) -> None: ...

    def requeue(self, job_id: int) -> None:
        """Let a job that runs wait again."""
        ...

    def end(self, job_id: int) -> None:
        """Cancel a job, and return when it has ended."""
        ...

    def controller_down(self) -> contextlib.AbstractContextManager[None]: ...


class SlurmContract:
    """What every implementation does."""

    def test_it_says_who_serves(self, world: World) -> None:
        assert world.slurm.name.rpartition(" ")[2].replace(".", "").isdecimal()

    def test_each_job_is_told_by_its_own_state_and_nodes(self, world: World) -> None:
        here, there, both, held = world.run_job("n1"), world.run_job("n2"), world.run_job("n1", "n2"), world.hold_job()
        jobs = [here, there, both, held, NO_SUCH_JOB]
        on_n1 = {here: LIVE, there: GONE, both: LIVE, held: LIVE, NO_SUCH_JOB: GONE}
        assert world.slurm.job_presence(jobs, ["n1"]) == on_n1
        assert world.slurm.job_presence([], ["n1"]) == {}
        assert world.slurm.job_presence([both, here], ["n2"]) == {both: LIVE, here: GONE}
        assert world.slurm.job_presence([both], ["n3"]) == {both: GONE}
        assert world.slurm.job_presence([both, there], ["n3", "n2"]) == {both: LIVE, there: LIVE}
        nobody = {here: UNKNOWN, there: UNKNOWN, both: UNKNOWN, held: LIVE, NO_SUCH_JOB: GONE}
        assert world.slurm.job_presence(jobs, []) == nobody
        world.suspend(here)
        world.requeue(both)
        world.end(there)
        world.end(held)
        assert world.slurm.job_presence([here, both], ["n1"]) == {here: LIVE, both: LIVE}
        assert world.slurm.job_presence([there, held], ["n2"]) == {there: GONE, held: GONE}
        world.end(here)
        world.end(both)
        assert world.slurm.job_presence([here, both], ["n1"]) == {here: GONE, both: GONE}

    @pytest.mark.parametrize(
        "features",
        [
            NodeFeatures(("gpu", "ds:b", "ds:a.1_x@y+z-0"), ("ds:b", "gpu"), format_extra(["b"])),
            NodeFeatures(("gpu",), (), ""),
            NodeFeatures((), (), "rack | 7, \"quoted\" 'twice' \\ $HOME"),
            NodeFeatures(tuple(f"ds:{'x' * 60}{n}" for n in range(200)), ("ds:" + "x" * 60 + "0",), ""),
            NodeFeatures(),
        ],
        ids=["own-and-ours", "none-active", "free-text", "many", "nothing"],
    )
    def test_features_are_read_as_they_were_written(self, world: World, features: NodeFeatures) -> None:
        world.slurm.write_features("n4", features)
        assert world.slurm.read_features("n4") == features
        assert world.slurm.read_features("n3") == NodeFeatures()

    def test_extra_none_leaves_extra_as_it_is(self, world: World) -> None:
        world.slurm.write_features("n4", NodeFeatures(("gpu",), ("gpu",), "rack 7"))
        world.slurm.write_features("n4", NodeFeatures(("gpu", "ds:a"), ("ds:a",), None))
        assert world.slurm.read_features("n4") == NodeFeatures(("gpu", "ds:a"), ("ds:a",), "rack 7")
        world.slurm.write_features("n4", NodeFeatures())

    def test_what_slurm_refuses_is_an_error(self, world: World) -> None:
        with pytest.raises(SlurmError):
            world.slurm.write_features("n4", NodeFeatures(("a",), ("b",), None))
        with pytest.raises(SlurmError):
            world.slurm.write_features("nosuch", NodeFeatures(("a",), ("a",), None))

    def test_a_node_that_slurm_does_not_know_is_told_from_one_that_cannot_be_asked_about(self, world: World) -> None:
        assert world.slurm.read_features("nosuch") is None
        job = world.run_job("n1")
        with world.controller_down():
            assert world.slurm.job_presence([job, NO_SUCH_JOB], ["n1"]) == {job: UNKNOWN, NO_SUCH_JOB: UNKNOWN}
            with pytest.raises(SlurmError):
                world.slurm.read_features("nosuch")
            with pytest.raises(SlurmError):
                world.slurm.write_features("n4", NodeFeatures(("a",), ("a",), None))
        assert world.slurm.job_presence([job, NO_SUCH_JOB], ["n1"]) == {job: LIVE, NO_SUCH_JOB: GONE}
        world.end(job)

    def test_hosts_are_told_by_node(self, world: World) -> None:
        everybody = world.slurm.read_hosts(None)
        assert {"n1", "n2", "n3", "n4"} <= everybody.keys()
        assert all(everybody.values())
        assert world.slurm.read_hosts("n2") == {"n2": everybody["n2"]}
        assert world.slurm.read_hosts("nosuch") == {}
        with world.controller_down(), pytest.raises(SlurmError):
            world.slurm.read_hosts("n2")

    def test_the_rules_for_prologs_are_told(self, world: World) -> None:
        rules = world.slurm.read_prolog_rules()
        assert not rules.serial
        assert rules.timeout_s is None or rules.timeout_key.startswith("Prolog")
        with world.controller_down(), pytest.raises(SlurmError):
            world.slurm.read_prolog_rules()

    def test_closed_it_knows_nothing(self, world: World) -> None:
        world.slurm.close()
        assert world.slurm.job_presence([1], ["n1"]) == {1: UNKNOWN}
        with pytest.raises(SlurmError):
            world.slurm.read_features("n1")
