"""The hooks' own reading of the daemon's answer: as msgspec's, and never anything but ValueError."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.messages import DatasetState, DatasetStatus, WaitAnswer, WaitRequest
from scratch_slurm.hooks.answer import Answer, Seen, format_question, parse_answer

STATUSES = st.builds(
    DatasetStatus,
    name=st.text(max_size=9),
    state=st.sampled_from(DatasetState),
    size_bytes=st.integers(0, 2**60),
    staged_bytes=st.integers(0, 2**60),
    eta_s=st.none() | st.floats(0, 1e12),
    holders=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    problem=st.text(max_size=30),
    update_waiting=st.booleans(),
)


@given(st.builds(WaitAnswer, datasets=st.lists(STATUSES, max_size=3).map(tuple), settled=st.booleans()))
def test_it_reads_what_the_daemon_writes(answer) -> None:
    seen = tuple(Seen(*(getattr(status, field) for field in Seen._fields)) for status in answer.datasets)
    assert parse_answer(msgspec.json.encode(answer)) == Answer(seen, answer.settled)


@given(st.lists(st.text(max_size=9), max_size=3).map(tuple), st.floats(0, 1e9))
def test_the_daemon_reads_what_it_asks(datasets, timeout_s) -> None:
    question = msgspec.json.decode(format_question(datasets, timeout_s), type=WaitRequest)
    assert question == WaitRequest(datasets, timeout_s)


def one(**changes):
    return json.dumps({"datasets": [{"name": "a", "state": "cached", **changes}], "settled": True}).encode()


BAD = [
    pytest.param(b"", id="empty"),
    pytest.param(b"null", id="null"),
    pytest.param(b"[1]", id="a-list"),
    pytest.param(b"\xff{}", id="no-text"),
    pytest.param(b"[" * 100_000, id="nested-too-deeply"),
    pytest.param(b'{"datasets": []}', id="a-field-less"),
    pytest.param(b'{"datasets": {}, "settled": true}', id="datasets-no-list"),
    pytest.param(b'{"datasets": ["a"], "settled": true}', id="a-dataset-no-object"),
    pytest.param(b'{"datasets": [], "settled": 1}', id="settled-a-number"),
    pytest.param(one(state="warm"), id="a-state-unknown"),
    pytest.param(one(state=["cached"]), id="a-state-no-text"),
    pytest.param(one(name=7), id="a-name-no-text"),
    pytest.param(one(name=None), id="no-name"),
    pytest.param(one(size_bytes="1"), id="a-size-no-number"),
    pytest.param(one(size_bytes=True), id="a-size-true"),
    pytest.param(one(size_bytes=1.5), id="a-size-with-a-fraction"),
    pytest.param(one(eta_s="soon"), id="a-time-no-number"),
    pytest.param(one(eta_s=float("nan")), id="a-time-nan"),
    pytest.param(one(eta_s=10**400), id="a-time-too-large"),
    pytest.param(one().replace(b'"cached"', b'"cached", "eta_s": 1e999'), id="a-time-infinite"),
    pytest.param(one(problem=None), id="a-problem-no-text"),
]


@pytest.mark.parametrize("content", BAD)
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        parse_answer(content)
