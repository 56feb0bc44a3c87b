"""The configuration: every error names the key, the value, and the way out."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from scratch_slurm.domain.config import (
    CacheDisk,
    Config,
    CopySettings,
    PreheatSettings,
    RawConfig,
    SlurmSettings,
    build_config,
    refuse_twins,
    resolve_size,
)
from scratch_slurm.domain.errors import ConfigError

LEAST = {"source_dir": "/nfs/datasets", "cache_dir": "/ssd/cache"}
MISSING = object()
SECTIONS: dict[str, type[msgspec.Struct]] = {"copy": CopySettings, "preheat": PreheatSettings, "slurm": SlurmSettings}


def build(host_name="node7.cluster.example", **changed):
    values = {key: value for key, value in {**LEAST, **changed}.items() if value is not MISSING}
    return build_config(values, origin="config.yaml", host_name=host_name)


def refusal(**changed):
    with pytest.raises(ConfigError) as caught:
        build(**changed)
    assert caught.value.message.startswith("config.yaml: ")
    return caught.value


def test_two_keys_are_enough() -> None:
    config = build()
    assert config.source_dir == Path("/nfs/datasets")
    assert config.disks == (CacheDisk(Path("/ssd/cache"), "", "80%", "5%"),)
    assert (config.mount_dir, config.state_dir, config.run_dir) == (
        Path("/datasets"),
        Path("/var/lib/scratch-slurm"),
        Path("/run/scratch-slurm"),
    )
    assert config.log_level == "INFO"
    assert config.max_pinned == "", "no limit"
    assert (config.period_s, config.horizon_s, config.interval_s) == (600, 1800, 30)
    assert (config.wait_s, config.wait_limit_s, config.bandwidth_bytes_per_s) == (10, 600, None)
    assert config.node_name == "node7"


def test_all_keys_are_taken() -> None:
    config = build(
        mount_dir="/data",
        state_dir="/var/lib/x",
        run_dir="/run/x",
        cache_mount="/ssd",
        capacity="2 TiB",
        reserve="10 GB",
        max_pinned="50%",
        period="5m",
        horizon="1h",
        interval=15,
        source_timeout="1m",
        log_level="debug",
        copy={"datasets": 3, "readers": 8, "bandwidth": "100 MB"},
        preheat={"wait": 0, "timeout": "2m"},
        slurm={"node_name": "n1.x"},
    )
    assert config.disks == (CacheDisk(Path("/ssd/cache"), "/ssd", "2 TiB", "10 GB"),)
    assert config.max_pinned == "50%"
    assert (config.period_s, config.horizon_s, config.interval_s, config.source_timeout_s) == (300, 3600, 15, 60)
    assert (config.copies, config.readers, config.bandwidth_bytes_per_s) == (3, 8, 100_000_000)
    assert (config.wait_s, config.wait_limit_s) == (0, 120)
    assert (config.node_name, config.log_level) == ("n1.x", "DEBUG")


def test_files_lie_where_they_belong() -> None:
    config = build()
    assert config.socket_path == Path("/run/scratch-slurm/daemon.sock")
    assert config.root_socket_path == Path("/run/scratch-slurm/root.sock")
    assert config.lock_path.parent == config.jobs_dir.parent == config.run_dir
    assert config.ledger_path.parent == config.state_dir
    assert config.cache_dirs == ("/ssd/cache",)


@pytest.mark.parametrize("node", ["node7", "node7.cluster", "node7.a.b"])
def test_the_node_is_named_like_its_host(node) -> None:
    assert build(host_name=node).node_name == "node7"


NEAREST = [
    ({"sourcedir": "/x"}, "sourcedir: unknown key", "did you mean source_dir?"),
    ({"cachedir": "/x"}, "cachedir: unknown key", "did you mean cache_dir?"),
    ({"capcity": "1 GB"}, "capcity: unknown key", "did you mean capacity?"),
    ({"horizn": "1h"}, "horizn: unknown key", "did you mean horizon?"),
    ({"copy": {"raeders": 1}}, "copy.raeders: unknown key", "did you mean copy.readers?"),
    ({"copy": {"bandwith": 1}}, "copy.bandwith: unknown key", "did you mean copy.bandwidth?"),
    ({"preheat": {"waits": 1}}, "preheat.waits: unknown key", "did you mean preheat.wait?"),
    ({"slurm": {"nodename": 1}}, "slurm.nodename: unknown key", "did you mean slurm.node_name?"),
    ({"zzz": 1}, "zzz: unknown key", "known keys: source_dir, cache_dir, "),
    ({"copy": {"zzz": 1}}, "copy.zzz: unknown key", "known keys: datasets, readers, bandwidth"),
    ({5: 1}, "5: unknown key", "known keys: "),
    ({None: 1}, "None: unknown key", "known keys: "),
]


@pytest.mark.parametrize(("extra", "message", "hint"), NEAREST, ids=[case[1].partition(":")[0] for case in NEAREST])
def test_an_unknown_key_names_the_nearest_known_one(extra, message, hint) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({**LEAST, **extra}, origin="config.yaml", host_name="n")
    assert caught.value.message == f"config.yaml: {message}"
    assert (caught.value.hint or "").startswith(hint)


@pytest.mark.parametrize("key", ["source_dir", "cache_dir"])
def test_a_missing_key_says_how_to_write_it(key) -> None:
    error = refusal(**{key: MISSING})
    assert error.message == f"config.yaml: {key}: missing"
    assert error.hint == f"say {key}: /an/absolute/path"


@pytest.mark.parametrize(
    ("values", "kind"),
    [(None, "NoneType"), ([], "list"), ("text", "str"), (5, "int")],
    ids=["empty", "list", "text", "5"],
)
def test_a_file_that_is_no_mapping(values, kind) -> None:
    with pytest.raises(ConfigError, match=f"config.yaml: expected keys and values, got {kind}"):
        build_config(values, origin="config.yaml", host_name="n")


WRONG = [
    ("source_dir", 5, "5 is not text"),
    ("source_dir", None, "None is not text"),
    ("source_dir", "", "'' is not an absolute directory path"),
    ("source_dir", "nfs/datasets", "'nfs/datasets' is not an absolute directory path"),
    ("source_dir", "~/x", "'~/x' is not an absolute directory path"),
    ("cache_dir", "/", "'/' is not an absolute directory path below /"),
    ("cache_dir", "/ssd/../etc", "'/ssd/../etc' is not an absolute directory path"),
    ("mount_dir", "datasets", "'datasets' is not an absolute directory path"),
    ("state_dir", "x", "'x' is not an absolute directory path"),
    ("run_dir", "x", "'x' is not an absolute directory path"),
    ("capacity", "lots", "size 'lots' is not valid"),
    ("capacity", "101%", "size '101%' is not valid"),
    ("capacity", -1, "size '-1' is not valid"),
    ("capacity", True, "True is not text or a number"),
    ("capacity", None, "None is not text or a number"),
    ("reserve", ["5%"], "['5%'] is not text or a number"),
    ("max_pinned", "half", "size 'half' is not valid"),
    ("max_pinned", "200%", "size '200%' is not valid here"),
    ("reserve", "5 %%", "size '5 %%' is not valid"),
    ("period", 0, "0 must be more than 0 seconds"),
    ("horizon", "0s", "'0s' must be more than 0 seconds"),
    ("interval", "0", "'0' must be more than 0 seconds"),
    ("interval", -5, "duration '-5' is not valid"),
    ("interval", "soon", "duration 'soon' is not valid"),
    ("source_timeout", "nan", "duration 'nan' is not valid"),
    ("log_level", "LOUD", "'LOUD' is not DEBUG, INFO, WARNING or ERROR"),
    ("copy", None, "None is not keys and values"),
    ("copy", 3, "3 is not keys and values"),
    ("copy.datasets", 0, "0 is not from 1 to 64"),
    ("copy.datasets", 65, "65 is not from 1 to 64"),
    ("copy.datasets", "2", "'2' is not a whole number"),
    ("copy.datasets", 2.5, "2.5 is not a whole number"),
    ("copy.datasets", True, "True is not a whole number"),
    ("copy.readers", 0, "0 is not from 1 to 64"),
    ("copy.bandwidth", "50%", "size '50%' is not valid here"),
    ("copy.bandwidth", "fast", "size 'fast' is not valid"),
    ("preheat.wait", "later", "duration 'later' is not valid"),
    ("preheat.timeout", [], "[] is not text or a number"),
    ("slurm.node_name", 7, "7 is not text"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[f"{key}={value!r}" for key, value, _ in WRONG])
def test_a_wrong_value_is_named_with_its_key(key, value, message) -> None:
    outer, _, inner = key.partition(".")
    error = refusal(**{outer: {inner: value} if inner else value})
    assert f"config.yaml: {key}: " in error.message
    assert message in error.message


INSIDE = [
    ("cache_dir", "/nfs/datasets", "source_dir"),
    ("cache_dir", "/nfs/datasets/cache", "source_dir"),
    ("cache_dir", "/datasets/cache", "mount_dir"),
    ("mount_dir", "/ssd/cache/mnt", "cache_dir"),
    ("mount_dir", "/nfs/datasets/mnt", "source_dir"),
    ("state_dir", "/ssd/cache/state", "cache_dir"),
    ("state_dir", "/datasets", "mount_dir"),
    ("source_dir", "/ssd/cache/source", "cache_dir"),
]


@pytest.mark.parametrize(("key", "path", "other"), INSIDE)
def test_directories_do_not_lie_in_one_another(key, path, other) -> None:
    """A mount would hide, or an eviction delete, the other's files."""
    message = refusal(**{key: path}).message
    assert key in message and other in message and path in message


