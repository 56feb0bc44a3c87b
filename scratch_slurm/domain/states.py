"""What a dataset is doing on a node, in a word. Apart from the messages: the hooks read these without msgspec."""

import enum


class DatasetState(enum.StrEnum):
    """What a dataset is doing on this node."""

    CACHED = "cached"
    """The reads come from the cache."""
    STAGING = "staging"
    """The reads come from the source; a copy is under way."""
    QUEUED = "queued"
    """The reads come from the source; a copy is wanted and waits for a worker, for room, or for a retry."""
    SOURCE = "source"
    """The reads come from the source and nobody asked for more."""
    UNMOUNTED = "unmounted"
    """In the source, but not mounted: see `problem`."""
    UNKNOWN = "unknown"
    """Not in the source, as far as this node knows."""
    PRIVATE = "private"
    """It exists; who asks may not read it, and is told no more."""
