"""What is taken for a request, and what is refused, byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.service.http import (
    BODY_LIMIT_BYTES,
    HEAD_LIMIT_BYTES,
    Head,
    RefusedError,
    format_answer,
    split_head,
)

GET = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/wait HTTP/1.0\r\nContent-Length: 5\r\n\r\n"
STATUS = Head("GET", "/v1/status", 0)

TAKEN = [
    pytest.param(GET, (STATUS, b""), id="a-get"),
    pytest.param(POST + b"12345", (Head("POST", "/v1/wait", 5), b"12345"), id="a-post"),
    pytest.param(POST + b"12", (Head("POST", "/v1/wait", 5), b"12"), id="half-a-body"),
    pytest.param(GET + GET, (STATUS, GET), id="what-comes-behind-is-no-part-of-the-head"),
    pytest.param(b"GET /v1/status?x=1 HTTP/1.0\r\n\r\n", (STATUS, b""), id="without-its-query"),
    pytest.param(b"GET /v1/status HTTP/1.0\r\nX-Any: \xff\r\n\r\n", (STATUS, b""), id="others-headers-are-left-alone"),
    pytest.param(b"GET /v1/status HTTP/1.0\r\ncontent-encoding: Identity\r\n\r\n", (STATUS, b""), id="no-encoding"),
    pytest.param(
        b"GET /v1/status HTTP/1.0\r\nContent-Length: 0\r\ncontent-length: 0\r\n\r\n", (STATUS, b""), id="the-same-twice"
    ),
    pytest.param(b"", None, id="nothing-yet"),
    pytest.param(GET[:-1], None, id="not-the-whole-head"),
    pytest.param(b"\x00" * (HEAD_LIMIT_BYTES - 1), None, id="too-early-to-tell"),
]


@pytest.mark.parametrize(("content", "wanted"), TAKEN)
def test_a_request_is_taken(content, wanted):
    assert split_head(content) == wanted


def with_header(text):
    return b"POST /v1/wait HTTP/1.1\r\n" + text + b"\r\n\r\n"


REFUSED = [
    pytest.param(b"\r\n\r\n", 400, id="an-empty-line"),
    pytest.param(b"GET /v1/status\r\n\r\n", 400, id="http-0.9"),
    pytest.param(b"GET /v1/status HTTP/2.0\r\n\r\n", 400, id="http-2"),
    pytest.param(b"GET http://x/v1/status HTTP/1.1\r\n\r\n", 400, id="a-whole-address"),
    pytest.param(b"GET /v1/ status HTTP/1.1\r\n\r\n", 400, id="a-blank-in-the-path"),
    pytest.param(b"GET /\xff HTTP/1.1\r\n\r\n", 400, id="no-text-in-the-path"),
    pytest.param(b"G" * HEAD_LIMIT_BYTES, 431, id="a-head-without-an-end"),
    pytest.param(with_header(b"X: " + b"y" * HEAD_LIMIT_BYTES), 431, id="a-long-header"),
    pytest.param(with_header(b"no header"), 400, id="no-header"),
    pytest.param(with_header(b" folded: line"), 400, id="a-folded-line"),
    pytest.param(with_header(b"X: a\rb"), 400, id="half-a-line-end"),
    pytest.param(with_header(b"Content-Length: 1\r\nContent-Length: 2"), 400, id="two-lengths"),
    pytest.param(with_header(b"Content-Length: -1"), 400, id="less-than-nothing"),
    pytest.param(with_header(b"Content-Length: 0x5"), 400, id="a-length-that-is-none"),
    pytest.param(with_header(b"Content-Length: %d" % (BODY_LIMIT_BYTES + 1)), 413, id="too-much"),
    pytest.param(with_header(b"Transfer-Encoding: chunked"), 411, id="chunks"),
    pytest.param(with_header(b"Content-Encoding: gzip"), 415, id="packed"),
]


@pytest.mark.parametrize(("content", "status"), REFUSED)
def test_a_request_is_refused(content, status):
    with pytest.raises(RefusedError) as caught:
        split_head(content)
    assert caught.value.status == status
    format_answer(status, caught.value.message.encode())


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b"GET ", b"/v1/wait", b" HTTP/1.1", b"\r\n", b":", b"Content-Length", b"9", b" "])).map(
        b"".join
    )
)
def test_any_bytes_are_a_request_or_not_one_yet_or_refused(content):
    try:
        found = split_head(content + b"\r\n\r\n")
    except RefusedError:
        return
    assert found is not None
    assert found[0].body_bytes <= BODY_LIMIT_BYTES


def test_an_answer_tells_its_length_and_its_end():
    assert format_answer(200, b"{}") == (
        b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    )
