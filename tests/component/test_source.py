"""The source as the daemon knows it: real workers, a real directory, and one that hangs on demand."""

import asyncio
import contextlib
import shutil

import pytest

from scratch_slurm.domain.model import SkippedImage
from scratch_slurm.service.source import Source
from scratch_slurm.service.workers import Workers
from tests.kit.images import make_image, wait_until
from tests.kit.processes import children
from tests.kit.sources import SlowSource

LONG_S = 60.0
SHORT_S = 3.0
"""Long enough for a worker to start on a busy machine; what hangs is waited for so long."""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "image.squashfs"
    make_image(path, files=1, file_bytes=10_000)
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def no_leftovers():
    before = children()
    yield
    wait_until(lambda: children() <= before)


@contextlib.asynccontextmanager
async def opened(path, *, silence_s=LONG_S):
    workers = Workers()
    source = Source(path, workers, silence_s=silence_s)
    try:
        yield source
    finally:
        source.close()
        await workers.close(patience_s=10)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def put(good, folder, *names):
    for name in names:
        shutil.copy(good, folder / name)


def test_nothing_is_known_before_the_first_scan(folder) -> None:
    async def story():
        async with opened(folder) as source:
            return source.catalog

    catalog = asyncio.run(story())
    assert (catalog.images, catalog.skipped, catalog.complete) == ({}, {}, False)


def test_a_scan_knows_good_images_and_why_others_are_skipped(good, folder) -> None:
    put(good, folder, "a.squashfs", "c.sqfs")
    (folder / "b.squashfs").write_text("garbage")
    (folder / "README").write_text("")

    async def story():
        async with opened(folder) as source:
            await source.scan()
            return source.catalog, source.problem

    catalog, problem = asyncio.run(story())
    assert sorted(catalog.images) == ["a", "c"]
    assert catalog.skipped["b"].file_name == "b.squashfs"
    assert (catalog.complete, problem) == (True, "")


def test_the_first_of_two_files_for_one_dataset_serves_and_the_other_says_so(good, folder) -> None:
    put(good, folder, "a.sqfs", "a.squashfs")

    async def story():
        async with opened(folder) as source:
            await source.scan()
            return source.catalog

    catalog = asyncio.run(story())
    assert catalog.images["a"].at.key == "a.sqfs"
    assert catalog.skipped == {"a.squashfs": SkippedImage("a.squashfs", "a.sqfs holds dataset a already")}


def test_a_bad_file_does_not_stand_in_the_way_of_a_good_one(good, folder) -> None:
    put(good, folder, "a.squashfs")
    (folder / "a.erofs").write_text("garbage")

    async def story():
        async with opened(folder) as source:
            await source.scan()
            return source.catalog

    catalog = asyncio.run(story())
    assert catalog.images["a"].at.key == "a.squashfs"
    assert catalog.skipped == {}


def test_scans_follow_what_changes(good, folder) -> None:
    put(good, folder, "a.squashfs", "b.squashfs")

    async def story():
        async with opened(folder) as source:
            await source.scan()
            first = source.catalog
            (folder / "a.squashfs").unlink()
            put(good, folder, "c.squashfs")
            await source.scan()
            second = source.catalog
            (folder / "b.squashfs").write_text("garbage")
            await source.scan()
            return first, second, source.catalog

    first, second, third = asyncio.run(story())
    assert sorted(first.images) == ["a", "b"]
    assert sorted(second.images) == ["b", "c"]
    assert second.images["b"] is first.images["b"], "unchanged, so not read again"
    assert (sorted(third.images), sorted(third.skipped)) == (["c"], ["b"])


def test_a_listing_that_fails_is_a_problem_and_forgets_nothing(good, folder) -> None:
    put(good, folder, "a.squashfs")

    async def story():
        async with opened(folder) as source:
            await source.scan()
            folder.rename(folder.with_name("away"))
            await source.scan()
            during = source.catalog, source.problem
            folder.with_name("away").rename(folder)
            await source.scan()
            return during, source.problem

    (catalog, problem), after = asyncio.run(story())
    assert list(catalog.images) == ["a"]
    assert "cannot list the source: No such file or directory" in problem
    assert after == ""


def test_a_source_that_was_never_listed_is_not_complete(folder) -> None:
    async def story():
        async with opened(folder / "missing") as source:
            await source.scan()
            return source.catalog.complete, source.problem

    complete, problem = asyncio.run(story())
    assert not complete and "cannot list" in problem