def test_directories_side_by_side_may_begin_alike() -> None:
    assert build(source_dir="/data", cache_dir="/data-cache", mount_dir="/data-sets")


def test_every_key_of_the_file_reaches_the_configuration() -> None:
    """A key that is read by nobody would be a promise that is not kept."""
    of_disks = {"cache_dir", "cache_dirs", "cache_mount", "capacity", "reserve"}
    keys = {field.name for field in msgspec.structs.fields(RawConfig)} - {"copy", "preheat", "slurm"} - of_disks
    inner = sum(len(msgspec.structs.fields(each)) for each in (CopySettings, PreheatSettings, SlurmSettings))
    beside_the_keys = {"disks", "host_name", "node_name_given", "notes"}
    assert len(msgspec.structs.fields(Config)) == len(keys) + inner + len(beside_the_keys)


DISKS: dict[str, Any] = {"cache_dir": MISSING, "cache_dirs": ["/ssd0/cache", "/ssd1/cache"]}


def test_each_disk_has_the_capacity_and_the_reserve_of_all_or_its_own() -> None:
    own = {"dir": "/ssd1/cache", "capacity": "500 GB", "mount": "/ssd1"}
    config = build(**DISKS | {"cache_dirs": ["/ssd0/cache", own]}, capacity="90%", reserve=0)
    assert config.disks == (
        CacheDisk(Path("/ssd0/cache"), "", "90%", "0"),
        CacheDisk(Path("/ssd1/cache"), "/ssd1", "500 GB", "0"),
    )
    assert config.cache_dirs == ("/ssd0/cache", "/ssd1/cache")


