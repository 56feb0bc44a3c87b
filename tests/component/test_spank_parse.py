import math
import os
import shutil
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scratch_slurm.domain.errors import UsageError
from scratch_slurm.domain.names import DATASET_NAME, dataset_variables, parse_dataset_list
from scratch_slurm.domain.sizes import parse_wait
from scratch_slurm.hooks.report import Report, format_report
from scratch_slurm.hooks.request import parse_request
from tests.kit.spank_library import REPORT_SIZE_MAX, SPANK, Parser, build

# An option's value is bytes without NUL.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80)
MANY = settings(max_examples=600, deadline=None)


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    return Parser(build(tmp_path_factory.mktemp("spank")))


NAMES = [
    pytest.param("imagenet", ["imagenet"], id="one"),
    pytest.param("b,a,c", ["b", "a", "c"], id="order-of-asking"),
    pytest.param("a,b,a,b,a", ["a", "b"], id="each-once"),
    pytest.param("ab,a,b,abc", ["ab", "a", "b", "abc"], id="a-part-of-a-name-is-another-name"),
    pytest.param("2012.v1_x@y+z-9", ["2012.v1_x@y+z-9"], id="all-letters-of-the-alphabet"),
    pytest.param("x" * 64, ["x" * 64], id="longest-name"),
    pytest.param(",".join(f"{i:064d}" for i in range(64)), [f"{i:064d}" for i in range(64)], id="longest-list"),
]


@pytest.mark.parametrize(("text", "names"), NAMES)
def test_takes_names(parser, text, names) -> None:
    assert parser.datasets(text) == names


BAD_NAMES = [
    pytest.param("", "''", id="nothing"),
    pytest.param("a,", "''", id="empty-at-the-end"),
    pytest.param(",a", "''", id="empty-at-the-start"),
    pytest.param("good,b d", "'b d'", id="space"),
    pytest.param("../etc", "'../etc'", id="starts-with-a-dot"),
    pytest.param("a/b", "'a/b'", id="slash"),
    pytest.param("-x", "'-x'", id="looks-like-a-flag"),
    pytest.param("a$(id)", "'a$(id)'", id="shell"),
    pytest.param("a\n", "'a?'", id="line-end"),
    pytest.param("\x1b[31mred", "'?[31mred'", id="terminal-escape-is-not-passed-on"),
    pytest.param("é", "'??'", id="beyond-ascii"),
    pytest.param("x" * 65, "'" + "x" * 64 + "...'", id="too-long-is-cut-in-the-message"),
    pytest.param(",".join(f"d{i}" for i in range(65)), "more than 64", id="too-many"),
    pytest.param("a," * 64 + "a", "more than 64", id="too-many-although-the-same"),
]


@pytest.mark.parametrize(("text", "shown"), BAD_NAMES)
def test_refuses_and_shows_the_name(parser, text, shown) -> None:
    with pytest.raises(ValueError) as refusal:
        parser.datasets(text)
    assert shown in str(refusal.value)
    assert str(refusal.value).isprintable()


WAITS = [
    pytest.param("0", 0, id="do-not-wait"),
    pytest.param("all", -1, id="as-long-as-allowed"),
    pytest.param("90s", 90, id="seconds"),
    pytest.param("10m", 600, id="minutes"),
    pytest.param("2h", 7200, id="hours"),
    pytest.param("1d", 86400, id="days"),
    pytest.param("5", 300, id="plain-is-minutes"),
    pytest.param("1:30", 90, id="MM:SS"),
    pytest.param("1:02:03", 3723, id="HH:MM:SS"),
    pytest.param("1-2", 93600, id="D-HH"),
    pytest.param("1-2:3", 93780, id="D-HH:MM"),
    pytest.param("1-2:3:4", 93784, id="D-HH:MM:SS"),
    pytest.param("999999-99:99:99", 999999 * 86400 + 99 * 3661, id="largest"),
]