def test_an_empty_source_proves_nothing(good, folder) -> None:
    """A directory where nothing is mounted (yet, or any more) looks just like that."""
    put(good, folder, "a.squashfs")

    async def story():
        async with opened(folder) as source:
            await source.scan()
            (folder / "a.squashfs").unlink()
            await source.scan()
            return source.catalog

    catalog = asyncio.run(story())
    assert (catalog.images, catalog.complete) == ({}, False)


def test_a_look_finds_what_the_listing_did_not_show_yet(good, folder) -> None:
    put(good, folder, "a.squashfs")

    async def story():
        async with opened(folder) as source:
            await source.look(["a", "missing"])
            early = source.catalog
            await source.scan()
            put(good, folder, "b.sqsh", "c.squashfs")
            await source.look(["b"])
            return early, source.catalog

    early, late = asyncio.run(story())
    assert (sorted(early.images), early.complete) == (["a"], False)
    assert (sorted(late.images), late.complete) == (["a", "b"], True)


def test_a_look_notices_what_is_gone(good, folder) -> None:
    put(good, folder, "a.squashfs", "b.squashfs")

    async def story():
        async with opened(folder) as source:
            await source.scan()
            (folder / "a.squashfs").unlink()
            await source.look(["a"])
            return source.catalog

    assert sorted(asyncio.run(story()).images) == ["b"]


def test_scans_at_the_same_time_share_one_after_the_other(good, folder) -> None:
    put(good, folder, "a.squashfs")

    async def story():
        before = children()
        async with opened(folder) as source:
            await asyncio.gather(source.scan(), source.scan(), source.scan())
            return list(source.catalog.images), len(children() - before)

    assert asyncio.run(story()) == (["a"], 1)


def test_looks_at_the_same_time_share_one_beside_a_scan(good, folder) -> None:
    put(good, folder, "a.squashfs", "b.squashfs", "c.squashfs")

    async def story():
        before = children()
        async with opened(folder) as source:
            names = (["a"], ["b"], ["c"], ["a", "b"], ["missing"])
            await asyncio.gather(source.scan(), *(source.look(each) for each in names))
            return sorted(source.catalog.images), len(children() - before)

    assert asyncio.run(story()) == (["a", "b", "c"], 2)


def test_a_look_for_more_datasets_than_are_looked_for_at_once_ends(good, folder) -> None:
    put(good, folder, "a.squashfs")

    async def story():
        async with opened(folder) as source:
            first = asyncio.create_task(source.look(["a"]))
            await asyncio.sleep(0)
            async with asyncio.timeout(LONG_S):
                await source.look([f"name{number}" for number in range(5000)])
            await first
            return sorted(source.catalog.images)

    assert asyncio.run(story()) == ["a"]


class Broken(Workers):
    """As workers are while the node has no process, thread or memory left."""

    error: BaseException | None = None

    async def run(self, *arguments, **options):
        if self.error:
            raise self.error
        await super().run(*arguments, **options)


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError(), OSError(11, "Resource temporarily unavailable")]
)
def test_a_scan_without_processes_threads_or_memory_is_a_problem_and_the_next_one_is_well(good, folder, error) -> None:
    put(good, folder, "a.squashfs")

    async def story():
        workers = Broken()
        source = Source(folder, workers, silence_s=LONG_S)
        try:
            workers.error = error
            await source.scan()
            await source.look(["a"])
            during = source.problem, source.catalog.complete, source.has_told.is_set()
            workers.error = None
            await source.look(["a"])
            looked = list(source.catalog.images)
            await source.scan()
            return during, looked, source.problem
        finally:
            await workers.close(patience_s=10)

    (problem, complete, told), looked, after = asyncio.run(story())
    assert f"{folder}: cannot be looked at: {type(error).__name__}" in problem
    assert (complete, told, looked, after) == (False, True, ["a"], "")


