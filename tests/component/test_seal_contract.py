"""Both seals keep the contract of `node.seal.interface`: munge with a munged of the test's own, and a key file."""

import concurrent.futures
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from scratch_slurm.domain.errors import ConfigError, SealError, SealFault
from scratch_slurm.node.seal.interface import PAYLOAD_LIMIT_BYTES, SEALED_LIMIT_BYTES, Seal
from scratch_slurm.node.seal.keyfile import KEY_LEAST_BYTES, KEY_MOST_BYTES, KeyFileSeal, read_key
from scratch_slurm.node.seal.munge import MungeSeal
from tests.kit.munged import Munged, own_munged
from tests.kit.people import STRANGER_UID, as_nobody

PAYLOAD = b"poll of n1\0" + bytes(range(256))
KEY = b"k" * KEY_LEAST_BYTES
THREADS = 8

needs_munge = pytest.mark.skipif(shutil.which("munged") is None, reason="needs munge")


class World(Protocol):
    """A kind of seal, and what else may come."""

    sealer: Seal
    opener: Seal

    def old(self) -> list[tuple[Seal, bytes]]:
        """Make messages that each were good, and are too old by now for the opener beside them."""
        ...

    def foreign(self) -> bytes:
        """Seal `PAYLOAD` with a key that is not ours."""
        ...