@pytest.mark.parametrize(("text", "seconds"), WAITS)
def test_takes_waits(parser, text, seconds) -> None:
    assert parser.wait(text) == seconds


BAD_WAITS = ["", " 5", "5 ", "-1", "+1", "5x", "5ms", "s", "1.5h", "ALL", "all ", "1:", ":1", "1:2:3:4", "1-", "1-2:"]
BAD_WAITS += ["1-2:3:4:5", "1:123", "1-123", "1234567", "1234567s", "99999999999999999999", "5\n", "5\x1b[m", "٣"]


@pytest.mark.parametrize("text", BAD_WAITS)
def test_refuses_other_waits_and_shows_them(parser, text) -> None:
    with pytest.raises(ValueError) as refusal:
        parser.wait(text)
    shown = "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in os.fsencode(text))
    assert f"'{shown}'" in str(refusal.value)


def outcome(parse, text):
    try:
        return parse(text)
    except (ValueError, UsageError):
        return "refused"


@MANY
@given(st.one_of(TEXTS, st.from_regex(r"[A-Za-z0-9._@+,-]{0,90}", fullmatch=True)))
@example("a," * 63 + "a")
@example("a," * 64 + "a")
@example("x" * 64 + "," + "x" * 65)
def test_submits_what_the_hook_takes(parser, text) -> None:
    assert outcome(parser.datasets, text) == outcome(lambda names: list(parse_dataset_list(names)), text)


@MANY
@given(st.one_of(TEXTS, st.from_regex(r"[0-9]{0,7}([smhd:-][0-9]{0,7}){0,4}", fullmatch=True)))
def test_waits_as_the_hook_does(parser, text) -> None:
    seconds = outcome(parse_wait, text)
    assert outcome(parser.wait, text) == (-1 if seconds == math.inf else seconds)


REPORTS = [
    pytest.param(b"", [], id="empty"),
    pytest.param(b"SCRATCH_DATASETS=a,b\n", [("SCRATCH_DATASETS", "a,b")], id="exported"),
    pytest.param(b"message=copying, 12 % \xc3\xa9\n", [("message", "copying, 12 % é")], id="message"),
    pytest.param(b"SCRATCH_X=a=b", [("SCRATCH_X", "a=b")], id="no-line-end-and-an-equals-sign"),
    pytest.param(b"SCRATCH_X=\n", [("SCRATCH_X", "")], id="empty-value"),
    pytest.param(b"LD_PRELOAD=/evil\nPATH=/evil\nXSCRATCH_A=1\n", [], id="other-variables-are-not-exported"),
    pytest.param(b"SCRATCH_=1\nSCRATCH_a=1\nSCRATCH_A B=1\n", [], id="odd-names-are-not-exported"),
    pytest.param(b"message=\x1b[31mred\nSCRATCH_A=\x7f\nSCRATCH_B=\t\n", [], id="control-characters"),
    pytest.param(b"nonsense\n\n=\nSCRATCH_A=1\n", [("SCRATCH_A", "1")], id="passes-over-nonsense"),
    pytest.param(b"SCRATCH_A=" + b"x" * 9000 + b"\nSCRATCH_B=1\n", [("SCRATCH_B", "1")], id="passes-over-a-long-line"),
]


@pytest.mark.parametrize(("text", "lines"), REPORTS)
def test_takes_from_a_report(parser, text, lines) -> None:
    assert parser.report(text) == lines


@MANY
@given(st.binary(max_size=300).map(lambda text: text.replace(b"\0", b"")))
def test_no_report_harms(parser, text) -> None:
    for name, value in parser.report(text):
        assert name == "message" or name.startswith("SCRATCH_")
        assert not any(ord(c) < 32 or ord(c) == 127 for c in value)


COMMENTS = [
    "", "datasets=", "datasets=a", "x datasets=a,b y", "datasets= datasets=a", "mydatasets=a", "datasets=a datasets=b",
    "a\tdatasets=b", "datasets = a", " datasets=a", "x datasets=", "datasets=\tdatasets", "DATASETS=a", "datasets==",
]  # fmt: skip


