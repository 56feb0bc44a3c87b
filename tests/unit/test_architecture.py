"""The page of promises names tests: they must exist."""

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs/ARCHITECTURE.md").read_text()


def test_every_promise_names_tests_that_exist() -> None:
    tests = "\n".join(path.read_text() for path in (_ROOT / "tests").rglob("test_*.py"))
    rows = re.findall(r"^\| (\d+) \| .*$", _PAGE, re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 11))
    for name in re.findall(r"`(test_\w+)`", _PAGE):
        assert re.search(rf"def {name}\b", tests), f"docs/ARCHITECTURE.md names {name}, which is nowhere"
    for name in re.findall(r"`((?:tests|bench|scratch_slurm)/[\w/]+\.py)`", _PAGE):
        assert (_ROOT / name).is_file(), f"docs/ARCHITECTURE.md names {name}, which is nowhere"
