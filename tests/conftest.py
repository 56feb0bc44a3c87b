"""What every test may need: root tests skip where they cannot run, and fail there in CI."""

import os
import signal

import pytest

from tests.local_cluster import missing_for_cluster, missing_for_root_tests


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `root` or `cluster` with the reason; with CI=true that is a failure."""
    if item.get_closest_marker("cluster"):
        missing = missing_for_cluster()
    elif item.get_closest_marker("root"):
        missing = missing_for_root_tests()
    else:
        return
    if not missing:
        return
    reason = f"needs {', '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; with CI=true nothing is skipped", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A few processes share the tests: all that use the Slurm cluster in one, each other file whole in any."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc] # without types
        def _split_scope(self, nodeid: str) -> str:
            return "cluster" if nodeid.startswith("tests/cluster/") else nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_configure() -> None:
    """Let signals work in what the tests start, also where a shell's background or nohup has them ignored."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