@pytest.mark.parametrize("comment", COMMENTS)
def test_the_plugin_and_the_stub_see_a_request_in_a_comment_where_the_hook_does(parser, tmp_path, comment) -> None:
    hook = tmp_path / "scratch-slurm-hook"
    hook.write_text(f"#!/bin/sh\necho >{tmp_path}/ran\n")
    hook.chmod(0o755)
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_COMMENT": comment}
    asks = bool(parse_request(environ).datasets_text)
    assert parser.comment_asks(comment) == asks
    for stub in ("prolog.d", "epilog.d"):
        path = SPANK.parent / stub / "50-scratch-slurm"
        subprocess.run([path], env={**environ, "SCRATCH_SLURM_BIN": str(tmp_path)}, check=True, timeout=30)
        assert (tmp_path / "ran").exists() == asks
        (tmp_path / "ran").unlink(missing_ok=True)


def test_takes_what_the_prolog_writes(parser, tmp_path) -> None:
    names = tuple(f"{i:064d}" for i in range(64))
    text = format_report(Report(tmp_path, names, messages=("one", "two\nlines", "x" * 2000)))
    lines = parser.report(text.encode())
    assert dict(lines)["SCRATCH_DATASETS"] == ",".join(names)
    assert dict(lines)["SCRATCH_DATASETS_DIR"] == str(tmp_path)
    assert [value for name, value in lines if name == "message"][:2] == ["one", "two?lines"]
    paths = {f"SCRATCH_DATASET_{name}": str(tmp_path / name) for name in names}
    assert {name: value for name, value in lines if name in paths} == paths
    assert len(lines) == 5 + len(names)


def test_the_plugin_builds_and_exports_only_what_slurm_calls(tmp_path) -> None:
    probe = ["cc", "-E", "-include", "slurm/spank.h", "-xc", os.devnull]
    if subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs slurm/spank.h (libslurm-dev)")
    shutil.copytree(SPANK, tmp_path / "spank")
    for target in ("clean", "all"):
        subprocess.run(["make", "-C", str(tmp_path / "spank"), target], check=True, capture_output=True, timeout=120)
    plugin = tmp_path / "spank" / "scratch_slurm.so"
    symbols = subprocess.run(["nm", "-D", "--defined-only", str(plugin)], check=True, capture_output=True, text=True)
    assert {line.split()[2] for line in symbols.stdout.splitlines()} == {
        "plugin_name", "plugin_type", "plugin_version", "spank_plugin_version",
        "slurm_spank_init", "slurm_spank_init_post_opt", "slurm_spank_local_user_init", "slurm_spank_task_init",
        "slurm_spank_task_init_privileged", "slurm_spank_job_prolog", "slurm_spank_job_epilog",
    }  # fmt: skip


@given(st.from_regex(DATASET_NAME, fullmatch=True))
@MANY
def test_names_a_datasets_variable_as_the_hook_does(parser, name) -> None:
    assert {parser.variable(name): name} == dataset_variables([name])


def test_of_two_datasets_with_one_variable_the_first_has_it() -> None:
    assert dataset_variables(["a.b", "A-b", "c"]) == {"SCRATCH_DATASET_A_B": "a.b", "SCRATCH_DATASET_C": "c"}


def test_a_report_is_never_longer_than_the_plugin_reads(parser) -> None:
    names = tuple(f"{i:064d}" for i in range(64))
    text = format_report(Report("/" + "x" * 600, names, messages=("y" * 500,) * 80))
    assert len(text) <= REPORT_SIZE_MAX
    lines = dict(parser.report(text.encode()))
    assert lines["SCRATCH_DATASETS"] == ",".join(names)
    assert f"SCRATCH_DATASET_{names[-1]}" in lines
    assert text.endswith("\n")