class SealContract:
    """What every implementation does."""

    @pytest.mark.parametrize(
        "payload",
        [b"", b"\0", PAYLOAD, secrets.token_bytes(PAYLOAD_LIMIT_BYTES), bytes(PAYLOAD_LIMIT_BYTES)],
        ids=["empty", "a-nul", "all-bytes", "as-large-as-may-be", "that-of-zeros"],
    )
    def test_what_is_sealed_is_opened(self, world: World, payload: bytes) -> None:
        sealed = world.sealer.seal(payload)
        assert len(sealed) <= SEALED_LIMIT_BYTES
        assert world.opener.open(sealed) == payload

    def test_the_same_payload_is_opened_as_often_as_it_is_sealed(self, world: World) -> None:
        messages = [world.sealer.seal(PAYLOAD) for _ in range(20)]
        assert len(set(messages)) == 20
        assert [world.opener.open(sealed) for sealed in reversed(messages)] == [PAYLOAD] * 20

    def test_a_message_is_opened_once_whoever_comes_at_the_same_time(self, world: World) -> None:
        sealed = world.sealer.seal(PAYLOAD)

        def open_it() -> bytes | SealFault:
            try:
                return world.opener.open(sealed)
            except SealError as exc:
                return exc.fault

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            found = [future.result() for future in [pool.submit(open_it) for _ in range(2 * THREADS)]]
        assert sorted(map(str, found)) == sorted([str(PAYLOAD), *["replayed"] * (2 * THREADS - 1)])

    def test_an_old_one_is_refused(self, world: World) -> None:
        for opener, sealed in world.old():
            check_refused(opener, sealed, SealFault.EXPIRED)

    def test_an_altered_one_is_refused_wherever_it_is_altered(self, world: World) -> None:
        sealed = world.sealer.seal(PAYLOAD)
        for place in [*range(0, len(sealed) - 8, 7), len(sealed) - 8]:
            check_refused(world.opener, replace(sealed, place), SealFault.ALTERED)
        for other in (
            sealed + b"x",
            sealed + b"\0",
            b" " + sealed,
            sealed[:-1],
            sealed[1:],
            sealed[: len(sealed) // 2],
        ):
            check_refused(world.opener, other, SealFault.ALTERED)
        assert world.opener.open(sealed) == PAYLOAD  # none of them used it up

    def test_one_of_another_key_is_refused(self, world: World) -> None:
        check_refused(world.opener, world.foreign(), SealFault.ALTERED)

    @pytest.mark.parametrize(
        "garbage",
        [b"", b"\0", b"MUNGE:", b"MUNGE::", b"MUNGE:AAAA:", b"\xff" * 1000, b"scratch-slurm seal 1\n", PAYLOAD],
    )
    def test_garbage_is_refused(self, world: World, garbage: bytes) -> None:
        check_refused(world.opener, garbage, SealFault.ALTERED)

    def test_random_garbage_is_refused(self, world: World) -> None:
        sealed = world.sealer.seal(PAYLOAD)
        for size in (1, 60, 144, 1000, SEALED_LIMIT_BYTES):
            check_refused(world.opener, os.urandom(size), SealFault.ALTERED)
            check_refused(world.opener, (sealed[:40] + os.urandom(size))[:size], SealFault.ALTERED)

    def test_what_is_too_large_is_neither_sealed_nor_looked_at(self, world: World) -> None:
        with pytest.raises(SealError, match=f"{PAYLOAD_LIMIT_BYTES + 1} bytes") as caught:
            world.sealer.seal(bytes(PAYLOAD_LIMIT_BYTES + 1))
        assert caught.value.fault == SealFault.TOO_LARGE
        check_refused(world.opener, bytes(SEALED_LIMIT_BYTES + 1), SealFault.TOO_LARGE)


def check_refused(opener: Seal, sealed: bytes, fault: SealFault) -> None:
    with pytest.raises(SealError) as caught:
        opener.open(sealed)
    assert caught.value.fault == fault, caught.value


def replace(sealed: bytes, place: int) -> bytes:
    """Put another byte at a place, one of base64's."""
    return sealed[:place] + (b"A" if sealed[place : place + 1] != b"A" else b"B") + sealed[place + 1 :]


class MungeWorld:
    def __init__(self, munged: Munged, foreign: Munged) -> None:
        self.munged, self._foreign = munged, foreign
        self.sealer = self.opener = self.seal_of()

    def seal_of(self, *, reader_uid: int = 0, ttl_s: int = 60) -> MungeSeal:
        return MungeSeal({0}, reader_uid, socket_path=self.munged.socket_path, ttl_s=ttl_s)

    def old(self) -> list[tuple[Seal, bytes]]:
        """Make one that was sealed for a second, and one for a minute that an opener of a second is to open."""
        short = self.seal_of(ttl_s=1)
        messages: list[tuple[Seal, bytes]]
        messages = [(self.opener, short.seal(PAYLOAD)), (short, self.sealer.seal(PAYLOAD))]
        old_at = time.time() + 3  # munge counts whole seconds
        while time.time() < old_at:
            time.sleep(0.1)  # munged has the machine's clock
        return messages

    def foreign(self) -> bytes:
        return MungeSeal({0}, 0, socket_path=self._foreign.socket_path).seal(PAYLOAD)


@pytest.fixture(scope="module")
def munges() -> Iterator[tuple[Munged, Munged]]:
    """One that serves, and one with another key."""
    with own_munged() as munged, own_munged() as foreign:
        yield munged, foreign


@needs_munge
@pytest.mark.root
class TestMunge(SealContract):
    @pytest.fixture
    def world(self, munges: tuple[Munged, Munged]) -> MungeWorld:
        return MungeWorld(*munges)

    def test_one_sealed_by_another_uid_is_refused(self, world: MungeWorld) -> None:
        argv = ["munge", f"--socket={world.munged.socket_path}", "--string=poll of n1", "--restrict-uid=0"]
        made = subprocess.run(argv, check=True, capture_output=True, user=STRANGER_UID, group=STRANGER_UID)
        with pytest.raises(SealError, match=f"sealed by uid {STRANGER_UID}: only those of uid 0") as caught:
            world.opener.open(made.stdout.strip())
        assert caught.value.fault == SealFault.OTHER_UID

    def test_one_of_a_uid_that_may_is_opened(self, world: MungeWorld) -> None:
        argv = ["munge", f"--socket={world.munged.socket_path}", "--string=answer", "--restrict-uid=0"]
        made = subprocess.run(argv, check=True, capture_output=True, user=STRANGER_UID, group=STRANGER_UID)
        opener = MungeSeal({STRANGER_UID, 0}, 0, socket_path=world.munged.socket_path)
        assert opener.open(made.stdout.strip()) == b"answer"

    def test_one_sealed_for_another_uid_is_refused_and_that_one_opens_it(self, world: MungeWorld) -> None:
        sealed = world.seal_of(reader_uid=STRANGER_UID).seal(b"for the stranger")
        check_refused(world.opener, sealed, SealFault.OTHER_UID)
        argv = ["unmunge", f"--socket={world.munged.socket_path}", "--metadata=/dev/null"]
        read = subprocess.run(
            argv, input=sealed, check=True, capture_output=True, user=STRANGER_UID, group=STRANGER_UID
        )
        assert read.stdout == b"for the stranger"

    def test_the_payload_cannot_be_read_on_the_way(self, world: MungeWorld) -> None:
        argv = ["unmunge", f"--socket={world.munged.socket_path}", "--keys=CIPHER,MAC,ZIP"]
        made = subprocess.run(argv, input=world.sealer.seal(PAYLOAD), check=True, capture_output=True)
        assert made.stdout.split()[:6] == b"CIPHER: aes128 (4) MAC: sha256 (5)".split()


@needs_munge
@pytest.mark.root
def test_a_munged_that_hangs_or_does_not_run_is_given_up() -> None:
    with own_munged() as munged:
        seal = MungeSeal({0}, 0, socket_path=munged.socket_path)
        sealed = seal.seal(PAYLOAD)
        # Each of the two takes libmunge's own 10 s: at the same time.
        with munged.stopped(), concurrent.futures.ThreadPoolExecutor(2) as pool:
            hanging: list[concurrent.futures.Future[bytes]]
            hanging = [pool.submit(seal.seal, PAYLOAD), pool.submit(seal.open, sealed)]
            check_refused(seal, bytes(SEALED_LIMIT_BYTES + 1), SealFault.TOO_LARGE)
            check_refused(seal, os.urandom(1000), SealFault.ALTERED)
            for future in hanging:
                with pytest.raises(SealError) as caught:
                    future.result()
                assert caught.value.fault == SealFault.UNAVAILABLE
        assert seal.open(sealed) == PAYLOAD
        munged.end()
        with pytest.raises(SealError, match="systemctl start munge") as caught:
            seal.seal(PAYLOAD)
        assert caught.value.fault == SealFault.UNAVAILABLE


class KeyFileWorld:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.sealer, self.opener = self.seal_of(KEY), self.seal_of(KEY)

    def seal_of(self, key: bytes) -> KeyFileSeal:
        return KeyFileSeal(key, now=lambda: self.now)

    def old(self) -> list[tuple[Seal, bytes]]:
        sealed = self.sealer.seal(PAYLOAD)
        self.now += 60.001
        return [(self.opener, sealed)]

    def foreign(self) -> bytes:
        return self.seal_of(KEY + b"2").seal(PAYLOAD)


class TestKeyFile(SealContract):
    @pytest.fixture
    def world(self) -> KeyFileWorld:
        return KeyFileWorld()

    def test_one_of_the_future_is_refused_and_how_far_the_clocks_are_apart_is_said(self, world: KeyFileWorld) -> None:
        sealed = world.sealer.seal(PAYLOAD)
        world.now -= 61
        with pytest.raises(SealError, match=r"61\.0 s in the future: 60 s are allowed") as caught:
            world.opener.open(sealed)
        assert caught.value.fault == SealFault.EXPIRED
        world.now += 1
        assert world.opener.open(sealed) == PAYLOAD

    def test_one_that_was_opened_is_not_opened_again_whatever_the_clock_does(self, world: KeyFileWorld) -> None:
        sealed = world.sealer.seal(PAYLOAD)
        world.opener.open(sealed)
        for step_s, fault in ((50, SealFault.REPLAYED), (20, SealFault.EXPIRED), (-70, SealFault.EXPIRED)):
            world.now += step_s
            check_refused(world.opener, world.sealer.seal(b"") and sealed, fault)

    def test_the_longest_stamp_of_the_future_is_remembered_until_it_is_old(self, world: KeyFileWorld) -> None:
        sealed = world.sealer.seal(PAYLOAD)
        world.now -= 60
        world.opener.open(sealed)
        world.now += 120
        check_refused(world.opener, sealed, SealFault.REPLAYED)
        world.now += 0.001
        check_refused(world.opener, sealed, SealFault.EXPIRED)


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


def test_a_key_that_is_ours_alone_is_read(key_path: Path) -> None:
    assert read_key(key_path) == KEY
    key_path.chmod(0o400)
    assert read_key(key_path) == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601])
