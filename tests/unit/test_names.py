"""Names: what root lets pass, and what it makes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain import names
from scratch_slurm.domain.errors import UsageError

GENERATION = "0123456789abcdef"

VALID = [
    "a",
    "7",
    "imagenet",
    "coco-2017",
    "A.b_c@d+e-f",
    "my.image",
    "x.squashfs",
    "a..b",
    "a@" + GENERATION,
    "a" * 64,
]
INVALID = [
    "", ".", "..", ".hidden", "-rf", "_a", "@a", "+a", "a/b", "/etc", "../a", "a b", "a,b", "a\n", "\na", "a\0", "a\t",
    "é",
    "aé", "a" * 65, "a;b", "a$b", "a*", "a'b", 'a"b', "a:b", "a\\b", "a=b", "a%b", "\u0661",
]  # fmt: skip


@pytest.mark.parametrize("text", VALID, ids=lambda text: text[:20])
def test_a_dataset_name(text: str) -> None:
    assert names.parse_dataset_name(text) == text


@pytest.mark.parametrize("text", INVALID, ids=ascii)
def test_no_dataset_name(text: str) -> None:
    with pytest.raises(UsageError, match="is not valid") as caught:
        names.parse_dataset_name(text)
    assert repr(text[:80]) in caught.value.message
    assert "64" in (caught.value.hint or "")


@given(st.text(max_size=70))
def test_a_dataset_name_is_one_plain_path_component(text) -> None:
    try:
        name = names.parse_dataset_name(text)
    except UsageError:
        return
    assert name.isascii() and name.isprintable() and 1 <= len(name) <= 64
    assert not set(name) & set("/\0 ,\n") and name[0].isalnum()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a",)),
        ("b,a", ("b", "a")),
        ("b,a,b", ("b", "a")),
        (",".join(f"d{n}" for n in range(64)), tuple(f"d{n}" for n in range(64))),
    ],
    ids=["one", "in-the-order-of-asking", "each-once", "as-many-as-64"],
)
def test_a_dataset_list(text: str, expected: tuple[str, ...]) -> None:
    assert names.parse_dataset_list(text) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "'' is not valid"),
        (",", "'' is not valid"),
        ("a,", "'' is not valid"),
        ("a,,b", "'' is not valid"),
        ("a, b", "' b' is not valid"),
        ("a,../b", "'../b' is not valid"),
        (",".join(f"d{n}" for n in range(65)), "more than 64"),
        ("a," * 1_000_000, "more than 64"),
    ],
    ids=["empty", "comma", "trailing-comma", "double-comma", "space", "path", "sixty-five", "a-million"],
)
def test_no_dataset_list(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        names.parse_dataset_list(text)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("coco.squashfs", ("coco", "squashfs")),
        ("coco.sqsh", ("coco", "squashfs")),
        ("coco.sqfs", ("coco", "squashfs")),
        ("coco.erofs", ("coco", "erofs")),
        ("coco.v2.squashfs", ("coco.v2", "squashfs")),
        ("a.squashfs.squashfs", ("a.squashfs", "squashfs")),
        ("a.erofs.sqsh", ("a.erofs", "squashfs")),
        ("coco.SQUASHFS", None),
        ("coco.json", None),
        ("coco", None),
        ("squashfs", None),
        (".squashfs", None),
        (".hidden.squashfs", None),
        ("a b.squashfs", None),
        ("../a.squashfs", None),
        ("coco.squashfs~", None),
        ("coco.squashfs\n", None),
        ("caf\udce9.squashfs", None),
        ("a" * 65 + ".squashfs", None),
    ],
    ids=ascii,
)
def test_an_image_name(file_name: str, expected: tuple[str, ...] | None) -> None:
    assert names.parse_image_name(file_name) == expected


DATASETS = st.from_regex(names.DATASET_NAME, fullmatch=True)
GENERATIONS = st.from_regex(r"[0-9a-f]{16}", fullmatch=True)


@given(DATASETS, GENERATIONS)
def test_cached_file_names_read_back(dataset, generation_id) -> None:
    file_name = names.cached_file_name(dataset, generation_id)
    assert names.parse_cached_file_name(file_name) == (dataset, generation_id)
    assert "/" not in file_name and len(file_name) <= 255


@pytest.mark.parametrize(
    "file_name",
    [
        "coco.image",
        "coco@.image",
        f"coco@{GENERATION}",
        f"coco@{GENERATION}.part",
        f"coco@{GENERATION}.image.part",
        f"coco@{GENERATION[1:]}.image",
        f"coco@{GENERATION.upper()}.image",
        f"@{GENERATION}.image",
        f".coco@{GENERATION}.image",
        f"coco@{GENERATION}.image\n",
    ],
)
def test_no_cached_file_name(file_name: str) -> None:
    assert names.parse_cached_file_name(file_name) is None


@given(GENERATIONS)
def test_device_tags_read_back_and_fit_into_a_loop_device_s_name(generation_id) -> None:
    tag = names.device_tag(generation_id)
    assert names.parse_device_tag(tag) == generation_id
    assert len(tag) == 30


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "image.squashfs",
        "scratch-slurm:",
        f"scratch-slurm:{GENERATION}0",
        f"x-scratch-slurm:{GENERATION}",
        GENERATION,
    ],
)
def test_a_device_of_others_has_no_generation(tag: str) -> None:
    assert names.parse_device_tag(tag) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenett", "did you mean imagenet?"),
        ("coc", "did you mean coco?"),
        ("coco-17", "did you mean coco-2017 or coco?"),
        ("zzz", None),
    ],
)
def test_the_nearest_names_are_told(name: str, expected: str | None) -> None:
    assert names.nearest_hint(name, iter(["coco", "imagenet", "coco-2017"])) == expected
