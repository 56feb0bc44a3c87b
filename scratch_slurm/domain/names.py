"""Names: datasets, image files, cached files. The one place that knows their alphabets."""

import re
from collections.abc import Iterable

from scratch_slurm.domain.errors import UsageError

# The SPANK plugin refuses the same names at submit; here root checks again.
DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)

# What our node features may begin with: what Slurm takes in a feature. ( ) * | , & are its operators.
FEATURE_PREFIX = re.compile(r"[A-Za-z0-9_.:@=/+-]{1,32}", re.ASCII)

MAX_DATASETS_PER_JOB = 64

# Suffix of an image file in the source -> file system type that mounts it.
IMAGE_SUFFIXES = {".squashfs": "squashfs", ".sqsh": "squashfs", ".sqfs": "squashfs", ".erofs": "erofs"}

MANIFEST_SUFFIX = ".json"

_NO_LETTER = re.compile(r"[^A-Z0-9]", re.ASCII)
_CACHED = re.compile(rf"({DATASET_NAME.pattern})@([0-9a-f]{{16}})\.image", re.ASCII)
_TAG = re.compile(r"scratch-slurm:([0-9a-f]{16})", re.ASCII)


def parse_dataset_name(text: str) -> str:
    """Check one dataset name.

    Raises: UsageError: the name is outside `[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}`.
    """
    if not DATASET_NAME.fullmatch(text):
        raise UsageError(
            f"dataset name {text[:80]!r} is not valid",
            hint="1 to 64 letters, digits and . _ @ + -, the first a letter or a digit",
        )
    return text


def parse_dataset_list(text: str) -> tuple[str, ...]:
    """Parse `NAME[,NAME...]` as `--datasets` takes it, in the order of asking, each name once.

    Raises: UsageError: an empty or malformed name, or more than 64 names.
    """
    names = text.split(",", MAX_DATASETS_PER_JOB)
    if len(names) > MAX_DATASETS_PER_JOB:
        raise UsageError(f"--datasets names more than {MAX_DATASETS_PER_JOB} datasets")
    return tuple(dict.fromkeys(parse_dataset_name(name) for name in names))


def dataset_variables(names: Iterable[str]) -> dict[str, str]:
    """Name the environment variable of each dataset, `SCRATCH_DATASET_<NAME>`; the SPANK plugin names them the same.

    What is neither a letter nor a digit becomes `_`. Of several datasets with one variable the first has it.

    Returns: variable -> dataset, in the order of the names.
    """
    variables: dict[str, str] = {}
    for name in names:
        variables.setdefault("SCRATCH_DATASET_" + _NO_LETTER.sub("_", name.upper()), name)
    return variables


def parse_image_name(file_name: str) -> tuple[str, str] | None:
    """Split `<dataset>.squashfs` and its like into (dataset, file system type); None for any other file."""
    for suffix, fs_type in IMAGE_SUFFIXES.items():
        if file_name.endswith(suffix):
            stem = file_name.removesuffix(suffix)
            return (stem, fs_type) if DATASET_NAME.fullmatch(stem) else None
    return None


def cached_file_name(dataset: str, generation_id: str) -> str:
    """Name the cached image's file: `<dataset>@<generation id>.image`."""
    return f"{dataset}@{generation_id}.image"


def parse_cached_file_name(file_name: str) -> tuple[str, str] | None:
    """Split a cached image's file name into (dataset, generation id); None for any other file."""
    match = _CACHED.fullmatch(file_name)
    return (match[1], match[2]) if match else None


def nearest_hint(name: str, known: Iterable[str]) -> str | None:
    """Word a hint with the known names nearest to `name`; None when nothing is near."""
    import difflib  # 10 ms that the hooks, which import this module, need not wait

    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else None


def device_tag(generation_id: str) -> str:
    """Name a loop device of ours by the generation that its backing holds, through every switch.

    Returns: 30 characters; a loop device's name holds 63.
    """
    return f"scratch-slurm:{generation_id}"


def parse_device_tag(tag: str) -> str | None:
    """Give the generation id in a tag; None for a device that is not ours."""
    match = _TAG.fullmatch(tag)
    return match[1] if match else None