def test_the_short_form_is_a_list_of_one() -> None:
    assert build(**DISKS | {"cache_dirs": ["/ssd/cache"]}) == build()


WRONG_DISKS: list[tuple[dict[str, Any], str, str]] = [
    ({"cache_dirs": []}, "cache_dir: missing", "say cache_dir: "),
    ({"cache_dir": "/ssd"}, "cache_dirs: goes without cache_dir", "list it there"),
    ({"cache_mount": "/ssd0"}, "cache_mount: goes with cache_dir", "in cache_dirs write {dir: PATH, mount: PATH}"),
    ({"cache_dirs": ["/a/b", "/a/b"]}, "cache_dirs: '/a/b' lies in cache_dirs '/a/b'", ""),
    ({"cache_dirs": ["/a", "/a/b"]}, "cache_dirs: '/a/b' lies in cache_dirs '/a'", ""),
    ({"cache_dirs": ["/a", "/nfs/datasets/b"]}, "cache_dirs: '/nfs/datasets/b' lies in source_dir", ""),
    ({"cache_dirs": ["/a", "b"]}, "cache_dirs 2: dir: 'b' is not an absolute directory path", ""),
    ({"cache_dirs": ["/a", 5]}, "cache_dirs: ['/a', 5] is not a list of paths, or of dir, mount,", ""),
    ({"cache_dirs": "/a"}, "cache_dirs: '/a' is not a list of paths", ""),
    (
        {"cache_dirs": [{"dir": "/a", "mnt": "/"}]},
        "cache_dirs 1: mnt: unknown key",
        "did you mean cache_dirs 1: mount?",
    ),
    ({"cache_dirs": [{"capacity": "1 GB"}]}, "cache_dirs: [{'capacity': '1 GB'}] is not a list of paths", ""),
    ({"cache_dirs": [{"dir": "/a", "capacity": "x"}]}, "cache_dirs 1: capacity: size 'x' is not valid", ""),
    ({"cache_dirs": [{"dir": "/a", "reserve": "101%"}]}, "cache_dirs 1: reserve: size '101%' is not valid", ""),
    ({"cache_dirs": [{"dir": "/a/b", "mount": "/b"}]}, "cache_dirs 1: mount: '/b' is not on the way to", ""),
    ({"cache_dirs": [f"/{number}" for number in range(33)]}, "cache_dirs: 33 are more than 32", ""),
]


