"""The pause before the next try of what failed: it doubles, from a first one to a last one. Pure."""

_MOST_DOUBLINGS = 64  # 2.0 ** 1024 is an error


def pause_s(failures: int, first_s: float, last_s: float) -> float:
    """Give the pause after so many failures in a row, the latest included, in seconds.

    Args:
        failures: 1 or more.
        first_s, last_s: the pause after the first failure, and the longest there is.
    """
    return min(last_s, first_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
