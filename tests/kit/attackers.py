"""Unprivileged processes that do to the daemon's socket what a user can, for ever, until they are killed."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Each is a body for a loop over `sockets`, connections that are open; `call()` makes one.
_PROGRAM = """
import os, random, resource, socket, sys, time
path, kind, seed = sys.argv[1:]
rng = random.Random(seed)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
held = []

def call():
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(5)
    try:
        caller.connect(path)
    except OSError:
        caller.close()
        time.sleep(0.01)
        return None
    return caller

def say(caller, content):
    try:
        caller.sendall(content)
    except OSError:
        pass

def read(caller):
    try:
        while caller.recv(65536):
            pass
    except OSError:
        pass
    caller.close()

def post(path, body, more=b""):
    return b"POST %s HTTP/1.1\\r\\nHost: x\\r\\n%sContent-Length: %d\\r\\n\\r\\n%s" % (path, more, len(body), body)

STATUS = b"GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"
BAD = [
    post(b"/v1/wait", b'{"datasets":["\\xff"]}'),
    post(b"/v1/wait", b'{"datasets":[],"z":' + b"[" * 30000),
    post(b"/v1/plan", b"0123456789", b"Content-Encoding: gzip\\r\\n"),
    post(b"/v1/release", b'{"job_id":99999999999999999999999}'),
    post(b"/v1/evict", b'{"dataset":"a"}'),
    post(b"/v1/" + b"x" * 500, b""),
]
FINE = [
    post(b"/v1/wait", b'{"datasets":["a","b","none"]}'),
    post(b"/v1/plan", b"{}"),
    post(b"/v1/release", b'{"job_id":%d}' % rng.randrange(1, 99)),
    STATUS,
]

def hold():
    caller = call()
    if caller:
        held.append(caller)
    if len(held) > 2000:
        time.sleep(0.1)

def leave_unread():
    caller = call()
    if caller:
        say(caller, STATUS * 20)
        held.append(caller)
    if len(held) > 500:
        held.pop(0).close()

def say_half():
    caller = call()
    if caller:
        whole = rng.choice(BAD + FINE)
        say(caller, whole[:rng.randrange(len(whole))])
        held.append(caller)
    if len(held) > 50:
        held.pop(rng.randrange(50)).close()

def say_garbage():
    caller = call()
    if caller:
        say(caller, rng.randbytes(rng.randrange(20000)))
        read(caller)

def say_what_is_wrong():
    caller = call()
    if caller:
        say(caller, rng.choice(BAD))
        read(caller)

def say_much_at_once():
    caller = call()
    if caller:
        say(caller, rng.choice(FINE) * 1000)
        read(caller)

def wait_long():
    caller = call()
    if caller:
        say(caller, post(b"/v1/wait", b'{"datasets":["a","b","none"],"timeout_s":60}'))
        held.append(caller)
    if len(held) > 40:
        held.pop(0).close()

def ask_what_is_fine():
    caller = call()
    if caller:
        say(caller, rng.choice(FINE))
        read(caller)

while True:
    globals()[kind]()
"""

KINDS = (
    "hold",
    "leave_unread",
    "say_half",
    "say_garbage",
    "say_what_is_wrong",
    "say_much_at_once",
    "wait_long",
    "ask_what_is_fine",
)


@contextlib.contextmanager
def attack(socket_path: Path, kind: str, *, uid: int, seed: int) -> Iterator[subprocess.Popen[bytes]]:
    """Let a user do one kind of thing to the socket, again and again."""
    argv = ["/usr/bin/python3", "-I", "-c", _PROGRAM, str(socket_path), kind, str(seed)]
    with subprocess.Popen(argv, user=uid, group=uid, extra_groups=[], stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()