@pytest.mark.parametrize(("changed", "message", "hint"), WRONG_DISKS, ids=[case[1][:50] for case in WRONG_DISKS])
def test_disks_that_cannot_be(changed: dict[str, Any], message: str, hint: str) -> None:
    error = refusal(**DISKS | changed)
    assert error.message.startswith(f"config.yaml: {message}")
    assert (error.hint or "").startswith(hint)


def test_links_that_lead_to_one_directory_are_no_two_disks() -> None:
    one, other = (CacheDisk(Path(path), "", "80%", "5%") for path in ("/a", "/a"))
    with pytest.raises(ConfigError, match="'/a' lies in '/a', with their links resolved"):
        refuse_twins((one, other))


def test_a_key_of_an_earlier_release_is_taken_and_noted() -> None:
    config = build(copy={"workers": 5, "readers": 3})
    assert (config.copies, config.readers) == (5, 3)
    assert config.notes == ("config.yaml: copy.workers is called copy.datasets now",)
    assert build(copy={"datasets": 5}).notes == build().notes == ()


def test_a_key_of_an_earlier_release_is_not_taken_beside_the_one_of_today() -> None:
    error = refusal(copy={"workers": 5, "datasets": 5})
    assert error.message == "config.yaml: copy.workers: is copy.datasets, which is given too"
    assert error.hint == "leave it out"


def test_a_wrong_value_of_a_former_key_is_named_by_the_one_of_today() -> None:
    assert refusal(copy={"workers": 0}).message == "config.yaml: copy.datasets: 0 is not from 1 to 64"


def uncomment(text: str) -> dict[str, Any]:
    """Read the example configuration with all its keys, those in comments too."""
    shown: dict[str, Any] = yaml.safe_load(re.sub(r"^# ((?:  )?[a-z_]+:(?: .*)?)$", r"\1", text, flags=re.MULTILINE))
    return shown


def test_the_example_shows_every_key_and_in_comments_its_default() -> None:
    text = (Path(__file__).parents[2] / "daemon" / "config.yaml").read_text()
    given = yaml.safe_load(text)
    shown = uncomment(text)
    assert list(given) == ["source_dir", "cache_dir"]
    assert msgspec.convert(shown, RawConfig) == RawConfig(**given)
    assert shown.keys() == {field.name for field in msgspec.structs.fields(RawConfig)}
    for part, shape in ((shown[key], shape) for key, shape in SECTIONS.items()):
        assert set(part) == {field.name for field in msgspec.structs.fields(shape)}


@pytest.mark.parametrize(("text", "expected"), [("80%", 800), ("5 kB", 5000), ("0", 0)])
def test_sizes_are_resolved_on_the_node(text, expected) -> None:
    assert resolve_size(text, whole_bytes=1000) == expected
