"""The Slurm in memory keeps the contract of the real one; tests/cluster/test_slurm_contract.py has the others."""

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from tests.kit.fake_slurm import FakeSlurm
from tests.kit.slurm_contract import SlurmContract


class FakeWorld:
    def __init__(self) -> None:
        self.slurm = FakeSlurm("n1", "n2", "n3", "n4")
        self._numbers = itertools.count(1)

    def run_job(self, *nodes: str) -> int:
        job_id = next(self._numbers)
        self.slurm.jobs[job_id] = ("RUNNING", nodes)
        return job_id

    def hold_job(self) -> int:
        job_id = next(self._numbers)
        self.slurm.jobs[job_id] = ("PENDING", ())
        return job_id

    def suspend(self, job_id: int) -> None:
        self.slurm.jobs[job_id] = ("SUSPENDED", self.slurm.jobs[job_id][1])

    def requeue(self, job_id: int) -> None:
        self.slurm.jobs[job_id] = ("PENDING", ())

    def end(self, job_id: int) -> None:
        self.slurm.jobs[job_id] = ("CANCELLED", ())

    @contextlib.contextmanager
    def controller_down(self) -> Iterator[None]:
        self.slurm.down = True
        yield
        self.slurm.down = False


class TestFake(SlurmContract):
    @pytest.fixture
    def world(self) -> FakeWorld:
        return FakeWorld()
