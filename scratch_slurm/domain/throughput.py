"""Read rates from counters: one counter a dataset, through every switch and restart of its device."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from scratch_slurm.domain.model import Backing

RECENT_S = 30.0

# A window is kept as so many samples at most, whatever happens in it.
_SAMPLES = 60


@dataclass
class ReadCounter:
    """The reads of one dataset, in bytes, over a sliding window of `period_s` seconds.

    A device that was made anew, or a counter that goes backwards, starts from there: nothing is counted twice.
    """

    period_s: float
    device: str = ""
    device_bytes: int = 0
    source_bytes: int = 0
    """Reads that the source served, ever since the counter began."""
    cache_bytes: int = 0
    """Reads that the cache served: what the slow storage was saved."""
    reading_since: float = 0.0
    """Monotonic seconds; since when it has been read without a pause of a whole period."""
    last_read_at: float | None = None
    """Monotonic seconds; None: never."""
    samples: list[tuple[float, int]] = field(default_factory=list)
    """(monotonic seconds, bytes read in all), oldest first; the first may lie just before the window."""

    @property
    def total_bytes(self) -> int:
        return self.source_bytes + self.cache_bytes

    def sample(self, now: float, device: str, device_bytes: int, backing: Backing) -> int:
        """Take one reading of the device's counter.

        Args:
            now: monotonic seconds.
            device_bytes: bytes read from the device since it was bound.
            backing: which file served them.
        Returns: bytes read since the reading before.
        """
        known = device == self.device and device_bytes >= self.device_bytes
        new_bytes = device_bytes - self.device_bytes if known else 0
        self.device, self.device_bytes = device, device_bytes
        if backing is Backing.CACHE:
            self.cache_bytes += new_bytes
        else:
            self.source_bytes += new_bytes
        if new_bytes:
            if self.last_read_at is None or now - self.last_read_at > self.period_s:
                self.reading_since = now
            self.last_read_at = now
        self._add(now)
        return new_bytes

    def read_for_s(self, now: float) -> float:
        """For how long it has been read without a pause of a whole period; 0 when it is not read now."""
        if self.last_read_at is None or now - self.last_read_at > self.period_s:
            return 0.0
        return now - self.reading_since

    def _add(self, now: float) -> None:
        """Keep the sample; one close behind the last but one takes the last one's place, so a window stays small."""
        samples, total = self.samples, self.total_bytes
        still = len(samples) > 1 and samples[-2][1] == samples[-1][1] == total
        close = len(samples) > 1 and now - samples[-2][0] < self.period_s / _SAMPLES
        if still or close:
            samples[-1] = (now, total)
        else:
            samples.append((now, total))
        first = 0
        while first + 2 < len(samples) and samples[first + 1][0] <= now - self.period_s:
            first += 1
        del samples[:first]

    def bytes_per_s(self, now: float, span_s: float) -> float:
        """Mean read rate over the last `span_s` seconds; what was not watched counts as no reads.

        So a dataset proves itself by what was really read of it, not by a guess from its first second.
        """
        if not self.samples or self.samples[0][1] == self.total_bytes:
            return 0.0
        began = now - span_s
        after = bisect_right(self.samples, (began, math.inf))
        at, read = self.samples[max(0, after - 1)]
        if at < began and after < len(self.samples):  # the window begins between two samples
            next_at, next_read = self.samples[after]
            read += round((next_read - read) * (began - at) / (next_at - at))
        return max(0, self.total_bytes - read) / span_s


def rates(counters: Mapping[str, ReadCounter], now: float, span_s: float) -> dict[str, float]:
    """Bytes per second of each dataset that was read in the last `span_s` seconds."""
    found = {dataset: counter.bytes_per_s(now, span_s) for dataset, counter in counters.items()}
    return {dataset: rate for dataset, rate in found.items() if rate > 0}


def read_for(counters: Mapping[str, ReadCounter], now: float) -> dict[str, float]:
    """For how many seconds each dataset that is read now has been read without a pause of a whole period."""
    found = {dataset: counter.read_for_s(now) for dataset, counter in counters.items()}
    return {dataset: seconds for dataset, seconds in found.items() if seconds > 0}
