"""The systemd unit, as far as reading it tells; `make test-systemd` sees it at work."""

import configparser
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "daemon" / "scratch-slurmd.service"

KEYS = [
    ("Unit", "Before", "slurmd.service", "jobs find the datasets mounted"),
    ("Unit", "StartLimitIntervalSec", "0", "it is tried for ever"),
    ("Service", "Type", "notify", "ready is what has seen the source"),
    ("Service", "Restart", "always", "whatever ends it"),
    ("Service", "ExecReload", "/bin/sh -c 'kill -HUP $MAINPID'", "kill(1) is not on every node"),
    ("Service", "ExecStopPost", "-/usr/local/bin/scratch-slurmd --leaving", "a node that shuts down"),
    ("Service", "WatchdogSec", "60", "a daemon that hangs is started again"),
    ("Service", "TimeoutStartSec", "180", "longer than the two minutes for the first listing"),
    ("Service", "RuntimeDirectoryPreserve", "yes", "what jobs were told outlives a restart"),
]
# Each gives the daemon a mount namespace of its own, or hides what it mounts. Source: systemd.exec(5).
FORBIDDEN = (
    "PrivateMounts", "PrivateTmp", "PrivateDevices", "ProtectSystem", "ProtectHome", "ProtectKernelTunables",
    "ProtectControlGroups", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "BindPaths", "MountFlags",
    "RootDirectory", "DynamicUser", "RestartPreventExitStatus",
)  # fmt: skip


class CaseMatters(configparser.ConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = CaseMatters(interpolation=None, strict=True)
    parser.read_string(UNIT.read_text())
    return parser


@pytest.mark.parametrize(("section", "key", "value", "reason"), KEYS, ids=[key for _, key, _, _ in KEYS])
def test_a_key_that_something_relies_on(
    unit: configparser.ConfigParser, section: str, key: str, value: str, reason: str
) -> None:
    assert unit[section].get(key) == value, reason


def test_the_controller_can_still_be_told_at_a_shutdown(unit: configparser.ConfigParser) -> None:
    assert {"network.target", "munge.service", "remote-fs.target"} <= set(unit["Unit"]["After"].split())


@pytest.mark.parametrize("key", FORBIDDEN)
def test_a_key_that_would_break_it(unit: configparser.ConfigParser, key: str) -> None:
    assert key not in unit["Service"]
