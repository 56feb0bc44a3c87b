"""What every test may need: root tests skip where they cannot run, and fail there in CI."""

import os

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


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes share the tests: all that use the Slurm cluster in one, the other files whole in either."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group("cluster" if folder == "cluster" else str(item.path)))
