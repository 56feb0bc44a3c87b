"""What people see, as text."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from scratch_slurm.cli import render
from scratch_slurm.cli.render_plan import render_plan
from scratch_slurm.cli.views import (
    HeldDataset,
    Holder,
    OfflineStatus,
    choose_datasets,
    find_dataset,
    group_holders,
)
from scratch_slurm.domain.about import About
from scratch_slurm.domain.errors import NotFoundError
from scratch_slurm.domain.messages import DatasetState, DatasetStatus, NodeStatus, PlanAnswer
from scratch_slurm.domain.model import Pin
from scratch_slurm.domain.words import clean, join_some

GB = 10**9
CACHED = DatasetStatus(
    "imagenet",
    DatasetState.CACHED,
    size_bytes=150 * GB,
    cached_bytes=150 * GB,
    use_count=2,
    holders=("job:12", "job:9", "administrator"),
    read_bytes_per_s=1.2e9,
)
STAGING = DatasetStatus(
    "coco",
    DatasetState.STAGING,
    size_bytes=20 * GB,
    staged_bytes=8 * GB + 1,
    stage_bytes_per_s=2.1e8,
    eta_s=57.0,
    use_count=1,
    holders=("job:12",),
)
SOURCE = DatasetStatus("wiki", DatasetState.SOURCE, size_bytes=5 * GB)
GONE = DatasetStatus("wikis", DatasetState.UNKNOWN, holders=("administrator",))


def node(*datasets, **changes):
    values = {
        "node": "n1",
        "version": "0.1.0",
        "pid": 1,
        "started_at": 1000.0,
        "source_dir": "/srv/images",
        "cache_dir": "/ssd/cache",
        "mount_dir": "/datasets",
        "capacity_bytes": 2000 * GB,
        "reserve_bytes": 100 * GB,
        "used_bytes": 1000 * GB,
        "free_bytes": 700 * GB,
        "problem": "",
        "datasets": datasets,
    }
    return NodeStatus(**{**values, **changes})


def drawn(renderable: RenderableType, width: int = 140) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, markup=False, emoji=False).print(renderable)
    return file.getvalue()


def row(text, name):
    return next(line for line in text.splitlines() if line.startswith(name))


def test_a_row_says_size_state_holders_and_reads() -> None:
    text = drawn(render.render_node(node(CACHED), (CACHED,), now=1060.0, width=140))
    assert row(text, "imagenet").split("  ")[0] == "imagenet"
    for word in ("150.0 GB", "cached", "2 jobs: 9, 12; administrator", "1.2 GB/s"):
        assert word in row(text, "imagenet")
    assert "up 60 s" in text
    assert "1 dataset: 1 cached" in text


def test_a_copy_under_way_says_how_far_how_fast_and_how_long_still() -> None:
    text = render.state_text(STAGING).plain
    assert text == "staging ████░░░░░░ 40 %  210.0 MB/s, 57 s left"


def test_a_narrow_terminal_gets_rate_and_time_left_on_a_line_of_their_own() -> None:
    assert render.state_text(STAGING, narrow=True).plain.splitlines()[1].strip() == "210.0 MB/s, 57 s left"


def test_without_block_characters_bars_are_ascii() -> None:
    text = drawn(render.render_node(node(STAGING), (STAGING,), now=0.0, width=140, blocks=False))
    assert text.isascii()
    assert "####......" in text


@pytest.mark.parametrize("width", [80, 140])
def test_every_line_fits_the_terminal_and_names_stay_whole(width) -> None:
    long = DatasetStatus("x" * 64, DatasetState.CACHED, size_bytes=GB, problem="word " * 60)
    text = drawn(render.render_node(node(CACHED, STAGING, long), (CACHED, STAGING, long), now=0.0, width=width), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert text.count("x") == 128  # folded in the table, and before its problem
    assert "…" not in text


BARS = [
    pytest.param(0.0, "..........", id="nothing-is-empty"),
    pytest.param(0.001, "#.........", id="anything-shows"),
    pytest.param(0.5, "#####.....", id="half"),
    pytest.param(0.999, "#########.", id="almost-is-not-full"),
    pytest.param(1.0, "##########", id="full"),
    pytest.param(1.7, "##########", id="over-full"),
    pytest.param(-1.0, "..........", id="below-zero"),
]


@pytest.mark.parametrize(("part", "expected"), BARS)
def test_bar(part, expected) -> None:
    assert render.bar(part, 10, style="", blocks=False).plain == expected


def test_the_capacity_line_says_used_free_and_reserved() -> None:
    text = render.capacity_line(node(), width=140).plain
    assert "1.0 TB of 2.0 TB (50 %)" in text
    assert "700.0 GB free, 100.0 GB of it reserved" in text


def test_a_capacity_of_nothing_is_full_not_a_division_by_zero() -> None:
    assert "(100 %)" in render.capacity_line(node(capacity_bytes=0, used_bytes=0), width=140).plain


def test_problems_of_node_and_datasets_are_told_whole_below_the_table() -> None:
    bad = DatasetStatus("bad", DatasetState.UNMOUNTED, problem="is cut short: 1 bytes of 2")
    text = drawn(render.render_node(node(bad, problem="the source hangs"), (bad,), now=0.0, width=80), 80)
    assert "! node: the source hangs" in text
    assert "! bad: is cut short: 1 bytes of 2" in text


def test_a_waiting_update_is_told() -> None:
    waiting = DatasetStatus("wiki", DatasetState.CACHED, update_waiting=True)
    assert "newer image" in drawn(render.render_node(node(waiting), (waiting,), now=0.0, width=140))


def test_neither_markup_nor_control_characters_of_others_reach_the_terminal() -> None:
    evil = DatasetStatus("a", DatasetState.QUEUED, problem="[red]x[/red] \x1b[2J\r\n\x9b \u202e y")
    text = drawn(render.render_node(node(evil), (evil,), now=0.0, width=140))
    assert "[red]x[/red] \\x1b[2J\\r\\n\\x9b \\u202e y" in text


@given(st.text())
def test_clean_text_is_printable_and_keeps_what_was_printable(text) -> None:
    assert clean(text).isprintable()
    if text.isprintable():
        assert clean(text) == text


def test_no_datasets_are_said_in_words() -> None:
    assert "no datasets" in drawn(render.render_node(node(), (), now=0.0, width=80))


def test_a_count_without_job_numbers_is_shown_as_a_count() -> None:
    assert render.holders_text(DatasetStatus("a", DatasetState.CACHED, use_count=3)).plain == "3 jobs"


def test_many_holders_are_counted() -> None:
    many = DatasetStatus("a", DatasetState.CACHED, use_count=6, holders=tuple(f"job:{n}" for n in range(6)))
    assert render.holders_text(many).plain == "6 jobs: 0, 1, 2, +3"
    assert render.holders_text(many, narrow=True).plain == "6 jobs"


def test_offline_says_what_could_not_be_read() -> None:
    offline = OfflineStatus("/s", "/c", "/d", 5 * GB, None, (SOURCE,), ("pins: only root",))
    text = drawn(render.render_offline(offline, offline.datasets, width=140))
    assert "5.0 GB in /c" in text
    assert "not told: pins: only root" in text
    assert row(text, "wiki")


def test_holders_list_the_administrator_first_and_jobs_by_number() -> None:
    pins = [Pin("imagenet", "job:12", 1000, 70.0), Pin("coco", "job:12", 1000, 60.0)]
    assert group_holders((CACHED, STAGING), pins) == (
        Holder("administrator", None, None, None, (HeldDataset("imagenet", DatasetState.CACHED),)),
        Holder("job:9", 9, None, None, (HeldDataset("imagenet", DatasetState.CACHED),)),
        Holder(
            "job:12",
            12,
            1000,
            60.0,
            (HeldDataset("imagenet", DatasetState.CACHED, 70.0), HeldDataset("coco", DatasetState.STAGING, 60.0)),
        ),
    )


def test_jobs_are_drawn_once_with_all_their_datasets() -> None:
    pins = [Pin("imagenet", "job:12", 1000, 0.0), Pin("coco", "job:12", 1000, 60.0)]
    text = drawn(render.render_jobs(group_holders((CACHED, STAGING), pins), now=3600.0))
    assert text.count("job 12") == 1
    assert "60 min" in row(text, "job 12")
    assert "59 min" in text


def test_no_pins_are_said_in_words() -> None:
    assert drawn(render.render_jobs((), now=0.0)) == "no pins\n"


def test_unknown_names_get_the_nearest_known_ones() -> None:
    with pytest.raises(NotFoundError, match="'imagenett'") as caught:
        choose_datasets(node(CACHED, STAGING), ["coco", "imagenett"])
    assert caught.value.hint == "did you mean imagenet?"


def test_a_dataset_that_is_only_pinned_is_not_found_nor_proposed() -> None:
    with pytest.raises(NotFoundError) as caught:
        find_dataset((SOURCE, GONE), "wikis")
    assert caught.value.hint == "did you mean wiki?"


def test_chosen_datasets_come_in_the_order_of_asking_each_once() -> None:
    chosen = choose_datasets(node(CACHED, STAGING), ["coco", "imagenet", "coco"])
    assert [dataset.name for dataset in chosen] == ["coco", "imagenet"]


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        pytest.param(CACHED, "imagenet: cached", id="cached"),
        pytest.param(STAGING, "coco: staging 40 %, 210.0 MB/s, 57 s left", id="staging"),
        pytest.param(
            DatasetStatus("a", DatasetState.QUEUED, problem="waits for room"), "a: queued: waits for room", id="problem"
        ),
        pytest.param(DatasetStatus("a", DatasetState.STAGING), "a: staging 0 %", id="size-unknown"),
    ],
)
def test_one_line_for_a_dataset(dataset, expected) -> None:
    assert render.describe_dataset(dataset) == expected


def test_join_some() -> None:
    assert join_some("abc", 3) == "a, b, c"
    assert join_some("abcde", 3) == "a, b, c, +2"


@pytest.mark.parametrize(
    ("about", "lines"),
    [
        (About(), []),
        (About("photographs"), ["imagenet: photographs"]),
        (
            About("photographs", "CC-BY", "vision group", "vision@example.org", "https://example.org/data"),
            [
                "imagenet: photographs",
                "  licence CC-BY, owner vision group, contact vision@example.org, from https://example.org/data",
            ],
        ),
        (About(owner="x\x1b[31m"), ["imagenet: owner x\\x1b[31m"]),
    ],
    ids=["nothing", "a-description", "everything", "no-escapes"],
)
def test_what_a_manifest_says(about: About, lines: list[str]) -> None:
    told = DatasetStatus("imagenet", DatasetState.CACHED, about=about)
    assert [line.plain for line in render.about_lines(told)] == lines


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        pytest.param(0.0, "the best choice", id="optimal"),
        pytest.param(0.00012, "at most 0.012 % less than the best choice would", id="the-search-ended"),
        pytest.param(1e-9, "at most 0.001 % less than the best choice would", id="never-none-where-it-is-some"),
        pytest.param(4 / 9, "at most 44.4 % less than the best choice would", id="no-disk-has-room"),
    ],
)
def test_a_plan_says_how_far_it_is_from_the_best(gap: float, expected: str) -> None:
    plan = PlanAnswer(100 * GB, GB, 0, 600.0, 1800.0, 9 * GB, gap, (), ())
    assert f"what is chosen saves 9.0 GB of slow reads ({expected})" in drawn(render_plan(plan))
