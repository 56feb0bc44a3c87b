"""The word to the service manager: signs of life only while things go on."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from scratch_slurm.service.notify import keep_watchdog, notify, notify_reloading, watchdog_s

WANTED = [
    pytest.param({}, None, id="no-service-manager"),
    pytest.param({"WATCHDOG_USEC": "60000000"}, 60.0, id="whichever-process"),
    pytest.param({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5, id="this-process"),
    pytest.param({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None, id="another-process"),
    pytest.param({"WATCHDOG_USEC": "0"}, None, id="switched-off"),
    pytest.param({"WATCHDOG_USEC": "soon"}, None, id="nonsense"),
]


@pytest.mark.parametrize(("environment", "seconds"), WANTED)
def test_how_often_a_sign_is_wanted(environment: dict[str, str], seconds: float | None) -> None:
    assert watchdog_s(environment) == seconds


def test_signs_are_given_twice_as_often_as_wanted_and_stop_while_something_does_not_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said, slept = [], []
    stalls = iter(["", "", "no round", "no round", "", "no round"])

    async def sleep(seconds) -> None:
        slept.append(seconds)
        if len(slept) == 6:
            raise KeyboardInterrupt
        await asyncio.sleep(0)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(
            keep_watchdog(60.0, lambda: next(stalls), say=lambda word: said.append((len(slept), word)), sleep=sleep)
        )
    assert said == [(0, "WATCHDOG=1"), (1, "WATCHDOG=1"), (4, "WATCHDOG=1")]
    assert set(slept) == {30.0}
    assert caplog.text.count("no round") == 2  # once each time


def test_a_service_manager_that_reads_nothing_does_not_hold_the_daemon_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        notify_reloading()
        assert end.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        for _ in range(5000):
            notify("WATCHDOG=1")
