"""Ranges of a file filled by several threads at once and taken in order, in a bounded amount of memory.

It knows neither files nor what the bytes are for.
"""

import contextlib
import mmap
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

MEMORY_BYTES = 64 << 20
"""All buffers together, however many readers there are."""
MOST_PIECE_BYTES = 1 << 20

_FIRST_PIECE_BYTES = 64 << 10
_LEAST_PIECE_BYTES = 4 << 10


class Ranges:
    """A pool of readers (threads) that fill ranges, hand them to one consumer in order, and write them out meanwhile.

        with Ranges(fill, write, start, end, range_bytes=2 << 20, readers=16) as ranges:
            for view in ranges:  # in the file's order; valid until the next one is asked for
                hasher.update(view)

    A buffer is free again when its range is both written and consumed. Buffers and ranges are given out together and
    in order, so the range that the consumer waits for always has one. The first error of any reader stops all of
    them and is raised in the consumer. Leaving the block waits for calls under way: where one of them never
    returns, only the end of the process helps.

    Args:
        fill: (view, offset, length) reads exactly `length` bytes, or raises; `view` is page-aligned.
        write: (view, offset) writes all of `view`, or raises; None when there is nothing to write.
        start, end: offsets; `start` is a multiple of `range_bytes`.
    """

    def __init__(
        self,
        fill: Callable[[memoryview, int, int], None],
        write: Callable[[memoryview, int], None] | None,
        start: int,
        end: int,
        *,
        range_bytes: int,
        readers: int,
    ) -> None:
        self._fill = fill
        self._write = write
        self._start, self._end, self._range_bytes = start, end, range_bytes
        self._count = -(-(end - start) // range_bytes)
        buffers = min(2 * readers, self._count, max(2, MEMORY_BYTES // range_bytes))
        # Anonymous maps, for their alignment; direct I/O asks for it.
        self._free = [memoryview(mmap.mmap(-1, range_bytes)) for _ in range(buffers)]
        self._changed = threading.Condition()
        self._next = 0
        self._filled: dict[int, memoryview] = {}
        self._halfway: set[int] = set()  # written and not consumed, or consumed and not written
        self._written: set[int] = set()
        self._written_up_to = 0
        self._error: BaseException | None = None
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"range-{number}", daemon=True)
            for number in range(min(readers, buffers))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def stopped(self) -> bool:
        """Whether the work is given up; a long wait in `fill` looks here."""
        return self._stopped

    def __iter__(self) -> Iterator[memoryview]:
        for index in range(self._count):
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or index in self._filled)  # noqa: B023 - called at once
                self._raise_error()
                buffer = self._filled.pop(index)
            yield buffer[: self._length(index)]
            self._let_go(index, buffer)

    def wait_written(self, offset: int) -> bool:
        """Wait until everything from the start to `offset`, a range's end, is written; False when it is given up."""
        index = -(-(offset - self._start) // self._range_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._written_up_to >= index)
            return self._written_up_to >= index

    def finish(self) -> None:
        """Wait for the last write. Raises: the first error of any reader."""
        if self._write is not None:
            self.wait_written(self._end)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _length(self, index: int) -> int:
        return min(self._range_bytes, self._end - self._start - index * self._range_bytes)

    def _work(self) -> None:
        try:
            while (taken := self._take()) is not None:
                index, buffer = taken
                offset, length = self._start + index * self._range_bytes, self._length(index)
                self._fill(buffer, offset, length)
                with self._changed:
                    self._filled[index] = buffer
                    self._changed.notify_all()
                if self._write is not None:
                    self._write(buffer[:length], offset)
                    self._mark_written(index)
                    self._let_go(index, buffer)
        except BaseException as exc:  # raised again in the consumer, which is the caller's thread
            with self._changed:
                self._error = self._error or exc
                self._stopped = True
                self._changed.notify_all()

    def _take(self) -> tuple[int, memoryview] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._free or self._next >= self._count)
            if self._stopped or self._next >= self._count:
                return None
            self._next += 1
            return self._next - 1, self._free.pop()

    def _mark_written(self, index: int) -> None:
        with self._changed:
            self._written.add(index)
            while self._written_up_to in self._written:
                self._written.remove(self._written_up_to)
                self._written_up_to += 1
            self._changed.notify_all()

    def _let_go(self, index: int, buffer: memoryview) -> None:
        with self._changed:
            if self._write is not None and index not in self._halfway:
                self._halfway.add(index)
                return
            self._halfway.discard(index)
            self._free.append(buffer)
            self._changed.notify_all()


class RateLimit:
    """A token bucket that several threads share; it saves up nothing while idle.

    Args:
        bytes_per_s: at most this, on average over a few ranges; None is no limit.
    """

    def __init__(self, bytes_per_s: int | None, *, now: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._bytes_per_s = bytes_per_s
        self._now = now
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = now()

    def take(self, length: int, given_up: Callable[[], bool]) -> None:
        """Wait for the turn of `length` bytes; returns early when the copy is given up."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            due = max(self._free_at, self._now())
            self._free_at = due + length / self._bytes_per_s
        while (left := due - self._now()) > 0 and not given_up():
            self._sleep(min(left, 0.25))


class PieceSize:
    """How much to ask of a source at once: what it delivers within seconds, so that each answer is a sign of life.

    Several threads share it. It begins small, and a source that is fast soon gets the most.
    """

    def __init__(self, *, now: Callable[[], float]) -> None:
        self.bytes = _FIRST_PIECE_BYTES
        self._now = now

    @contextlib.contextmanager
    def next(self, left_bytes: int) -> Iterator[int]:
        """Give the size of the next piece of `left_bytes`, which is read within the block.

        A piece that took seconds makes the next one smaller, and else larger. Of the pieces under way only the first
        one does: the others, asked for when the size was another, would say the same again.
        """
        asked, began_at = self.bytes, self._now()
        yield min(asked, left_bytes)
        took_s = self._now() - began_at
        if asked <= left_bytes and asked == self.bytes:
            if took_s < 1.0:
                self.bytes = min(2 * asked, MOST_PIECE_BYTES)
            elif took_s > 4.0:
                self.bytes = max(asked // 2, _LEAST_PIECE_BYTES)
