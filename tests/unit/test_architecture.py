"""The pages of promises name tests and files: they must exist."""

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PAGES = ["docs/ARCHITECTURE.md", "docs/RELIABILITY.md"]


@pytest.mark.parametrize("page", _PAGES)
def test_every_name_in_a_page_exists(page: str) -> None:
    text = (_ROOT / page).read_text()
    tests = "\n".join(path.read_text() for path in (_ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert named
    for name in named:
        assert re.search(rf"def {name}\b", tests), f"{page} names {name}, which is nowhere"
    for name in re.findall(r"`((?:tests|bench|scratch_slurm)/[\w/]+\.py)`", text):
        assert (_ROOT / name).is_file(), f"{page} names {name}, which is nowhere"


def test_the_promises_are_numbered() -> None:
    rows = re.findall(r"^\| (\d+) \| .*$", (_ROOT / _PAGES[0]).read_text(), re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 11))


def test_every_fault_has_a_test() -> None:
    rows = re.findall(r"^\| (?!fault|---)(.*) \|$", (_ROOT / _PAGES[1]).read_text(), re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        fault, promise, tests = row.split(" | ")
        assert fault
        assert promise
        assert re.fullmatch(r"`test_\w+`(, `test_\w+`)*", tests), fault