def test_what_is_not_known_is_told_with_its_reason(good, folder) -> None:
    async def story():
        async with opened(folder / "missing") as source:
            told = [source.catalog]
            await source.scan()
            told.append(source.catalog)
        async with opened(folder) as source:
            await source.scan()
            told.append(source.catalog)
            put(good, folder, "a.squashfs")
            await source.scan()
            return [*told, source.catalog]

    before, failed, empty, listed = asyncio.run(story())
    assert (before.doubt, before.awaited) == (f"{folder}/missing has not been listed yet", True)
    assert failed.doubt.startswith(f"{folder}/missing has not been listed yet: {folder}/missing: cannot list")
    assert (empty.doubt, empty.awaited) == (f"{folder} holds no image, as if nothing were mounted there", False)
    assert (failed.awaited, listed.doubt, listed.awaited) == (False, "", False)


def test_a_scan_that_is_cancelled_leaves_no_process(good, folder) -> None:
    put(good, folder, "a.squashfs")

    async def story():
        async with opened(folder) as source:
            for steps in (0, 1, 3, 6):
                task = asyncio.create_task(source.scan())
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await source.scan()
            return source.catalog.complete

    assert asyncio.run(story())


# A source that hangs.


@pytest.fixture
def slow(good, folder, tmp_path):
    pytest.importorskip("mfusepy", reason="mfusepy is not installed")
    put(good, folder, "a.squashfs", "b.squashfs", "c.squashfs")
    with SlowSource(folder, tmp_path / "slow") as source:
        yield source


def rewrite(path):
    """A new generation, so that it is read again."""
    body = path.read_bytes()
    path.unlink()
    path.write_bytes(body)


NAMES = pytest.mark.parametrize(
    "name", ["a.squashfs", "b.squashfs", "c.squashfs"], ids=["the-first", "the-second", "the-last"]
)


@pytest.mark.root
@NAMES
def test_a_file_that_holds_its_reader_is_left_out_of_later_scans(slow, name) -> None:
    dataset = name.partition(".")[0]
    others = sorted({"a", "b", "c"} - {dataset})

    async def story():
        async with opened(slow.path, silence_s=SHORT_S) as source:
            slow.set(hang_open=True, only=(name,))
            await source.scan()
            first, problem = source.catalog, source.problem
            assert list(source.hanging) == [name]
            await source.scan()
            again, blocked = source.catalog, slow.blocked()
            await asyncio.to_thread(slow.set, hang_open=False)
            await until(lambda: not source.hanging)
            freed = source.catalog
            await source.scan()
            return first, problem, again, blocked, freed, source.catalog

    first, problem, again, blocked, freed, last = asyncio.run(story())
    assert (sorted(first.images), first.complete, problem) == (others, True, "")
    assert first.skipped[dataset].file_name == name
    assert first.skipped[dataset].reason.startswith("gives no answer since ")
    assert sorted(again.images) == others
    assert blocked == 1, "one worker is lost to it, not one at each scan"
    assert dataset in freed.skipped, "not known to be gone: it was never read"
    assert sorted(last.images) == ["a", "b", "c"]


@pytest.mark.root
@NAMES
def test_a_file_whose_reader_can_be_killed_is_tried_again(slow, name) -> None:
    dataset = name.partition(".")[0]

    async def story():
        async with opened(slow.path, silence_s=SHORT_S) as source:
            slow.set(hang=True, only=(name,))
            await source.scan()
            await until(lambda: not source.hanging)
            first = source.catalog
            await asyncio.to_thread(slow.set, hang=False)
            await source.scan()
            return first, source.catalog

    first, last = asyncio.run(story())
    assert (sorted(first.images), first.complete) == (sorted({"a", "b", "c"} - {dataset}), True)
    assert dataset in first.skipped, "not known to be gone: it was never read"
    assert sorted(last.images) == ["a", "b", "c"]


@pytest.mark.root
def test_what_was_known_of_a_file_stays_known_while_it_hangs(slow, folder) -> None:
    async def story():
        async with opened(slow.path, silence_s=SHORT_S) as source:
            await source.scan()
            before = source.catalog.images["b"]
            rewrite(folder / "b.squashfs")
            slow.set(hang_open=True, only=("b.squashfs",))
            await source.scan()
            during = source.catalog.images["b"]
            await asyncio.to_thread(slow.set, hang_open=False)
            await until(lambda: not source.hanging)
            await source.scan()
            return before, during, source.catalog.images["b"]

    before, during, after = asyncio.run(story())
    assert during is before
    assert after.generation != before.generation


