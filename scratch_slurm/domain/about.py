"""What people say of a dataset, for other people: five short texts. Pure."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from scratch_slurm.domain.errors import UsageError
from scratch_slurm.domain.words import clean

LIMITS = {"description": 400, "licence": 100, "owner": 100, "contact": 100, "source_url": 300}
"""Characters at most: a node keeps them for every dataset, and sends them with every status."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+", re.ASCII)


class About(msgspec.Struct, frozen=True):
    """The texts; an empty one is not said."""

    description: str = ""
    licence: str = ""
    owner: str = ""
    contact: str = ""
    source_url: str = ""
    """Where the data came from."""


NOTHING_SAID = About()


def check_about(texts: Mapping[str, str | None], former: About) -> About:
    """Make the texts of a new version.

    Args:
        texts: field of About -> what was said; None: it stays as it was.
        former: those of the version before.
    Raises: UsageError: a text is too long, or has characters that cannot be printed; names the option.
    """
    for field, text in texts.items():
        option = "--" + field.replace("_", "-")
        if text is None:
            continue
        if len(text) > LIMITS[field]:
            raise UsageError(f"{option}: has {len(text)} characters, at most {LIMITS[field]}")
        if not text.isprintable():
            raise UsageError(f"{option} {text[:40]!r}: has characters that cannot be printed")
        if field == "source_url" and text and not _URL.fullmatch(text):
            raise UsageError(f"{option} {text[:80]!r}: is no URL", hint="like https://example.org/data, in ASCII")
    return msgspec.structs.replace(former, **{field: text for field, text in texts.items() if text is not None})


def read_about(body: Any) -> About:
    """Read the texts of a manifest, whoever wrote it: what is none is left out, what is too long is cut."""
    if not isinstance(body, dict):
        return NOTHING_SAID
    texts = {field: body[field] for field in LIMITS if isinstance(body.get(field), str)}
    return About(**{field: _fit(text, LIMITS[field]) for field, text in texts.items()})


def _fit(text: str, most: int) -> str:
    text = clean(text[: 4 * most])
    return text if len(text) <= most else text[: most - 3] + "..."
