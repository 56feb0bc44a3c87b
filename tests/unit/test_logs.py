"""What of the log is written, and how the journal gets it."""

import io
import logging
import os
from pathlib import Path

import pytest

from scratch_slurm.service.logs import Allowance, Bound, Budget, JournalFormatter, is_journal, priority_prefix


def test_an_allowance_is_used_up_and_comes_back_with_time() -> None:
    allowance = Allowance(Budget(3, 0.5), now=100.0)
    assert [allowance.take(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert allowance.left_out == 2
    assert not allowance.take(101.0)
    assert allowance.take(102.0)
    assert [allowance.take(1000.0) for _ in range(4)] == [True, True, True, False], "never more than at once"


class Log:
    """A log with a clock to turn, and what was written to it."""

    def __init__(self, formatter: logging.Formatter | None = None) -> None:
        self.now = 100.0
        self.stream = io.StringIO()
        self.log = logging.Logger("x")
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(formatter or logging.Formatter("%(message)s"))
        handler.addFilter(Bound(Budget(3, 1.0), Budget(1, 0.01), monotonic=lambda: self.now))
        self.log.addHandler(handler)

    def say(self, text: object) -> None:
        self.log.info("said %s", text)

    def fail(self) -> None:
        try:
            raise ValueError("bad")
        except ValueError:
            self.log.exception("bug")

    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_lines_of_one_cause_are_left_out_and_the_lines_around_them_say_so() -> None:
    it = Log()
    for number in range(100):
        it.say(number)
    it.now += 10
    it.say("later")
    it.say("and later")
    assert it.lines() == [
        "said 0",
        "said 1",
        "said 2 (more lines like this are left out for a while)",
        "said later (97 lines like this were left out)",
        "said and later",
    ]


def test_other_causes_are_written_meanwhile() -> None:
    it = Log()
    for number in range(100):
        it.say(number)
    it.log.info("something else")
    assert it.lines()[-1] == "something else"
    assert len(it.lines()) == 4


def test_tracebacks_have_a_budget_of_their_own() -> None:
    it = Log()
    for _ in range(50):
        it.fail()
    assert it.stream.getvalue().count("Traceback") == 1


def test_whatever_is_said_nothing_is_kept_of_it() -> None:
    it, bound = Log(), Bound()
    for number in range(1000):
        record = it.log.makeRecord("x", logging.INFO, __file__, 7, f"text {number}", (), None)
        assert bound.filter(record)
    assert len(bound._causes) == 1


def test_a_percent_sign_in_what_is_said_is_no_format() -> None:
    it = Log()
    for _ in range(4):
        it.log.info("100 %s", "%d")
        it.now += 0.5
    assert it.lines()[0] == "100 %d"


LEVELS = [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 3)]


@pytest.mark.parametrize(("level", "number"), LEVELS)
def test_the_journal_is_told_a_priority(level: int, number: int) -> None:
    assert priority_prefix(level) == f"<{number}>"


def test_each_line_of_a_record_has_its_priority() -> None:
    it = Log(JournalFormatter("%(levelname)s %(message)s"))
    it.fail()
    lines = it.lines()
    assert lines[0].startswith("<3>ERROR bug")
    assert lines[-1] == "<3>ValueError: bad"
    assert all(line.startswith("<3>") for line in lines)


def test_only_the_stream_that_the_journal_reads_is_the_journal_s(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        status = os.fstat(log.fileno())
        assert is_journal(log, f"{status.st_dev}:{status.st_ino}")
        assert not is_journal(log, f"{status.st_dev}:{status.st_ino + 1}")
        assert not is_journal(log, "")
    assert not is_journal(io.StringIO(), "1:2")
