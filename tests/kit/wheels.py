"""Makes wheels of what is installed beside this Python, so that pip can install without a network."""

import importlib.metadata
import re
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

_REPOSITORY = Path(__file__).parents[2]


def make_wheels(directory: Path) -> None:
    """Write wheels of this project and of all that it depends on."""
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text())["project"]
    _pack_project(project, directory)
    written: set[str] = set()
    wanted = _names(project["dependencies"])
    while wanted:
        name = wanted.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except PackageNotFoundError:
            continue  # for another Python or system
        if distribution.metadata["Name"] not in written:
            written.add(distribution.metadata["Name"])
            _pack(distribution, directory)
            wanted += _names(distribution.requires or ())


def _names(requirements: Iterable[str]) -> list[str]:
    """The names in requirements, but for those of extras."""
    return [re.split(r"[\s<>=!~;\[(]", each, maxsplit=1)[0] for each in requirements if "extra ==" not in each]


def _pack(distribution: Distribution, directory: Path) -> None:
    tag = re.findall(r"^Tag: (\S+)$", distribution.read_text("WHEEL") or "", re.MULTILINE)[0]
    name = re.sub(r"[-.]+", "_", distribution.metadata["Name"])
    # Scripts are outside of site-packages.
    files = [file for file in distribution.files or () if ".." not in file.parts and file.suffix != ".pyc"]
    with zipfile.ZipFile(directory / f"{name}-{distribution.version}-{tag}.whl", "w") as archive:
        for file in files:
            archive.write(str(file.locate()), str(file))


def _pack_project(project: dict[str, object], directory: Path) -> None:
    name, version = "scratch_slurm", project["version"]
    requires, scripts = project["dependencies"], project["scripts"]
    assert isinstance(requires, list) and isinstance(scripts, dict)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    info = {
        "METADATA": "\n".join(lines) + "\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": "[console_scripts]\n" + "".join(f"{key} = {value}\n" for key, value in scripts.items()),
    }
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path in sorted((_REPOSITORY / name).rglob("*.py")):
            archive.write(path, path.relative_to(_REPOSITORY))
        for file, text in info.items():
            archive.writestr(f"{name}-{version}.dist-info/{file}", text)
        archive.writestr(f"{name}-{version}.dist-info/RECORD", "".join(f"{each},,\n" for each in archive.namelist()))
