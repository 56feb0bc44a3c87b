"""The floors: what each part of the package may import, read from the sources themselves."""

import ast
import sys
from pathlib import Path

import pytest

import scratch_slurm

PACKAGE = Path(scratch_slurm.__file__).parent
TESTS = Path(__file__).parents[1]

# Floor -> the floors it may import from; within node, further rules hold below.
FLOORS = {
    "domain": {"domain"},
    "node": {"domain", "node"},
    "slurm": {"domain", "slurm"},
    "service": {"domain", "node", "slurm", "service"},
    "station": {"domain", "node", "slurm", "service", "station"},
    "hooks": {"domain", "node", "service", "hooks"},
    "build": {"domain", "node", "build"},
    "cli": {"domain", "node", "slurm", "build", "cli"},
}

# A room of node -> the rooms it may import from. What lies in no room owns one outside thing each.
ROOMS = {
    "kernel": {"kernel"},
    "staging": {"staging", "origins"},  # a copy reads from a Supplier
    "ledger": {"ledger"},
    "origins": {"origins"},
    "seal": {"seal"},
    "polls": {"polls", "seal"},  # a poll is sealed
}

# Outside the rooms, only the parts of one thing know each other.
PARTS_OF_ONE_THING = {
    "placement": {"kernel"},  # what should be mounted, and what is
    "hookconfig": {"configfile"},  # the configuration, made ready for the hooks
}

# What owns nothing, and all of node may use: words for what the system answers, and calls that Python does not wrap.
WORDS = {"oswords", "owner", "rawio"}

# What makes a decision depend on anything but its arguments, or does anything but return. Paths are plain values here.
IMPURE = {
    "aiohttp", "asyncio", "blake3", "concurrent", "contextvars", "ctypes", "datetime", "fcntl", "filelock", "glob",
    "io", "logging", "mmap", "multiprocessing", "os", "platform", "random", "resource", "secrets", "select",
    "selectors", "shutil", "signal", "socket", "sqlite3", "subprocess", "sys", "tempfile", "threading", "time",
    "urllib", "yaml",
}  # fmt: skip
PATH_EFFECTS = {
    "absolute", "chmod", "cwd", "exists", "expanduser", "glob", "group", "home", "hardlink_to", "is_dir", "is_file",
    "is_mount", "is_symlink", "iterdir", "lchmod", "lstat", "mkdir", "open", "owner", "read_bytes", "read_text",
    "readlink", "rename", "resolve", "rglob", "rmdir", "samefile", "stat", "symlink_to", "touch", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> list[str]:
    """The full names that a file imports, at its top and inside functions: `from a.b import c` is a.b.c."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def our_imports(path: Path) -> set[tuple[str, ...]]:
    """(floor, module) of each import from this package."""
    own = [name.split(".") for name in imports(path) if name.split(".")[0] == "scratch_slurm"]
    return {(parts[1], parts[2] if len(parts) > 2 else "") for parts in own if parts[1] in FLOORS}


def by_floor(*floors):
    cases = [(floor, path) for floor in floors for path in sources(PACKAGE / floor)]
    return pytest.mark.parametrize(("floor", "path"), cases, ids=[f"{floor}/{path.stem}" for floor, path in cases])


def test_every_folder_is_a_floor() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == FLOORS.keys()
    assert all(sources(PACKAGE / floor) for floor in FLOORS)


@by_floor(*FLOORS)
def test_a_floor_imports_only_what_lies_below(floor: str, path: Path) -> None:
    assert {below for below, _ in our_imports(path)} <= FLOORS[floor]


@by_floor("hooks")
def test_of_the_service_a_hook_knows_only_what_a_worker_is_asked_and_only_where_it_mounts(
    floor: str, path: Path
) -> None:
    known = {module for below, module in our_imports(path) if below == "service"}
    assert known == ({"operations"} if path.stem == "mounting" else set())


@by_floor("node")
def test_a_room_of_node_does_not_know_the_others(floor: str, path: Path) -> None:
    known = {module for below, module in our_imports(path) if below == "node"} - WORDS
    room = path.parent.name
    assert known <= (ROOMS[room] if room in ROOMS else PARTS_OF_ONE_THING.get(path.stem, set()))


def test_every_folder_of_node_is_a_room() -> None:
    assert {path.name for path in (PACKAGE / "node").iterdir() if (path / "__init__.py").exists()} == ROOMS.keys()


def test_no_part_is_allowed_that_is_not_used() -> None:
    for module, parts in PARTS_OF_ONE_THING.items():
        used = {part for floor, part in our_imports(PACKAGE / "node" / f"{module}.py") if floor == "node"} - WORDS
        assert used == parts, module


@by_floor("domain")
def test_domain_is_pure(floor: str, path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)}.isdisjoint(IMPURE)
    tree = ast.parse(path.read_text())
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    builtin = {func.id for func in calls if isinstance(func, ast.Name)}
    assert builtin.isdisjoint({"open", "print", "input", "exec", "eval", "breakpoint"})
    if any(name.startswith("pathlib") for name in imports(path)):
        assert {func.attr for func in calls if isinstance(func, ast.Attribute)}.isdisjoint(PATH_EFFECTS)


@by_floor("domain")
def test_domain_depends_on_one_library_only(floor: str, path: Path) -> None:
    foreign = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert foreign <= {"msgspec", "scratch_slurm"}


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_shell_starts_a_program(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            shells = [keyword for keyword in node.keywords if keyword.arg == "shell"]
            assert not shells
            named = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            assert named not in ("system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell")


@pytest.mark.parametrize(
    "path", [*sources(PACKAGE), *sources(TESTS)], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_nothing_is_mocked(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] in ("mock", "pytest_mock") or "unittest" in name]
