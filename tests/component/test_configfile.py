import os
from pathlib import Path

import pytest

from scratch_slurm.domain.errors import ConfigError
from scratch_slurm.node.configfile import load_config

GOOD = "source_dir: /nfs/images\ncache_dir: /ssd/cache\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    path.chmod(0o644)
    return path


def test_a_file_named_by_argument_comes_before_the_environment(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH_SLURM_CONFIG", str(tmp_path / "nothing"))
    config = load_config(file)
    assert str(config.source_dir) == "/nfs/images"
    assert config.node_name == os.uname().nodename.partition(".")[0]
    assert load_config(str(file)) == config


def test_a_file_named_by_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_SLURM_CONFIG", str(file))
    assert str(load_config().cache_dir) == "/ssd/cache"


BAD = [
    pytest.param("source_dir: /a\n  cache_dir: [\n", r"config\.yaml:2: ", id="not-yaml-names-the-line"),
    pytest.param("\tx: 1", r"config\.yaml:1: ", id="tab"),
    pytest.param("", "expected keys and values", id="empty"),
    pytest.param("source_dir: \x00", "config.yaml: ", id="control-character"),
    pytest.param("a: !!python/object/apply:os.system ['true']", r"config\.yaml:1: could not determine", id="no-code"),
    pytest.param(GOOD + "capacty: 1 GB\n", "capacty: unknown key", id="unknown-key"),
    pytest.param("x" * 1_000_001, "larger than", id="too-long"),
]


@pytest.mark.parametrize(("text", "wrong"), BAD)
def test_what_is_wrong_is_said_with_the_files_name(file: Path, text: str, wrong: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=wrong) as caught:
        load_config(file)
    assert caught.value.message.startswith(str(file))


def test_bytes_that_are_no_text(file: Path) -> None:
    file.write_bytes(b"source_dir: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: "):
        load_config(file)


def test_a_missing_file_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_config(tmp_path / "nothing")
    assert "SCRATCH_SLURM_CONFIG" in (caught.value.hint or "")


def test_neither_a_directory_nor_a_fifo_is_read(file: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(file.parent)
    os.mkfifo(file.parent / "fifo")
    with pytest.raises(ConfigError, match="not a file"):
        load_config(file.parent / "fifo")


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_root_refuses_a_file_that_others_may_write(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}"):
        load_config(file)


@pytest.mark.root
def test_root_refuses_a_file_of_somebody_else(file: Path) -> None:
    os.chown(file, 12345, 12345)
    with pytest.raises(ConfigError, match="uid 12345"):
        load_config(file)


def test_a_cache_directory_on_the_command_line_goes_before_all_of_the_files(tmp_path: Path) -> None:
    path = tmp_path / "several.yaml"
    path.write_text("source_dir: /nfs/images\ncache_dirs: [/ssd0/cache, /ssd1/cache]\n")
    path.chmod(0o644)
    assert load_config(path).cache_dirs == ("/ssd0/cache", "/ssd1/cache")
    assert load_config(path, {"cache_dir": "/tmp/cache"}).cache_dirs == ("/tmp/cache",)
    assert load_config(path, {"capacity": "1 GB"}).disks[1].capacity == "1 GB"
