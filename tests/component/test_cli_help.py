"""What the command lines say when they are only looked at: as people read it, and nothing of the program's insides."""

import subprocess
import sys
from pathlib import Path

import pytest

from scratch_slurm.cli.main import COMMANDS, run

DAEMON = [sys.executable, "-m", "scratch_slurm.service.main"]


def check_readable(text: str) -> None:
    assert "Traceback" not in text
    assert "\\" not in text, "an escape that nobody meant"
    assert all(char.isprintable() or char == "\n" for char in text)
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("arguments", [[], ["--config", "/nonexistent"]], ids=["bare", "bare-with-a-configuration"])
def test_without_a_command_the_help_is_shown_line_by_line_and_the_usage_is_wrong(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    check_readable(told.err)
    assert [line for line in told.err.splitlines() if line.split()[:1] == ["status"]]


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_is_readable(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*([command] if command else []), option]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.startswith("Usage: scratch-slurm")
    check_readable(told.out)


@pytest.mark.parametrize("command", [["preheat"], ["evict"], ["build"], ["build", "/tmp"], ["status", "--nonsense"]])
def test_wrong_usage_is_two_readable_lines(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command) == 2
    told = capsys.readouterr()
    check_readable(told.err)
    assert len(told.err.splitlines()) == 2
    assert f"`scratch-slurm {command[0]} -h` tells" in told.err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--nonsense"], 2), (["--unmount", "x"], 2)])
def test_the_daemons_help_is_readable(arguments: list[str], code: int) -> None:
    told = subprocess.run([*DAEMON, *arguments], capture_output=True, text=True, check=False)
    assert told.returncode == code
    check_readable(told.stdout + told.stderr)
    assert "usage: scratch-slurmd" in told.stdout + told.stderr


# ---- output that cannot be written


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["status"], ["status", "--json"]])
def test_output_that_cannot_be_written_is_said_in_a_line(arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    names = ("source", "cache", "mount", "state", "run")
    config.write_text("".join(f"{name}_dir: {tmp_path}/{name}\n" for name in names))
    code = "from scratch_slurm.cli.main import main; main()"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code, "--config", str(config), *arguments]
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert told.returncode == 7
    assert "Traceback" not in told.stderr
    assert told.stderr.splitlines()[-1] == "scratch-slurm: standard output: no space left"


def test_the_daemons_output_that_cannot_be_written_is_said_in_a_line(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"source_dir: {tmp_path}/source\ncache_dir: {tmp_path}/cache\n")
    with open("/dev/full", "w") as full:
        command = [*DAEMON, "--check-config", "--config", str(config)]
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1