def test_a_key_that_others_may_use_is_refused(key_path: Path, mode: int) -> None:
    key_path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}"):
        read_key(key_path)


@pytest.mark.root
def test_a_strangers_key_is_refused_and_ours_is_not_read_by_a_stranger(key_path: Path) -> None:
    with as_nobody(), pytest.raises(ConfigError, match="cannot read the key"):
        read_key(key_path)
    os.chown(key_path, STRANGER_UID, 0)
    with pytest.raises(ConfigError, match=f"belongs to uid {STRANGER_UID}"):
        read_key(key_path)


@pytest.mark.parametrize("size", [0, KEY_LEAST_BYTES - 1, KEY_MOST_BYTES + 1])
def test_a_key_of_a_wrong_size_is_refused(key_path: Path, size: int) -> None:
    key_path.write_bytes(bytes(size))
    with pytest.raises(ConfigError, match=f"a key has {KEY_LEAST_BYTES} to {KEY_MOST_BYTES}"):
        read_key(key_path)


def test_what_is_no_file_is_no_key(tmp_path: Path, key_path: Path) -> None:
    (tmp_path / "link").symlink_to(key_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, words in (("link", "cannot"), ("nothing", "cannot"), ("pipe", "no regular"), (".", "no regular")):
        with pytest.raises(ConfigError, match=words):
            read_key(tmp_path / name)
