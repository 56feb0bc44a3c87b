"""Node features: names that never collide, and a merge that leaves the administrator's own alone."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.features import NodeFeatures, feature_name, format_extra, is_extra_ours, plan_features
from scratch_slurm.domain.names import DATASET_NAME, FEATURE_PREFIX

OURS = format_extra(["a"])
dataset_names = st.from_regex(DATASET_NAME, fullmatch=True)
SLURMS_ALPHABET = re.compile(r"[A-Za-z0-9_.:@=/+-]+", re.ASCII)

own_features = st.lists(
    st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(lambda name: not name.startswith("ds:")), unique=True
)


@pytest.mark.parametrize(
    ("now", "cached", "wanted"),
    [
        pytest.param(NodeFeatures(), [], None, id="nothing-to-nothing"),
        pytest.param(NodeFeatures(), ["a"], NodeFeatures(("ds:a",), ("ds:a",), OURS), id="first"),
        pytest.param(NodeFeatures(("ds:a",), ("ds:a",), OURS), ["a"], None, id="known-already"),
        pytest.param(
            NodeFeatures(("ds:a",), ("ds:a",), ""), ["a"], NodeFeatures(("ds:a",), ("ds:a",), OURS), id="extra"
        ),
        pytest.param(NodeFeatures(("ds:a",), ("ds:a",), OURS), [], NodeFeatures((), (), ""), id="taken-back"),
        pytest.param(NodeFeatures((), (), OURS), ["a"], NodeFeatures(("ds:a",), ("ds:a",), None), id="lost-but-extra"),
        pytest.param(
            NodeFeatures(("ds:a",), (), OURS), ["a"], NodeFeatures(("ds:a",), ("ds:a",), None), id="made-inactive"
        ),
        pytest.param(
            NodeFeatures(("z", "ds:b", "gpu"), ("gpu",), "rack 7"),
            ["c", "a"],
            NodeFeatures(("z", "gpu", "ds:a", "ds:c"), ("gpu", "ds:a", "ds:c"), None),
            id="administrators-own-order-split-and-extra-kept",
        ),
        pytest.param(NodeFeatures(("ds:a", "gpu"), ("ds:a",), OURS), ["a"], None, id="order-alone-is-no-change"),
    ],
)
def test_plan(now: NodeFeatures, cached: list[str], wanted: NodeFeatures | None) -> None:
    assert plan_features(now, cached, prefix="ds:") == wanted


@given(own_features, st.data(), st.lists(dataset_names), st.lists(dataset_names))
def test_a_plan_keeps_what_is_not_ours_and_tells_all_that_is_cached(own, data, before, cached) -> None:
    active = [name for name in own if data.draw(st.booleans())]
    mine = [feature_name(name, "ds:") for name in dict.fromkeys(before)]
    listed = data.draw(st.permutations([*own, *mine]))
    now = NodeFeatures(tuple(listed), (*active, *mine), format_extra(before))
    own_order = [name for name in listed if name in own]
    wanted = plan_features(now, cached, prefix="ds:")
    after = wanted or now
    assert [name for name in after.available if not name.startswith("ds:")] == own_order
    assert {name for name in after.active if not name.startswith("ds:")} == set(active)
    assert {name for name in after.active if name.startswith("ds:")} == {f"ds:{name}" for name in cached}
    assert set(after.active) <= set(after.available)
    assert len(set(after.available)) == len(after.available)
    extra = now.extra if after.extra is None else after.extra
    assert extra == format_extra(cached)
    settled = NodeFeatures(after.available, after.active, extra)
    assert plan_features(settled, cached, prefix="ds:") is None


@given(dataset_names)
def test_a_dataset_keeps_its_name_in_its_feature(name) -> None:
    assert feature_name(name, "ds:") == f"ds:{name}"


@given(st.text(), st.text())
def test_two_names_never_share_a_feature_and_slurm_takes_each(one, other) -> None:
    assert (feature_name(one, "ds:") == feature_name(other, "ds:")) == (one == other)
    assert SLURMS_ALPHABET.fullmatch(feature_name(one, "ds:"))


@pytest.mark.parametrize("name", ["a b", "a=20b", "a,b", "a&b", "ü", "\udcff", "a=2Cb"])
def test_what_slurm_does_not_take_is_written_in_digits(name: str) -> None:
    assert not DATASET_NAME.fullmatch(name)
    assert SLURMS_ALPHABET.fullmatch(feature_name(name, "ds:"))
    assert feature_name(name, "") != name


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("", True),
        (format_extra(["b", "a"]), True),
        ('{"scratch_slurm": 1}', True),
        ('{"scratch_slurm": {}, "rack": 7}', False),
        ('{"rack": 7}', False),
        ("rack 7", False),
        ("7", False),
        ("{}", False),
        ("[" * 100_000, False),
    ],
)
def test_whose_extra(text: str, ours: bool) -> None:
    assert is_extra_ours(text) is ours


def test_extra_is_json_for_tools() -> None:
    assert json.loads(format_extra(["b", "a", "b"])) == {"scratch_slurm": {"datasets": ["a", "b"]}}
    assert format_extra([]) == ""


@pytest.mark.parametrize("prefix", ["", "a,b", "a b", "(", "|", "&", "*", "a" * 33, "ü", "ds:\n"])
def test_a_bad_prefix_is_none(prefix: str) -> None:
    assert not FEATURE_PREFIX.fullmatch(prefix)
