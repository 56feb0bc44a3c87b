"""Read rates from counters: one counter a dataset, through every switch and restart of its device."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from scratch_slurm.domain.model import Backing

RECENT_S = 30.0


@dataclass
class ReadCounter:
    """The reads of one dataset, in bytes, over a sliding window of `period_s` seconds.

    A device that was made anew, or a counter that goes backwards, starts from there: nothing is counted twice.
    """

    period_s: float
    device: str = ""
    device_bytes: int = 0
    read_bytes: dict[Backing, int] = field(default_factory=lambda: dict.fromkeys(Backing, 0))
    """All reads since the daemon started, by the backing that served them."""
    samples: deque[tuple[float, int]] = field(default_factory=deque)
    """(monotonic seconds, bytes read in all), oldest first; the first may lie just before the window."""

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
        self.read_bytes[backing] += new_bytes
        self.samples.append((now, sum(self.read_bytes.values())))
        while len(self.samples) > 2 and self.samples[1][0] <= now - self.period_s:
            self.samples.popleft()
        return new_bytes

    def bytes_per_s(self, now: float, span_s: float) -> float:
        """Mean read rate over the last `span_s` seconds, or over as much of it as was watched."""
        if len(self.samples) < 2:
            return 0.0
        latest_at, latest_bytes = self.samples[-1]
        start_at, start_bytes = self.samples[0]
        for at, read in self.samples:
            if at > now - span_s:
                break
            start_at, start_bytes = at, read
        return (latest_bytes - start_bytes) / (now - start_at) if now > start_at and latest_at > start_at else 0.0


def recent_rates(counters: Mapping[str, ReadCounter], now: float) -> dict[str, float]:
    """Bytes per second of each dataset, lately."""
    return {dataset: counter.bytes_per_s(now, RECENT_S) for dataset, counter in counters.items()}
