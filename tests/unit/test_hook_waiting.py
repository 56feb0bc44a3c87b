import pytest

from scratch_slurm.domain.errors import DaemonError, NotFoundError, UsageError
from scratch_slurm.domain.messages import WaitAnswer
from scratch_slurm.hooks.prolog import choose_wait
from scratch_slurm.hooks.report import Report, format_report
from scratch_slurm.hooks.request import parse_request
from scratch_slurm.hooks.waiting import SLICE_S, wait_for
from scratch_slurm.node.hookconfig import HookConfig

SETTLED = WaitAnswer((), True)
UNSETTLED = WaitAnswer((), False)
GONE = DaemonError("the daemon does not run")


class FakeNode:
    """A clock, and a daemon that answers by script: (seconds that pass, answer or error); the last one repeats."""

    def __init__(self, *script):
        self.script = list(script)
        self.now = 0.0
        self.asked = []

    def ask(self, datasets, timeout_s):
        self.asked.append((round(self.now, 3), timeout_s))
        passes_s, answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.now += timeout_s if passes_s is None else passes_s
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds):
        self.now += seconds

    def wait(self, wait_s):
        return wait_for(("a",), wait_s, self.ask, monotonic=lambda: self.now, sleep=self.sleep)


def test_settled_at_once_ends_the_wait() -> None:
    node = FakeNode((0.1, SETTLED))
    assert node.wait(600) is SETTLED
    assert node.asked == [(0, SLICE_S)]


def test_no_wait_asks_once() -> None:
    node = FakeNode((0.1, UNSETTLED))
    assert node.wait(0) is UNSETTLED
    assert node.asked == [(0, 0)]


def test_a_long_wait_is_cut_into_slices_and_ends_in_time() -> None:
    node = FakeNode((None, UNSETTLED))
    assert node.wait(25) is UNSETTLED
    assert node.asked == [(0, 10), (10, 10), (20, 5)]
    assert node.now == 25


def test_a_daemon_that_answers_too_early_is_not_asked_in_a_circle() -> None:
    node = FakeNode((0.0, UNSETTLED))
    node.wait(5)
    assert len(node.asked) <= 6


def test_a_daemon_that_is_not_there_is_not_waited_for() -> None:
    node = FakeNode((0.0, GONE))
    with pytest.raises(DaemonError):
        node.wait(600)
    assert node.now == 0


def test_a_daemon_that_goes_and_comes_back_is_asked_again() -> None:
    node = FakeNode((3, UNSETTLED), (0, GONE), (0, GONE), (0, SETTLED))
    assert node.wait(600) is SETTLED
    assert 4 < node.now < 7


def test_a_daemon_that_goes_for_good_is_waited_for_no_longer_than_asked() -> None:
    node = FakeNode((3, UNSETTLED), (0, GONE))
    with pytest.raises(DaemonError):
        node.wait(60)
    assert node.now == 60


def test_what_the_daemon_refuses_is_not_asked_again() -> None:
    node = FakeNode((3, UNSETTLED), (0, NotFoundError("no")))
    with pytest.raises(NotFoundError):
        node.wait(600)


CONFIG = HookConfig("/datasets", "/run/s", "/var/lib/s", wait_s=10.0, wait_limit_s=600.0)
SHORT = CONFIG._replace(prolog_timeout_s=40.0, prolog_timeout_key="PrologTimeout")
SERIAL = CONFIG._replace(prolog_serial=True, prolog_timeout_s=4000.0)

WAITS = [
    pytest.param({}, 10, "", id="nothing-said-is-the-sites-default"),
    pytest.param({"SPANK_DATASETS_WAIT": "0"}, 0, "", id="no-wait"),
    pytest.param({"SPANK_DATASETS_WAIT": "90s"}, 90, "", id="as-asked"),
    pytest.param({"SPANK_DATASETS_WAIT": "all"}, 600, "", id="all-is-what-the-site-allows"),
    pytest.param({"SPANK_DATASETS_WAIT": "10m"}, 600, "", id="just-what-the-site-allows"),
    pytest.param({"SPANK_DATASETS_WAIT": "601s"}, 600, "this node waits 10 min at most", id="more-is-cut-and-said"),
    pytest.param({"SPANK_DATASETS_WAIT": "x" * 9999}, 10, "is not a time", id="nonsense-is-the-default"),
    pytest.param({"SPANK_DATASETS_WAIT": "all", "SCRATCH_SLURM_HOOK_LIMIT": "100"}, 70, "", id="before-the-stub-kills"),
    pytest.param({"SCRATCH_SLURM_HOOK_LIMIT": "5"}, 0, "", id="a-short-limit-leaves-no-wait"),
]


