"""The hooks' ready values: used only while they say what the configuration file says, and only when root's alone."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import ConfigError
from scratch_slurm.node import hookconfig
from scratch_slurm.node.configfile import parse_config
from scratch_slurm.node.hookconfig import HookConfig, load_hook_config, save_hook_config

pytestmark = pytest.mark.root


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A configuration file and its run_dir; `ready.json` is there after `save_hook_config()`."""
    (tmp_path / "run").mkdir(mode=0o755)
    configure(tmp_path)
    monkeypatch.setenv("SCRATCH_SLURM_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("SCRATCH_SLURM_RUN_DIR", str(tmp_path / "run"))
    return tmp_path


def configure(folder, wait="7s", extra=""):
    lines = [f"{key}_dir: {folder / key}" for key in ("source", "cache", "mount", "state", "run")]
    file = folder / "config.yaml"
    file.write_text("\n".join((*lines, f"preheat: {{wait: {wait}, timeout: 20s}}", extra)))
    file.chmod(0o644)


@pytest.fixture
def parses(monkeypatch):
    """Counts how often the configuration itself was parsed."""
    calls: list[object] = []

    def parse(*what: Any) -> Config:
        calls.append(what)
        return parse_config(*what)

    monkeypatch.setattr(hookconfig, "parse_config", parse)
    return calls


def expected(folder, **changes):
    values = {"wait_s": 7.0, "wait_limit_s": 20.0, "source_dir": str(folder / "source"), **changes}
    return HookConfig(str(folder / "mount"), str(folder / "run"), str(folder / "state"), **values)


def test_ready_values_are_those_of_the_file(node, parses) -> None:
    assert load_hook_config() == expected(node)
    save_hook_config()
    del parses[:]
    assert load_hook_config() == expected(node)
    assert not parses
    config = load_hook_config()
    assert (config.socket_path, config.ledger_path, config.jobs_dir) == (
        f"{node}/run/daemon.sock",
        f"{node}/state/ledger.sqlite",
        f"{node}/run/jobs",
    )


def test_the_daemons_command_line_goes_before_the_file(node, parses) -> None:
    save_hook_config(options={"mount_dir": "/data"})
    del parses[:]
    assert load_hook_config().mount_dir == "/data"
    assert not parses


def test_a_file_that_was_changed_is_parsed_whatever_its_times_say(node, parses) -> None:
    save_hook_config()
    before = (node / "config.yaml").stat()
    configure(node, wait="8s")
    os.utime(node / "config.yaml", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_hook_config() == expected(node, wait_s=8.0)


@pytest.mark.parametrize("made_ready", [True, False])
def test_while_a_file_is_wrong_or_gone_the_last_good_values_serve_or_it_is_an_error(node, made_ready) -> None:
    def fails(match):
        if not made_ready:
            with pytest.raises(ConfigError, match=match):
                load_hook_config()
            return
        config = load_hook_config()
        assert re.search(match, config.stale)
        assert config._replace(stale="") == expected(node)

    if made_ready:
        save_hook_config()
    configure(node, extra="capacty: 1 GB")
    fails("unknown key")
    (node / "config.yaml").chmod(0o666)
    fails("mode 0666")
    (node / "config.yaml").unlink()
    fails("no such file")
    configure(node)
    assert load_hook_config() == expected(node)


def rewrite(file, **changes):
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "mount_dir": "/evil", **changes}))


def by_somebody_else(file):
    rewrite(file)
    os.chown(file, 12345, 12345)


def writable_by_others(file):
    rewrite(file)
    file.chmod(0o602)


def in_a_directory_of_somebody_else(file):
    rewrite(file)
    os.chown(file.parent, 12345, 0)


def in_a_directory_that_others_may_write(file):
    rewrite(file)
    file.parent.chmod(0o777)


def as_a_symlink(file):
    rewrite(file)
    file.rename(file.with_name("other.json"))
    file.symlink_to("other.json")


def as_a_fifo(file):
    file.unlink()
    os.mkfifo(file, 0o600)


def from_another_text(file):
    rewrite(file, made_from="source_dir: /x")


def by_another_release(file):
    rewrite(file, version="0.0.0")


def with_wrong_types(file):
    rewrite(file, wait_s="soon")


def with_a_number_for_a_path(file):
    rewrite(file, state_dir=1)


def with_a_path_that_is_not_absolute(file):
    rewrite(file, run_dir="run")


def of_no_object(file):
    file.write_text("[]")


def nested_too_deeply(file):
    file.write_text("[" * 100_000)


def cut_short(file):
    file.write_text(file.read_text()[:-5])


def gone(file):
    file.unlink()


WRONG = [
    by_somebody_else, writable_by_others, in_a_directory_of_somebody_else, in_a_directory_that_others_may_write,
    as_a_symlink, as_a_fifo, from_another_text, by_another_release, with_wrong_types, with_a_number_for_a_path,
    with_a_path_that_is_not_absolute,
    of_no_object, nested_too_deeply, cut_short, gone,
]  # fmt: skip


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__.replace("_", "-"))
def test_what_cannot_be_trusted_is_not_used(node, spoil) -> None:
    save_hook_config()
    spoil(node / "run" / "hook.json")
    assert load_hook_config() == expected(node)


def test_it_is_written_whole_for_root_alone_and_again(node) -> None:
    before = os.umask(0)
    try:
        save_hook_config()
        (node / "run" / ".hook.json.new").write_text("of a daemon that was killed")
        save_hook_config()
    finally:
        os.umask(before)
    assert [path.name for path in (node / "run").iterdir()] == ["hook.json"]
    assert (node / "run" / "hook.json").stat().st_mode & 0o777 == 0o600


def test_bytes_that_are_no_text_are_compared_too(node, parses) -> None:
    (node / "config.yaml").write_bytes((node / "config.yaml").read_bytes() + "\n# Gerät é\n".encode())
    save_hook_config()
    del parses[:]
    assert load_hook_config() == expected(node)
    assert not parses


HEAVY = (
    "yaml",
    "pathlib",
    "msgspec",
    "dataclasses",
    "inspect",
    "hashlib",
    "difflib",
    "logging",
    "subprocess",
    "asyncio",
)


def test_a_hook_with_ready_values_imports_nothing_heavy(node) -> None:
    save_hook_config()
    code = (
        "import sys\n"
        "import scratch_slurm.hooks.main, scratch_slurm.hooks.prolog, scratch_slurm.hooks.epilog\n"
        "from scratch_slurm.node.hookconfig import load_hook_config\n"
        "load_hook_config()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=_paths())
    assert done.stdout.strip() == "[]"


def _paths():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
