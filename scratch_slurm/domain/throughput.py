"""Read rates from counters: one counter a dataset, through every switch and restart of its device."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping

import msgspec

from scratch_slurm.domain.dataset import Reads
from scratch_slurm.domain.model import Backing

RECENT_S = 30.0

# A window is kept as so many samples at most, whatever happens in it.
_SAMPLES = 60

# Of a streak that has just begun the rate is its mean over a tenth of the period at least: no burst is a rate.
_LEAST_PART = 0.1
# What the configured horizon weighs against the streaks that were watched here, and how far they may move it: an
# administrator's word stands until the node knows better, and keeps its meaning then.
_PRIOR_STREAKS = 2
_MOST_TIMES = 8.0


# The names that the file of counters has had from its first version on.
_SAVED_AS = {
    "streak_since": "reading_since",
    "streak_from_bytes": "reading_from_bytes",
    "ended_streaks": "ended_readings",
    "ended_streaks_s": "ended_readings_s",
}


class ReadCounter(msgspec.Struct, rename=_SAVED_AS):
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
    streak_since: float = 0.0
    """Monotonic seconds; since when it has been read without a pause of a whole period: this is called a streak."""
    last_read_at: float | None = None
    """Monotonic seconds; None: never."""
    samples: list[tuple[float, int]] = []
    """(monotonic seconds, bytes read in all), oldest first; the first may lie just before the window."""
    streak_from_bytes: int = 0
    """Bytes read in all when the latest streak began."""
    ended_streaks: int = 0
    """How many streaks are over, but for the latest."""
    ended_streaks_s: float = 0.0
    """How long these went on, together."""

    @property
    def total_bytes(self) -> int:
        return self.source_bytes + self.cache_bytes

    def sample(self, now: float, device: str, device_bytes: int, backing: Backing) -> int:
        """Take one sample of the device's counter.

        Args:
            now: monotonic seconds.
            device_bytes: bytes read from the device since it was bound.
            backing: which file served them.
        Returns: bytes read since the sample before.
        """
        known = device == self.device and device_bytes >= self.device_bytes
        new_bytes = device_bytes - self.device_bytes if known else 0
        self.device, self.device_bytes = device, device_bytes
        if new_bytes:
            if backing is Backing.CACHE:
                self.cache_bytes += new_bytes
            else:
                self.source_bytes += new_bytes
            if not self.is_read(now):
                self._begin_streak(now, new_bytes)
            self.last_read_at = now
        self._add(now)
        return new_bytes

    def is_read(self, now: float) -> bool:
        """Whether its latest streak goes on, as far as can be told before a whole period has passed without a read."""
        return self.last_read_at is not None and now - self.last_read_at <= self.period_s

    @property
    def is_flat(self) -> bool:
        """Whether nothing was read in the window."""
        return not self.samples or self.samples[0][1] == self.total_bytes

    def streak_s(self, now: float) -> float:
        """For how long it has been read without a pause of a whole period; 0 when it is not read now."""
        return now - self.streak_since if self.is_read(now) else 0.0

    def streak_bytes(self, now: float) -> int:
        """How much has been read in the streak that goes on; 0 when it is not read now."""
        return self.total_bytes - self.streak_from_bytes if self.is_read(now) else 0

    def streak_rate(self, now: float, span_s: float) -> float:
        """Bytes per second over the last `span_s` seconds, while it is read; 0 when it is not read now.

        A streak that began within the span is measured since then, and over a tenth of the span at least: a job that
        has read for a minute is not taken for a tenth of what it is.
        """
        if not self.is_read(now):
            return 0.0
        watched_s = max(_LEAST_PART * span_s, now - self.streak_since)
        return self.bytes_per_s(now, min(span_s, watched_s))

    def reads(self, now: float) -> Reads:
        """Tell how the dataset is read now."""
        last_at = self.last_read_at
        if last_at is None or now - last_at > self.period_s:
            return Reads(0.0, 0.0, math.inf, last_at or 0.0, self.source_bytes, self.cache_bytes)
        return Reads(
            self.streak_rate(now, self.period_s),
            now - self.streak_since,
            self.source_bytes + self.cache_bytes - self.streak_from_bytes,
            last_at,
            self.source_bytes,
            self.cache_bytes,
        )

    def _begin_streak(self, now: float, new_bytes: int) -> None:
        if self.last_read_at is not None:
            self.ended_streaks += 1
            self.ended_streaks_s += self.last_read_at - self.streak_since
        # Between the sample before and this one; a rate must not be thought higher than it can be.
        self.streak_since = max(self.samples[-1][0], now - self.period_s) if self.samples else now
        self.streak_from_bytes = self.total_bytes - new_bytes

    def _add(self, now: float) -> None:
        """Keep the sample; one close behind the last but one takes the last one's place, so a window stays small."""
        samples, total = self.samples, self.source_bytes + self.cache_bytes
        before_at, before = samples[-2] if len(samples) > 1 else (-math.inf, -1)
        is_still = before == total == samples[-1][1] if len(samples) > 1 else False
        if is_still or now - before_at < self.period_s / _SAMPLES:
            samples[-1] = (now, total)
        else:
            samples.append((now, total))
        if len(samples) > 2 and samples[1][0] <= now - self.period_s:
            first = 1
            while first + 2 < len(samples) and samples[first + 1][0] <= now - self.period_s:
                first += 1
            del samples[:first]

    def bytes_per_s(self, now: float, span_s: float) -> float:
        """Mean read rate over the last `span_s` seconds; what was not watched counts as no reads.

        So a dataset proves itself by what was really read of it, not by a guess from its first second.
        """
        samples, total = self.samples, self.source_bytes + self.cache_bytes
        if not samples or samples[0][1] == total:
            return 0.0
        began = now - span_s
        after = bisect_right(samples, (began, math.inf))
        at, read = samples[after - 1 if after else 0]
        if at < began and after < len(samples):  # the window begins between two samples
            next_at, next_read = samples[after]
            read += round((next_read - read) * (began - at) / (next_at - at))
        return (total - read) / span_s if total > read else 0.0


def rates(counters: Mapping[str, ReadCounter], now: float, span_s: float) -> dict[str, float]:
    """Bytes per second of each dataset that was read in the last `span_s` seconds."""
    found = {dataset: counter.bytes_per_s(now, span_s) for dataset, counter in counters.items()}
    return {dataset: rate for dataset, rate in found.items() if rate > 0}


def usual_streak_s(counters: Iterable[ReadCounter], now: float, horizon_s: float) -> float:
    """How long a streak goes on at this node, in seconds, on average; so for how long one may trust a rate.

    The mean of a waiting time of which some ends were not seen yet is all the time watched by the ends seen. The
    configured horizon counts as some streaks, is all there is at first, and bounds what is learned.

    Args:
        horizon_s: the configured horizon.
    Source: the exponential distribution's estimate with censored times, and its conjugate prior (Gamma); Epstein and
        Sobel, "Life testing", Journal of the American Statistical Association 48 (1953).
    """
    ended, together_s = float(_PRIOR_STREAKS), _PRIOR_STREAKS * horizon_s
    for counter in counters:
        if counter.last_read_at is not None:
            ended += counter.ended_streaks + (not counter.is_read(now))
            together_s += counter.ended_streaks_s + counter.last_read_at - counter.streak_since
    return min(_MOST_TIMES * horizon_s, max(horizon_s / _MOST_TIMES, together_s / ended))