@pytest.mark.parametrize(("environ", "wait_s", "message"), WAITS)
def test_how_long_a_job_waits(environ, wait_s, message) -> None:
    got_s, told = choose_wait(parse_request({"SLURM_JOB_ID": "7", **environ}), CONFIG)
    assert got_s == wait_s
    assert message in told
    assert bool(message) == bool(told)
    assert len(told) < 200


BOUNDED = [
    pytest.param(SHORT, {}, 10, "", id="the-sites-default-fits"),
    pytest.param(
        SHORT._replace(prolog_timeout_s=15.0),
        {},
        7.5,
        "waits 8 s at most: Slurm ends a prolog after 15 s (PrologTimeout)",
        id="a-short-limit-is-halved",
    ),
    pytest.param(
        SHORT, {"SPANK_DATASETS_WAIT": "all"}, 20, "waits 20 s at most: Slurm ends", id="all-is-told-what-bounds-it"
    ),
    pytest.param(SHORT, {"SPANK_DATASETS_WAIT": "15s"}, 15, "", id="as-asked"),
    pytest.param(SHORT, {"SPANK_DATASETS_WAIT": "0"}, 0, "", id="no-wait"),
    pytest.param(
        SHORT._replace(prolog_timeout_s=1200.0), {"SPANK_DATASETS_WAIT": "all"}, 600, "", id="the-site-allows-less"
    ),
    pytest.param(
        SHORT._replace(prolog_timeout_s=100.0), {"SPANK_DATASETS_WAIT": "all"}, 70, "100 s", id="the-margin-is-30-s"
    ),
    pytest.param(
        SHORT._replace(prolog_timeout_s=1.0), {"SPANK_DATASETS_WAIT": "all"}, 0.5, "after 1 s", id="one-second"
    ),
    pytest.param(
        SHORT, {"SPANK_DATASETS_WAIT": "all", "SCRATCH_SLURM_HOOK_LIMIT": "40"}, 10, "", id="the-hook-has-less"
    ),
    pytest.param(
        SERIAL, {"SPANK_DATASETS_WAIT": "all"}, 0, "PrologFlags=Serial", id="nobody-waits-where-strangers-would"
    ),
    pytest.param(SERIAL, {}, 0, "PrologFlags=Serial", id="nor-by-default"),
    pytest.param(SERIAL, {"SPANK_DATASETS_WAIT": "0"}, 0, "", id="who-does-not-ask-is-told-nothing"),
    pytest.param(SERIAL._replace(wait_s=0.0), {}, 0, "", id="a-site-that-does-not-wait-is-told-nothing"),
]


@pytest.mark.parametrize(("config", "environ", "wait_s", "message"), BOUNDED)
def test_slurms_settings_bound_the_wait(config, environ, wait_s, message) -> None:
    got_s, told = choose_wait(parse_request({"SLURM_JOB_ID": "7", **environ}), config)
    assert got_s == wait_s
    assert message in told
    assert bool(message) == bool(told)


def test_a_request_is_read() -> None:
    request = parse_request({"SLURM_JOB_ID": "4294967295", "SLURM_JOB_UID": "1000", "SPANK_DATASETS": "a b"})
    assert (request.job_id, request.uid, request.datasets_text, request.wait_text) == (4294967295, 1000, "a b", "")
    with pytest.raises(UsageError, match="SLURM_JOB_ID"):
        parse_request({"SPANK_DATASETS": "a"})


COMMENTS = [
    pytest.param("datasets=a,b", "a,b", id="the-whole-comment"),
    pytest.param("for Ann datasets=a/../b now", "a/../b", id="a-word-of-it-unchecked"),
    pytest.param("datasets= datasets=a", "a", id="the-first-with-names"),
    pytest.param("mydatasets=a datasets", "", id="other-words"),
    pytest.param("datasets=", "", id="no-names"),
    pytest.param("a\tdatasets=b", "", id="words-are-between-spaces"),
]


@pytest.mark.parametrize(("comment", "asked"), COMMENTS)
def test_a_comment_asks_where_the_option_does_not(comment, asked) -> None:
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_COMMENT": comment}
    assert parse_request(environ).datasets_text == asked
    assert parse_request({**environ, "SPANK_DATASETS": "mine"}).datasets_text == "mine"


def test_a_value_of_a_megabyte_is_bounded() -> None:
    request = parse_request({"SLURM_JOB_ID": "7", "SPANK_DATASETS_WAIT": "9" * 2**20, "SLURM_JOB_UID": "9" * 2**20})
    assert request.uid == 0
    assert len(choose_wait(request, CONFIG)[1]) < 200
    report = format_report(Report("/datasets", messages=("x" * 2**20, "", "a\u2028b\u0085c")))
    assert len(report) < 600
    assert report.splitlines()[-1] == "message=a?b?c"
