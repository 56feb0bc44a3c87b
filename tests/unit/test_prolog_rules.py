"""What `scontrol show config` says of prologs, as the releases print it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.prolog import PrologRules, parse_prolog_rules

RULES = [
    pytest.param("PrologEpilogTimeout     = 65534\nPrologFlags             = Alloc\n", PrologRules(), id="none"),
    pytest.param("PrologEpilogTimeout     = NONE\nPrologFlags = (null)\n", PrologRules(), id="none-in-a-word"),
    pytest.param("PrologEpilogTimeout     = 15\n", PrologRules(15.0, "PrologEpilogTimeout"), id="before-25.05"),
    pytest.param(
        "PrologEpilogTimeout = 15 sec\nPrologTimeout = 20 sec\nEpilogTimeout = 1 sec\n",
        PrologRules(20.0, "PrologTimeout"),
        id="from-25.05-on",
    ),
    pytest.param(
        "PrologTimeout = NONE\nPrologEpilogTimeout = 9\n",
        PrologRules(9.0, "PrologEpilogTimeout"),
        id="only-the-older-one",
    ),
    pytest.param("EpilogTimeout = 3\nPrologSlurmctldTimeout = 4\n", PrologRules(), id="others-are-none-of-ours"),
    pytest.param("PrologFlags             = Alloc,Serial,Contain\n", PrologRules(serial=True), id="serial"),
    pytest.param("PrologFlags = NoSerialThing\nComment = PrologFlags = Serial\n", PrologRules(), id="not-serial"),
    pytest.param("Slurmctld(primary) at x is DOWN\nPrologEpilogTimeout = soon\n", PrologRules(), id="not-understood"),
    pytest.param("", PrologRules(), id="nothing"),
]


@pytest.mark.parametrize(("text", "expected"), RULES)
def test_the_rules(text: str, expected: PrologRules) -> None:
    assert parse_prolog_rules(text) == expected


@given(st.text())
def test_any_text_gives_rules(text: str) -> None:
    rules = parse_prolog_rules(f"PrologEpilogTimeout = {text}")
    assert rules.timeout_s is None or rules.timeout_s > 0
