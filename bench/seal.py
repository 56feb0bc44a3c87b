"""The time to seal and to open a message between a node and the station, by kind of seal.

Plain is the same payload sent without a seal: over a socket to another process, which sends it back; "x plain" is how
many times as long a seal and an opening take together. munge is a munged of the benchmark's own.
"""

import sys

sys.path[0] = sys.path[0].rpartition("/")[0]  # not bench/: its copy.py would stand in for the standard library's

import contextlib
import multiprocessing
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

from bench import _common as common
from scratch_slurm.node.seal.interface import PAYLOAD_LIMIT_BYTES, Seal
from scratch_slurm.node.seal.keyfile import KeyFileSeal
from scratch_slurm.node.seal.munge import MungeSeal
from tests.kit.munged import own_munged

SIZES_BYTES = (256, 8 * 2**10, 64 * 2**10, PAYLOAD_LIMIT_BYTES)
ROUNDS = 400


def measure(quick: bool) -> common.Figures:
    rounds = ROUNDS // 20 if quick else ROUNDS
    rows = []
    with own_munged() as munged, echo() as connection:
        kinds: list[tuple[str, Seal]] = [
            ("munge", MungeSeal({0}, 0, socket_path=munged.socket_path)),
            ("key file", KeyFileSeal(secrets.token_bytes(32))),
        ]
        for size in SIZES_BYTES:
            payload = secrets.token_bytes(size)
            plain_us = median_us(rounds, partial(exchange, connection, payload))
            rows.append({"kind": "plain", "bytes": size, "exchange_us": plain_us})
            for name, seal in kinds:
                messages: list[bytes] = []
                seal_us = median_us(rounds, partial(seal_into, messages, seal, payload))
                sealed_bytes = len(messages[0])
                open_us = median_us(rounds, partial(open_from, messages, seal))
                rows.append(
                    {
                        "kind": name,
                        "bytes": size,
                        "sealed_bytes": sealed_bytes,
                        "seal_us": seal_us,
                        "open_us": open_us,
                        "x_plain": (seal_us + open_us) / plain_us,
                    }
                )
    return {"rounds": rounds, "rows": rows}


def median_us(rounds: int, call: Callable[[], object]) -> float:
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1e6)
    return common.median(took)


@contextlib.contextmanager
def echo() -> Iterator[socket.socket]:
    """Give a socket to a process that sends back what comes."""
    ours, theirs = socket.socketpair()
    process = multiprocessing.get_context("fork").Process(target=send_back, args=(theirs, ours))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def send_back(connection: socket.socket, parents: socket.socket) -> None:
    parents.close()
    while head := connection.recv(8, socket.MSG_WAITALL):
        connection.sendall(head + connection.recv(int.from_bytes(head), socket.MSG_WAITALL))


def seal_into(messages: list[bytes], seal: Seal, payload: bytes) -> None:
    messages.append(seal.seal(payload))


def open_from(messages: list[bytes], seal: Seal) -> None:
    seal.open(messages.pop())


def exchange(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(len(payload).to_bytes(8) + payload)
    assert connection.recv(8 + len(payload), socket.MSG_WAITALL)[8:] == payload


def show(figures: common.Figures) -> str:
    header = ["kind", "payload bytes", "sealed bytes", "seal µs", "open µs", "together µs", "x plain"]
    rows = []
    for row in figures["rows"]:
        if row["kind"] == "plain":
            rows.append(["plain", row["bytes"], row["bytes"], "", "", row["exchange_us"], 1.0])
        else:
            figures_us = [row["seal_us"], row["open_us"], row["seal_us"] + row["open_us"]]
            rows.append([row["kind"], row["bytes"], row["sealed_bytes"], *figures_us, row["x_plain"]])
    return common.table(header, rows)


if __name__ == "__main__":
    common.main(__doc__, measure, show)
