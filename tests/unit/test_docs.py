"""The pages lead somewhere, and can be read: links, anchors, lengths, widths."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PAGES = sorted(str(page.relative_to(_ROOT)) for page in [*_ROOT.glob("*.md"), *_ROOT.glob("docs/*.md")])
_README_LINES = 120
_WIDTH = 100


def _prose(page: str) -> Iterator[tuple[int, str]]:
    """Give the numbered lines of a page that are neither code nor a table."""
    fenced = False
    for number, line in enumerate((_ROOT / page).read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    ") and not line.startswith("|"):
            yield number, line


def _anchors(page: Path) -> set[str]:
    """Give the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text))


@pytest.mark.parametrize("page", _PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    for link in _links((_ROOT / page).read_text()):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (_ROOT / page).parent / path if path else _ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in _anchors(target), f"{page} links to {link}, which has no such heading"


def test_every_page_is_reached_from_readme() -> None:
    reached, waiting = set(), [_ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            links = [link.partition("#")[0] for link in _links(page.read_text())]
            waiting += [(page.parent / link).resolve() for link in links if link.endswith(".md") and "://" not in link]
    assert {_ROOT / page for page in _PAGES} <= reached


def test_readme_is_short() -> None:
    assert len((_ROOT / "README.md").read_text().splitlines()) <= _README_LINES


@pytest.mark.parametrize("page", _PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    """Below scratch_slurm/ a page may leave the package's name out: `service/door.py`."""
    named = re.findall(r"`((?:\w+/)+[\w-]+\.(?:py|c|h|lua|sh|yaml|1))`", (_ROOT / page).read_text())
    missing = [name for name in named if not ((_ROOT / name).is_file() or (_ROOT / "scratch_slurm" / name).is_file())]
    assert not missing, f"{page} names {missing}"


@pytest.mark.parametrize("text", ["daemon/config.yaml", "daemon/removal.txt", "docs/man/scratch-slurm.1"])
def test_no_line_of_another_text_is_wide(text: str) -> None:
    wide = [number for number, line in enumerate((_ROOT / text).read_text().splitlines(), 1) if len(line) > _WIDTH]
    assert not wide, f"{text}: more than {_WIDTH} columns in lines {wide}"


@pytest.mark.parametrize("page", _PAGES)
def test_no_line_of_prose_is_wide(page: str) -> None:
    wide = [number for number, line in _prose(page) if len(line) > _WIDTH and len(line.split()) > 2]
    assert not wide, f"{page}: more than {_WIDTH} columns in lines {wide}"
