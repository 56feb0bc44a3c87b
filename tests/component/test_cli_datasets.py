"""`scratch-slurm datasets` on a host with or without configuration, source and Slurm."""

import json
import time

import pytest

from scratch_slurm.cli.datasets import read_sizes
from scratch_slurm.cli.main import run
from scratch_slurm.domain.errors import SourceError
from scratch_slurm.node import configfile
from tests.kit.hanging import hanging_directory


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A login node: no configuration, no Slurm, a source that holds two datasets."""
    source = tmp_path / "source"
    source.mkdir()
    for name, size in (("imagenet.squashfs", 5000), ("coco.erofs", 7), ("notes.txt", 1), (".x.squashfs", 1)):
        (source / name).write_bytes(b"x" * size)
    (source / "link.squashfs").symlink_to("imagenet.squashfs")
    (source / "directory.squashfs").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("SCRATCH_SLURM_CONFIG", raising=False)
    monkeypatch.setattr(configfile, "DEFAULT_PATH", str(tmp_path / "config.yaml"))
    return tmp_path


def configure(host, extra=""):
    text = f"source_dir: {host}/source\ncache_dir: {host}/cache\n{extra}"
    (host / "config.yaml").write_text(text)
    (host / "config.yaml").chmod(0o644)


def install_sinfo(host, script):
    path = host / "bin" / "sinfo"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def told(capsys):
    return json.loads(capsys.readouterr().out)


def test_a_named_source_needs_no_configuration_and_no_slurm(host, capsys) -> None:
    assert run(["datasets", "--source", str(host / "source"), "--json"]) == 0
    assert told(capsys) == {
        "source_dir": str(host / "source"),
        "node_count": None,
        "datasets": [
            {"name": "coco", "size_bytes": 7, "in_source": True, "nodes": None},
            {"name": "imagenet", "size_bytes": 5000, "in_source": True, "nodes": None},
        ],
    }


def test_the_configured_source_and_slurm(host, capsys) -> None:
    configure(host, "slurm: {feature_prefix: 'at:'}\n")
    install_sinfo(host, "printf 'n1|at:coco,ds:imagenet|\\nn2|at:coco,gpu|\\n'")
    assert run(["datasets", "--json", "co"]) == 0
    answer = told(capsys)
    assert answer["node_count"] == 2
    assert answer["datasets"] == [{"name": "coco", "size_bytes": 7, "in_source": True, "nodes": ["n1", "n2"]}]


def test_only_slurm(host, capsys) -> None:
    install_sinfo(host, "printf 'n1|ds:coco|\\n'")
    assert run(["datasets"]) == 0
    out = capsys.readouterr()
    assert out.out.splitlines()[1].split() == ["coco", "-", "1", "of", "1", "node"]
    assert out.err == ""


def test_slurm_that_fails_is_told_and_the_source_listed(host, capsys) -> None:
    install_sinfo(host, "echo 'no controller' >&2; exit 1")
    assert run(["datasets", "--source", str(host / "source")]) == 0
    out = capsys.readouterr()
    assert "no controller" in out.err
    assert out.out.splitlines()[2].split() == ["imagenet", "5.0", "kB", "-"]


def test_slurm_that_hangs_is_given_up(host, capsys, monkeypatch) -> None:
    monkeypatch.setattr("scratch_slurm.cli.datasets.SLURM_TIMEOUT_S", 0.3)
    install_sinfo(host, "exec /bin/sleep 60")
    started = time.monotonic()
    assert run(["datasets", "--source", str(host / "source")]) == 0
    assert time.monotonic() - started < 10
    assert "no answer within 0.3 s" in capsys.readouterr().err


def test_a_configured_source_that_is_not_seen_here_is_told(host, capsys) -> None:
    configure(host)
    (host / "source").rename(host / "elsewhere")
    install_sinfo(host, "printf 'n1|ds:coco|\\n'")
    assert run(["datasets", "--json"]) == 0
    out = capsys.readouterr()
    assert "cannot list the source" in out.err
    dataset = {"name": "coco", "size_bytes": None, "in_source": None, "nodes": ["n1"]}
    assert json.loads(out.out) == {"source_dir": None, "node_count": 1, "datasets": [dataset]}


def test_a_named_source_that_is_not_there_is_an_error(host, capsys) -> None:
    install_sinfo(host, "printf 'n1|ds:coco|\\n'")
    assert run(["datasets", "--source", str(host / "nosuch")]) == 9


def test_a_host_that_can_tell_nothing(host, capsys) -> None:
    assert run(["datasets"]) == 9
    assert "--source DIR" in capsys.readouterr().err


def test_a_wrong_configuration_is_an_error(host, capsys) -> None:
    configure(host, "nonsense: 1\n")
    assert run(["datasets"]) == 3
    assert run(["--config", str(host / "nosuch.yaml"), "datasets"]) == 3


def test_what_matches_nothing_is_an_error_with_the_nearest_names(host, capsys) -> None:
    assert run(["datasets", "--source", str(host / "source"), "imagnet"]) == 4
    assert "did you mean imagenet?" in capsys.readouterr().err


@pytest.mark.root
def test_a_source_that_hangs_is_given_up(tmp_path) -> None:
    with hanging_directory(tmp_path / "hanging") as path:
        started = time.monotonic()
        with pytest.raises(SourceError, match=r"no answer within 0\.3 s"):
            read_sizes(path, timeout_s=0.3)
        assert time.monotonic() - started < 5
