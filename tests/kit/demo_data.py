"""The real data sets that the demo packs into images: what Debian and Python packages ship."""

import hashlib
import importlib.util
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RealData:
    """One data set: where its files come from."""

    name: str
    origin: str
    files: tuple[Path, ...]


def find_real_data() -> list[RealData]:
    """Find the data sets on this machine, the largest first.

    Raises: FileNotFoundError: a package is not installed; the message names it.
    """
    sklearn, vega = _package("sklearn", "scikit-learn"), _package("vega_datasets", "vega_datasets")
    return [
        _real("unicode", "Unicode's character database, Debian's unicode-data", Path("/usr/share/unicode").rglob("*")),
        _real("gcide", "an English dictionary of 1913, Debian's dict-gcide", Path("/usr/share/dictd").glob("gcide.*")),
        _real("vega", "weather, airports, stocks ..., Python's vega_datasets", (vega / "_data").iterdir()),
        _real(
            "sklearn",
            "iris, digits, two photographs ..., Python's scikit-learn",
            [*(sklearn / "datasets/data").glob("*.csv*"), *(sklearn / "datasets/images").glob("*.jpg")],
        ),
    ]


def lay_out(data: RealData, directory: Path) -> Path:
    """Copy a data set's files into `directory`/<name>, and write their SHA-256 sums to `directory`/<name>.sha256.

    Returns: the directory with the files.
    """
    target = directory / data.name
    target.mkdir(parents=True)
    lines = []
    for number, file in enumerate(data.files):
        name = file.name if not (target / file.name).exists() else f"{number}-{file.name}"
        shutil.copyfile(file, target / name)
        lines.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n")
    (directory / f"{data.name}.sha256").write_text("".join(lines))
    return target


def _real(name: str, origin: str, files: Iterable[Path]) -> RealData:
    found = tuple(sorted(file for file in files if file.is_file()))
    if not found:
        raise FileNotFoundError(f"no files for {name} ({origin}): install that package")
    return RealData(name, origin, found)


def _package(module: str, distribution: str) -> Path:
    """Find a package's directory without importing it: only its data files are wanted."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the Python package {distribution} is not installed")
    return Path(spec.submodule_search_locations[0])
