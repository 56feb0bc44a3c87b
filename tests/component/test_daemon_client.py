import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scratch_slurm.domain.errors import DaemonError, PinnedError
from scratch_slurm.node.daemon_client import request
from tests.kit.fake_daemon import FakeDaemon, http
from tests.kit.people import STRANGER_UID, stranger_listens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "daemon.sock"


def ask(path: Path, timeout_s: float = 5.0) -> bytes:
    return request(path, "POST", "/v1/wait", b'{"datasets": []}', timeout_s)


def test_the_body_goes_and_comes_whole(path: Path) -> None:
    with FakeDaemon(path, lambda asked: http({"much": "x" * 500_000, "asked": asked})) as daemon:
        assert b'"asked"' in ask(path)
        assert daemon.requests == [{"method": "POST", "path": "/v1/wait", "body": {"datasets": []}}]


def test_a_get_has_no_body(path: Path) -> None:
    with FakeDaemon(path, http) as daemon:
        request(path, "GET", "/v1/status", None, 5.0)
        assert daemon.requests == [{"method": "GET", "path": "/v1/status", "body": None}]


def test_an_error_comes_back_in_its_class(path: Path) -> None:
    told = {"error": "PinnedError", "message": "coco: pinned by job:7", "hint": "wait"}
    with FakeDaemon(path, lambda _: http(told, 409)), pytest.raises(PinnedError, match="coco: pinned") as caught:
        ask(path)
    assert caught.value.hint == "wait"


ANSWERS = [
    pytest.param(b"", "cut short", id="nothing"),
    pytest.param(b"\x00\xff" * 5000, "not HTTP", id="garbage"),
    pytest.param(b"HTTP/1.0 200 OK\r\nContent-Le", "cut short", id="half-a-head"),
    pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n{}", "2 bytes of 10", id="half-a-body"),
    pytest.param(b"HTTP/1.0 abc OK\r\n\r\n{}", "not HTTP", id="no-status"),
    pytest.param(b"HTTP/1.0 500 Oh\r\n\r\n<html>", "HTTP status 500", id="an-error-of-no-kind"),
]


@pytest.mark.parametrize(("answer", "wrong"), ANSWERS)
def test_what_cannot_be_read_is_the_daemons_error(path: Path, answer: bytes, wrong: str) -> None:
    with FakeDaemon(path, lambda _: answer), pytest.raises(DaemonError, match=wrong):
        ask(path)


def test_a_daemon_that_hangs_costs_the_time_limit(path: Path) -> None:
    began_at = time.monotonic()
    with FakeDaemon(path, lambda _: None), pytest.raises(DaemonError, match=r"no answer within 0\.3 s"):
        ask(path, timeout_s=0.3)
    assert time.monotonic() - began_at < 3


def test_a_daemon_that_trickles_does_not_stretch_the_limit(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        script = (
            "import socket, sys, time\nclient = socket.socket(socket.AF_UNIX)\n"
            "connection, _ = socket.socket(fileno=int(sys.argv[1])).accept()\n"
            "while True: connection.send(b'x'); time.sleep(0.05)\n"
        )
        fd = listener.fileno()
        trickler = subprocess.Popen([sys.executable, "-c", script, str(fd)], pass_fds=[fd], stderr=subprocess.DEVNULL)
        began_at = time.monotonic()
        with pytest.raises(DaemonError, match="no answer within 1 s"):
            ask(path, timeout_s=1)
        assert time.monotonic() - began_at < 5
        trickler.kill()
        trickler.wait()


def test_a_full_queue_of_the_kernel_is_waited_out(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            first.connect(str(path))
            second.setblocking(False)
            with pytest.raises(BlockingIOError):
                second.connect(str(path))
            with pytest.raises(DaemonError, match=r"no answer within 0\.2 s"):
                ask(path, timeout_s=0.2)
            asking = threading.Thread(target=lambda: answers.append(ask(path)))
            answers: list[bytes] = []
            asking.start()
            listener.accept()[0].close()
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(http({"all": "well"}))
            asking.join(10)
            assert answers == [b'{"all": "well"}']


BUSY = {"error": "DaemonError", "message": "user 7 has 3 connections open, which is the most", "hint": "try again"}


def test_a_caller_that_was_turned_away_comes_again(path: Path) -> None:
    answers = [http(BUSY, 503), http(BUSY, 503), http({"all": "well"})]
    with FakeDaemon(path, lambda _: answers.pop(0)):
        assert ask(path) == b'{"all": "well"}'
    assert not answers


def test_a_caller_that_is_turned_away_until_the_time_is_over_is_told_why(path: Path) -> None:
    with FakeDaemon(path, lambda _: http(BUSY, 503)), pytest.raises(DaemonError, match="3 connections open"):
        ask(path, timeout_s=0.4)


def test_a_caller_that_is_turned_away_before_anything_is_read_comes_again(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def turn_away_and_answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(http(BUSY, 503))
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(http({"all": "well"}))

        door = threading.Thread(target=turn_away_and_answer)
        door.start()
        assert request(path, "POST", "/v1/wait", b"x" * 500_000, 10.0) == b'{"all": "well"}'
        door.join(10)


def test_nobody_there(path: Path) -> None:
    with pytest.raises(DaemonError, match="does not run"):
        ask(path)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with pytest.raises(DaemonError, match="does not run"):
        ask(path)
    path.unlink()
    path.touch()
    with pytest.raises(DaemonError):
        ask(path)


@pytest.mark.root
def test_root_does_not_talk_to_another_users_socket(path: Path) -> None:
    with stranger_listens(path) as stranger:
        with pytest.raises(DaemonError, match=f"uid {STRANGER_UID} listens there"):
            ask(path)
        assert stranger.wait(10) == 0
    assert os.geteuid() == 0
