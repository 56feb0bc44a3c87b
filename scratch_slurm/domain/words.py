"""Small pure helpers for text on a terminal."""

from collections.abc import Iterable


def clean(text: str) -> str:
    """Escape what could steer a terminal or break a line: names and messages come from files that users control.

    Line breaks go too: one message, one line.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def plural(count: int, word: str) -> str:
    """Write `1 job`, `2 jobs`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def join_some(items: Iterable[str], limit: int) -> str:
    """Write the first `limit` items, and how many more there are: `12, 13, +4`."""
    every = list(items)
    shown = every[:limit]
    if len(every) > limit:
        shown.append(f"+{len(every) - limit}")
    return ", ".join(shown)
