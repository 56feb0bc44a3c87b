"""What tests with real loop devices and mounts share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.images import apart, clean_up


@pytest.fixture(scope="module")
def own_mounts() -> Iterator[None]:
    """A mount namespace for the module's tests alone."""
    with apart():
        yield


@pytest.fixture
def folder(own_mounts: None, tmp_path: Path) -> Iterator[Path]:
    """A directory; what is mounted or bound below it goes with it."""
    yield tmp_path
    clean_up(tmp_path)
