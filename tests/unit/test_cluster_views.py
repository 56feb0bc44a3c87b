"""The datasets of the cluster: put together, chosen, drawn."""

import io
import json

import msgspec
import pytest
from rich.console import Console

from scratch_slurm.cli.cluster_views import ClusterDataset, ClusterDatasets, choose, list_datasets, render
from scratch_slurm.domain.errors import NotFoundError, SlurmError
from scratch_slurm.slurm.cluster import parse_active_features

FEATURES = {"n2": ("gpu", "ds:a", "ds:gone"), "n1": ("ds:a",), "n3": ()}


def test_the_source_and_slurm_put_together() -> None:
    assert list_datasets({"b": 2, "a": 1}, FEATURES, prefix="ds:") == (
        ClusterDataset("a", 1, True, ("n1", "n2")),
        ClusterDataset("b", 2, True, ()),
        ClusterDataset("gone", None, False, ("n2",)),
    )


def test_without_a_source_what_is_cached_is_listed() -> None:
    assert list_datasets(None, FEATURES, prefix="ds:") == (
        ClusterDataset("a", None, None, ("n1", "n2")),
        ClusterDataset("gone", None, None, ("n2",)),
    )


def test_without_slurm_the_source_is_listed() -> None:
    assert list_datasets({"a": 1}, None, prefix="ds:") == (ClusterDataset("a", 1, True, None),)


@pytest.mark.parametrize("feature", ["ds:", "ds:.hidden", "ds:a=2fb", "Ds:a", "xds:a", "ds:" + "x" * 65, "a"])
def test_other_features_are_no_datasets(feature: str) -> None:
    assert list_datasets(None, {"n1": (feature,)}, prefix="ds:") == ()


def test_a_prefix_of_the_sites() -> None:
    assert list_datasets(None, {"n1": ("cache.a", "ds:b")}, prefix="cache.") == (
        ClusterDataset("a", None, None, ("n1",)),
    )


ALL = list_datasets({"imagenet": 1, "imagenet-21k": 2, "Coco": 3, "x+y": 4}, None, prefix="ds:")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (None, ["Coco", "imagenet", "imagenet-21k", "x+y"]),
        ("net", ["imagenet", "imagenet-21k"]),
        ("imagenet?", None),
        ("imagenet", ["imagenet", "imagenet-21k"]),
        ("imagenet-*", ["imagenet-21k"]),
        ("[ix]*", ["imagenet", "imagenet-21k", "x+y"]),
        ("coco", None),
        ("x+", ["x+y"]),
        ("", ["Coco", "imagenet", "imagenet-21k", "x+y"]),
    ],
)
def test_choose(pattern: str | None, names: list[str] | None) -> None:
    if names is None:
        with pytest.raises(NotFoundError):
            choose(ALL, pattern)
    else:
        assert [dataset.name for dataset in choose(ALL, pattern)] == names


def test_what_does_not_match_is_an_error_with_the_nearest_names() -> None:
    with pytest.raises(NotFoundError) as error:
        choose(ALL, "imagnet")
    assert error.value.hint == "did you mean imagenet or imagenet-21k?"


def draw(cluster: ClusterDatasets) -> str:
    file = io.StringIO()
    Console(file=file, width=80, highlight=False).print(render(cluster))
    return file.getvalue()


def test_render() -> None:
    datasets = list_datasets({"a": 15 * 10**9, "b": 2}, FEATURES, prefix="ds:")
    lines = [line.split() for line in draw(ClusterDatasets("/s", 3, datasets)).splitlines()]
    assert lines[:4] == [
        ["DATASET", "SIZE", "CACHED", "ON"],
        ["a", "15.0", "GB", "2", "of", "3", "nodes"],
        ["b", "2", "B", "0", "of", "3", "nodes"],
        ["gone", "-", "1", "of", "3", "nodes"],
    ]
    assert "* gone: cached, but not in the source any more" in draw(ClusterDatasets("/s", 3, datasets))


def test_render_what_cannot_be_told() -> None:
    lines = draw(ClusterDatasets("/s", None, list_datasets({"a": 5}, None, prefix="ds:"))).splitlines()
    assert lines[1].split() == ["a", "5", "B", "-"]
    assert draw(ClusterDatasets(None, 1, ())) == "no datasets\n"
    one = draw(ClusterDatasets(None, 1, list_datasets(None, {"n1": ("ds:a",)}, prefix="ds:")))
    assert one.splitlines()[1:] == ["a           -  1 of 1 node"]


def test_no_escapes_reach_the_terminal() -> None:
    assert "\x1b" not in draw(ClusterDatasets(None, 1, (ClusterDataset("\x1b[31m[red]", 1, True, ()),)))


def test_the_answer_is_json() -> None:
    datasets = list_datasets({"a": 1}, FEATURES, prefix="ds:")
    assert json.loads(msgspec.json.encode(ClusterDatasets("/s", 3, datasets)))["datasets"][0]["nodes"] == ["n1", "n2"]


def test_parse_active_features() -> None:
    text = "n1|gpu,ds:a|\nn2|(null)|\nn1|gpu,ds:a|\n n3 | |\n"
    assert parse_active_features(text) == {"n1": ("gpu", "ds:a"), "n2": (), "n3": ()}
    assert parse_active_features("") == {}


@pytest.mark.parametrize("text", ["nonsense", "|a|", "n1|a|\nslurm is sad\n"])
def test_what_is_no_line_of_sinfo_is_an_error(text: str) -> None:
    with pytest.raises(SlurmError):
        parse_active_features(text)
