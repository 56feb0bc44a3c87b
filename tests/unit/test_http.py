"""What is taken for a request, and what is refused, byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.service.http import (
    BODY_LIMIT_BYTES,
    HEAD_LIMIT_BYTES,
    RefusedError,
    Request,
    RequestReader,
    format_answer,
)

GET = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/wait HTTP/1.0\r\nContent-Length: 5\r\n\r\n"
STATUS = Request("GET", "/v1/status", b"")


def with_header(text, body=b""):
    return b"POST /v1/wait HTTP/1.1\r\nHost: x\r\n" + text + b"\r\n\r\n" + body


TAKEN = [
    pytest.param(GET, STATUS, id="a-get"),
    pytest.param(POST + b"12345", Request("POST", "/v1/wait", b"12345"), id="a-post"),
    pytest.param(POST + b"12", None, id="half-a-body"),
    pytest.param(GET + GET, STATUS, id="what-comes-behind-is-not-read"),
    pytest.param(b"GET /v1/status?x=1 HTTP/1.0\r\n\r\n", STATUS, id="without-its-query"),
    pytest.param(b"GET /v1/status HTTP/1.0\r\nX-Any: \xff\r\n\r\n", STATUS, id="others-headers-are-left-alone"),
    pytest.param(b"GET /v1/status HTTP/1.0\r\ncontent-encoding: Identity\r\n\r\n", STATUS, id="no-encoding"),
    pytest.param(
        with_header(b"Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n"),
        Request("POST", "/v1/wait", b"{}"),
        id="chunks",
    ),
    pytest.param(b"", None, id="nothing-at-all"),
    pytest.param(GET[:-1], None, id="not-the-whole-head"),
]


@pytest.mark.parametrize(("content", "wanted"), TAKEN)
def test_a_request_is_taken(content: bytes, wanted: Request | None) -> None:
    assert RequestReader().feed(content) == wanted


@pytest.mark.parametrize(("content", "wanted"), TAKEN)
def test_a_request_that_comes_byte_by_byte_is_the_same(content: bytes, wanted: Request | None) -> None:
    reader, found = RequestReader(), None
    for byte in content:
        found = found or reader.feed(bytes([byte]))
    assert found == wanted


def test_a_caller_that_goes_away_before_its_request_is_whole_has_asked_nothing() -> None:
    reader = RequestReader()
    assert reader.feed(GET[:-1]) is None
    with pytest.raises(RefusedError):
        reader.feed(b"")
    assert RequestReader().feed(b"") is None


REFUSED = [
    pytest.param(b"\x00\x01\x02\r\n\r\n", 400, id="no-text"),
    pytest.param(b"GET /v1/status\r\n\r\n", 400, id="http-0.9"),
    pytest.param(b"GET http://x/v1/status HTTP/1.0\r\n\r\n", 400, id="a-whole-address"),
    pytest.param(b"GET /v1/ status HTTP/1.1\r\n\r\n", 400, id="a-blank-in-the-path"),
    pytest.param(b"GET /\xff HTTP/1.0\r\n\r\n", 400, id="no-text-in-the-path"),
    pytest.param(b"G" * (HEAD_LIMIT_BYTES + 1), 431, id="a-head-without-an-end"),
    pytest.param(b"GET /x HTTP/1.1\r\nX: " + b"y" * HEAD_LIMIT_BYTES, 431, id="a-long-header"),
    pytest.param(with_header(b"no header"), 400, id="no-header"),
    pytest.param(with_header(b"X: a\rb"), 400, id="half-a-line-end"),
    pytest.param(with_header(b"Content-Length: 1\r\nContent-Length: 2"), 400, id="two-lengths"),
    pytest.param(with_header(b"Content-Length: -1"), 400, id="less-than-nothing"),
    pytest.param(with_header(b"Content-Length: 0x5"), 400, id="a-length-that-is-none"),
    pytest.param(with_header(b"Content-Length: %d" % (BODY_LIMIT_BYTES + 1)), 413, id="too-much"),
    pytest.param(
        with_header(b"Transfer-Encoding: chunked", b"%x\r\n" % (BODY_LIMIT_BYTES + 1) + b"x" * (BODY_LIMIT_BYTES + 1)),
        413,
        id="too-much-in-chunks",
    ),
    pytest.param(with_header(b"Content-Encoding: gzip"), 415, id="packed"),
]


@pytest.mark.parametrize(("content", "status"), REFUSED)
def test_a_request_is_refused(content: bytes, status: int) -> None:
    with pytest.raises(RefusedError) as caught:
        RequestReader().feed(content)
    assert caught.value.status == status
    format_answer(status, caught.value.message.encode())


@given(
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from([b"GET ", b"/v1/wait", b" HTTP/1.1", b"\r\n", b":", b"Content-Length", b"9", b" ", b"Host: x"])
    ).map(b"".join)
)
def test_any_bytes_are_a_request_or_not_one_yet_or_refused(content) -> None:
    try:
        found = RequestReader().feed(content + b"\r\n\r\n")
    except RefusedError:
        return
    assert found is None or len(found.body) <= BODY_LIMIT_BYTES


def test_an_answer_tells_its_length_and_its_end() -> None:
    head, _, body = format_answer(200, b"{}").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert {b"content-length: 2", b"connection: close"} <= {line.lower() for line in head.split(b"\r\n")}
    assert body == b"{}"
