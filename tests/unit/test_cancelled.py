"""A long wait in the prolog asks Slurm seldom, and ends only when the job is certainly over."""

import pytest

from scratch_slurm.hooks.cancelled import CancelWatch, is_over

TEXTS = [
    pytest.param("7 COMPLETING\n", True, id="cancelled-in-the-prolog"),
    pytest.param("7 CANCELLED\n", True, id="cancelled"),
    pytest.param("7 RUNNING\n", False, id="waits-in-its-prolog"),
    pytest.param("7 CONFIGURING\n", False, id="configuring"),
    pytest.param("", False, id="no-answer-is-no-proof"),
    pytest.param("slurm_load_jobs error: Invalid job id specified\n", False, id="an-unknown-job-is-no-proof"),
    pytest.param("7 NEW_STATE\n", False, id="an-unknown-state-is-no-proof"),
    pytest.param("8 CANCELLED\n7 RUNNING\n", False, id="another-task-of-the-array-is-over"),
    pytest.param("8 RUNNING\n7 COMPLETING\n", True, id="another-task-of-the-array-runs"),
    pytest.param("7 COMPLETING\n7 RUNNING\n", False, id="two-answers-are-no-proof"),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_squeue_says_that_a_job_is_over(text: str, expected: bool) -> None:
    assert is_over(7, text) is expected


def test_slurm_is_asked_at_pauses_that_double_up_to_a_minute() -> None:
    now, asked = 0.0, []

    def ask(job_id: int) -> str:
        asked.append(now)
        return "7 RUNNING\n"

    watch = CancelWatch(7, monotonic=lambda: now, ask=ask, spread=0.0)
    while now < 300:
        assert not watch.is_over()
        now += 1
    assert asked == [8, 24, 56, 116, 176, 236, 296]