@pytest.mark.root
def test_several_files_that_hang_cost_one_worker_each(slow) -> None:
    async def story():
        async with opened(slow.path, silence_s=SHORT_S) as source:
            slow.set(hang_open=True, only=("a.squashfs", "c.squashfs"))
            await source.scan()
            seen = sorted(source.hanging), sorted(source.catalog.images), slow.blocked()
            await asyncio.to_thread(slow.set, hang_open=False)
            await until(lambda: not source.hanging)
            return seen

    assert asyncio.run(story()) == (["a.squashfs", "c.squashfs"], ["b"], 2)


@pytest.mark.root
def test_a_listing_that_hangs_is_told_and_not_tried_again_meanwhile(slow) -> None:
    async def story():
        async with opened(slow.path, silence_s=SHORT_S) as source:
            await source.scan()
            slow.set(hang_all=True)
            await source.scan()
            hung = source.problem, sorted(source.catalog.images)
            assert source.catalog.doubt == source.problem, "what came since is not known"
            workers = len(children())
            await source.scan()
            assert len(children()) == workers
            await asyncio.to_thread(slow.set, hang_all=False)
            await until(lambda: source._lost_listing is None)
            await source.scan()
            return hung, source.problem

    (problem, images), after = asyncio.run(story())
    assert problem.startswith(f"{slow.path} gives no answer since ")
    assert images == ["a", "b", "c"]
    assert after == ""


@pytest.mark.root
def test_a_look_that_nobody_waits_for_any_more_goes_on_and_counts(slow) -> None:
    async def story():
        async with opened(slow.path, silence_s=LONG_S) as source:
            slow.set(hang=True, only=("b.squashfs",))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(source.look(["b"]), SHORT_S)
            found, news = list(source.catalog.images), []
            source.on_news = lambda: news.append(1)
            await asyncio.to_thread(slow.set, hang=False)
            await until(lambda: news)
            return found, list(source.catalog.images)

    assert asyncio.run(story()) == ([], ["b"])


@pytest.mark.root
def test_a_look_does_not_wait_for_a_listing_that_is_held_up(slow) -> None:
    async def story():
        async with opened(slow.path, silence_s=LONG_S) as source:
            slow.set(hang=True, only=("a.squashfs",))
            scan = asyncio.create_task(source.scan())
            await until(slow.blocked)
            async with asyncio.timeout(LONG_S / 2):
                await source.look(["c"])
            found = list(source.catalog.images)
            await asyncio.to_thread(slow.set, hang=False)
            await scan
            return found, sorted(source.catalog.images)

    assert asyncio.run(story()) == (["c"], ["a", "b", "c"])


@pytest.mark.root
def test_a_file_that_a_look_found_stays_known_to_a_listing_that_began_before(slow, good, folder) -> None:
    """The directory was read, and then the file came: the listing does not show it."""

    async def story():
        async with opened(slow.path, silence_s=LONG_S) as source:
            source.found_by_look("c.squashfs")
            await source.look(["a", "c"])
            source.keep_only(("b.squashfs",))
            return sorted(source.catalog.images)

    assert asyncio.run(story()) == ["a", "c"]


@pytest.mark.root
def test_a_directory_that_hangs_is_no_file_s_fault(slow) -> None:
    async def story():
        async with opened(slow.path, silence_s=SHORT_S) as source:
            slow.set(hang_all=True)
            await source.look(["a", "b"])
            hung = dict(source.hanging), source.problem, source.has_told.is_set()
            workers = len(children())
            await source.look(["c"])
            assert len(children()) == workers, "nothing else is tried while it hangs"
            await asyncio.to_thread(slow.set, hang_all=False)
            await until(lambda: source._lost_listing is None)
            await source.look(["c"])
            return hung, list(source.catalog.images)

    (hanging, problem, told), images = asyncio.run(story())
    assert (hanging, told, images) == ({}, True, ["c"])
    assert problem.startswith(f"{slow.path} gives no answer since ")


@pytest.mark.root
def test_a_file_that_fails_is_skipped_and_tried_again(slow) -> None:
    async def story():
        async with opened(slow.path) as source:
            slow.set(fail=True, only=("b.squashfs",))
            await source.scan()
            first = source.catalog
            slow.set(fail=False)
            await source.scan()
            return first, source.catalog

    first, second = asyncio.run(story())
    assert first.skipped == {"b": SkippedImage("b.squashfs", "cannot read: Input/output error")}
    assert sorted(first.images) == ["a", "c"]
    assert (sorted(second.images), second.skipped) == (["a", "b", "c"], {})
