"""What Slurm's word about a job means for its pins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.jobs import Presence, has_nodes, judge

LIVE, GONE, UNKNOWN = Presence.LIVE, Presence.GONE, Presence.UNKNOWN


@pytest.mark.parametrize(
    ("state", "on_node", "presence"),
    [
        *[
            (state, True, LIVE)
            for state in ("RUNNING", "SUSPENDED", "STOPPED", "CONFIGURING", "COMPLETING", "RESIZING")
        ],
        *[(state, False, GONE) for state in ("RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING")],
        *[(state, None, UNKNOWN) for state in ("RUNNING", "SUSPENDED", "COMPLETING")],
        *[(state, None, LIVE) for state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")],
        *[
            (state, True, GONE)
            for state in ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        ],
    ],
)
def test_judge(state: str, on_node: bool | None, presence: Presence) -> None:
    assert judge(state, on_node=on_node) is presence
    assert has_nodes(state) or presence is judge(state, on_node=not on_node)


@given(st.text(), st.sampled_from([True, False, None]))
def test_a_state_of_another_slurm_is_never_a_reason_to_release(state: str, on_node: bool | None) -> None:
    assert judge(f"new {state}", on_node=on_node) is UNKNOWN
