import dataclasses
import gzip
import math
import re
import subprocess
import sys

import fsspec
import numpy as np
import pandas as pd
import pytest
from conftest import count_findings
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS, parse_findings
from cxr_records.lookalike_patients import plan_images
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.seeding import keyed_hash
from cxr_records.splits import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    SplitOptions,
    Splits,
    cut_by_patient,
    list_digest,
    make_splits,
    read_list,
    take_splits,
)


def table(*rows: tuple[int, str]) -> Metadata:
    """Makes the metadata of images 00000001_000.png and so on from each one's patient and label string."""
    seen: dict[int, int] = {}
    image_ids = []
    for patient, _ in rows:
        image_ids.append(f"{patient:08}_{seen.setdefault(patient, 0):03}.png")
        seen[patient] += 1
    columns = {"image_id": image_ids, "patient_id": [patient for patient, _ in rows]}
    return Metadata(pd.DataFrame(columns), np.stack([parse_findings(text) for _, text in rows]), "other", "")


def write(name: str, text: str | bytes) -> str:
    url = f"memory://splits/{name}"
    with fsspec.open(url, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    return url


def lists(train_val: str, test: str, validation: str | None = None, **settings) -> SplitOptions:
    """Writes the lists, given as patients ("1 2"), each with the patient's first image."""
    paths = [
        None
        if patients is None
        else write(f"{name}.txt", "\n".join(f"{p:>08}_000.png" for p in patients.split()))
        for name, patients in (("train_val", train_val), ("test", test), ("validation", validation))
    ]
    return SplitOptions(*paths, **settings)


FIVE = table((1, "Mass"), (2, "Mass"), (3, "No Finding"), (4, "Edema"), (5, "Mass|Edema"))

tables = st.lists(
    st.tuples(st.integers(1, 12), st.sets(st.sampled_from(FINDINGS), max_size=3)), min_size=1, max_size=60
).map(lambda rows: table(*[(patient, "|".join(sorted(found)) or "No Finding") for patient, found in rows]))
fractions = st.sampled_from([0, 0.1, 0.125, 0.5, 0.9])


@given(tables, fractions, fractions, st.integers(0, 5))
def test_every_image_has_one_split_and_no_patient_has_two(metadata, validation, test, seed):
    splits = make_splits(metadata, SplitOptions(None, None, None, validation, test, seed))

    assert set(splits.of_image) <= set(SPLITS)
    assert metadata.table.groupby("patient_id")["image_id"].count().sum() == len(splits.of_image)
    assert (metadata.table.assign(split=splits.of_image).groupby("patient_id")["split"].nunique() == 1).all()
    assert TRAIN in splits.of_image
    assert (VALIDATION in splits.of_image) <= (validation > 0)
    assert (TEST in splits.of_image) <= (test > 0)


@given(tables, fractions, st.integers(0, 5), st.randoms())
def test_the_cut_depends_on_the_seed_and_not_on_the_order_of_the_rows(metadata, fraction, seed, random):
    patients = metadata.table["patient_id"].to_numpy()
    cut = cut_by_patient(patients, metadata.findings, fraction, seed)
    order = np.array(random.sample(range(len(patients)), len(patients)))

    assert cut.tolist() == cut_by_patient(patients, metadata.findings, fraction, seed).tolist()
    assert (
        cut[order].tolist()
        == cut_by_patient(patients[order], metadata.findings[order], fraction, seed).tolist()
    )


def cut_one_by_one(metadata: Metadata, fraction: float, seed: int) -> list[bool]:
    """What `cut_by_patient` says of itself, without arrays."""
    rows: dict[int, list[list[int]]] = {}
    for patient, vector in zip(metadata.table["patient_id"], metadata.findings.tolist(), strict=True):
        rows.setdefault(patient, []).append([*vector, 1])
    counts = {patient: [sum(column) for column in zip(*of, strict=True)] for patient, of in rows.items()}
    draw = {patient: keyed_hash(seed, "validation", patient) for patient in counts}

    def share(count: int) -> int:
        return math.ceil(fraction * count - 0.5)

    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    room = [max(min(share(total), total - 1), 0) for total in totals]
    cut = set()

    def deal(candidates: list[int], column: int) -> None:
        for patient in candidates:
            if room[column] and all(n <= left for n, left in zip(counts[patient], room, strict=True)):
                cut.add(patient)
                room[:] = [left - n for n, left in zip(counts[patient], room, strict=True)]

    classes = {patient: len(f"{of[-1]:b}") for patient, of in counts.items()}  # of 1, 2 to 3, 4 to 7 images
    few = next(
        top
        for top in range(1, 10)
        if sum(counts[p][-1] for p in counts if classes[p] <= top) >= 0.25 * totals[-1]
    )
    low: list[int] = []
    for of_class in range(9, few, -1):
        members = sorted((p for p in counts if classes[p] == of_class), key=draw.__getitem__)
        larger = sum(classes[p] >= of_class for p in counts)
        low += members[: share(larger) - len(low)]
    deal(sorted(low, key=lambda p: (-counts[p][-1], draw[p])), 14)
    waiting = set(counts) - cut
    for column in [*sorted(range(14), key=lambda c: (totals[c], c)), 14]:
        asked = [p for p in waiting if counts[p][column]]
        deal(sorted(asked, key=lambda p: (classes[p] > few, draw[p])), column)
        waiting -= set(asked)
    return [patient in cut for patient in metadata.table["patient_id"]]


@given(tables, st.sampled_from([0, 0.125, 0.25, 0.5, 0.75]), st.integers(0, 5))
def test_low_draws_are_cut_as_far_as_no_finding_goes_beyond_its_share(metadata, fraction, seed):
    patients = metadata.table["patient_id"].to_numpy()

    cut = cut_by_patient(patients, metadata.findings, fraction, seed)

    assert cut.tolist() == cut_one_by_one(metadata, fraction, seed)


@given(tables, fractions, st.integers(0, 5))
def test_no_finding_and_no_number_of_images_goes_beyond_its_share(metadata, fraction, seed):
    cut = cut_by_patient(metadata.table["patient_id"].to_numpy(), metadata.findings, fraction, seed)

    columns = np.column_stack([metadata.findings, np.ones(len(cut), np.int64)]).astype(int)
    in_cut, in_all = columns[cut].sum(axis=0), columns.sum(axis=0)
    assert (in_cut < fraction * in_all + 0.5).all() or fraction == 0
    assert (in_cut[in_all > 0] < in_all[in_all > 0]).all()


def test_each_split_is_cut_by_draws_of_its_own():
    metadata = table(*[(patient, "No Finding") for patient in range(400)])
    arguments = metadata.table["patient_id"].to_numpy(), metadata.findings, 0.5, 0

    validation, test = (cut_by_patient(*arguments, name) for name in (VALIDATION, TEST))
    assert (validation & test).sum() == pytest.approx(100, abs=20)


@pytest.fixture(scope="module")
def population() -> tuple[np.ndarray, np.ndarray]:
    """Patients and findings of 20,000 images with NIH's shares and numbers of images per patient."""
    images = plan_images(20_000, seed=0)
    findings = np.stack([parse_findings("|".join(image.findings) or "No Finding") for image in images])
    return np.array([image.patient for image in images]), findings


def relabelled(findings: np.ndarray, images: int, seed: int) -> np.ndarray:
    """The findings with one more, any of the 14, on each of some images."""
    rng = np.random.default_rng(seed)
    changed = findings.copy()
    changed[rng.choice(len(findings), images, replace=False), rng.integers(14, size=images)] = 1
    return changed


@pytest.mark.parametrize("seed", range(3))
def test_a_corrected_label_moves_a_handful_of_images(population, seed):
    patients, findings = population
    cut = cut_by_patient(patients, findings, 0.125, seed)
    moved = [
        (cut_by_patient(patients, relabelled(findings, 1, trial), 0.125, seed) != cut).sum()
        for trial in range(20)
    ]

    assert np.mean(moved) < 0.002 * cut.sum()
    assert max(moved) < 0.01 * cut.sum()


@pytest.mark.parametrize("seed", range(3))
def test_a_patient_or_an_image_less_moves_few_others(population, seed):
    patients, findings = population
    cut = cut_by_patient(patients, findings, 0.125, seed)
    moved, most = [], []
    for row in np.random.default_rng(seed).choice(len(patients), 20, replace=False):
        for kept in (patients != patients[row], np.arange(len(patients)) != row):
            after = cut_by_patient(patients[kept], findings[kept], 0.125, seed)
            moved.append((after != cut[kept]).sum())
            most.append(0.02 * cut.sum() + 3 * (~kept).sum())  # a patient may have a hundred images

    assert np.mean(moved) < 0.01 * cut.sum()
    assert (np.array(moved) < most).all(), moved


@pytest.mark.parametrize("fraction", [0.125, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_every_finding_of_a_population_gets_its_share_to_an_image(population, fraction, seed):
    patients, findings = population
    cut = cut_by_patient(patients, findings, fraction, seed)

    assert cut.sum() == fraction * len(cut)
    assert findings[cut].sum(axis=0) == pytest.approx(fraction * findings.sum(axis=0), abs=1)
    without = ~findings.any(axis=1)
    assert without[cut].sum() == pytest.approx(fraction * without.sum(), rel=0.05)


@pytest.mark.parametrize("fewest", [4, 8])
def test_findings_come_near_their_share_where_every_patient_has_many_images(population, fewest):
    patients, findings = population
    _, of_row, images = np.unique(patients, return_inverse=True, return_counts=True)
    many = images[of_row] >= fewest
    patients, findings = patients[many], findings[many]
    cut = cut_by_patient(patients, findings, 0.125, 0)

    assert cut.sum() == pytest.approx(0.125 * len(cut), rel=0.01)
    common = findings.sum(axis=0) > 400
    shares = findings[cut].sum(axis=0)[common] / findings.sum(axis=0)[common]
    assert len(shares) >= 7
    assert 0.75 * 0.125 < shares.min() <= shares.max() < 1.02 * 0.125


def test_a_table_without_rows_has_nothing_to_cut():
    assert cut_by_patient(np.zeros(0, np.int64), np.zeros((0, 14), np.uint8), 0.5, 0).tolist() == []


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_findings_that_a_single_patient_has_go_to_train(fraction):
    metadata = table(*[(patient, finding) for patient, finding in enumerate(FINDINGS)])

    assert not cut_by_patient(np.arange(14), metadata.findings, fraction, 0).any()


@pytest.mark.parametrize("fraction", [0, 0.125, 0.5])
def test_a_table_of_a_single_patient_is_all_train(fraction):
    splits = make_splits(table((1, "Mass"), (1, "Edema")), SplitOptions(None, None, None, fraction, fraction))

    assert splits.of_image.tolist() == ["train", "train"]


def test_findings_are_cut_in_proportion_and_the_rarest_first():
    rows = [(p, "Hernia|Infiltration") for p in range(8)] + [(p, "Infiltration") for p in range(8, 80)]
    rows += [(p, "No Finding") for p in range(80, 240)]
    metadata = table(*rows)
    cut = cut_by_patient(metadata.table["patient_id"].to_numpy(), metadata.findings, 0.125, 0)
    counts = count_findings(metadata.findings[cut])

    assert (counts["Hernia"], counts["Infiltration"], counts["No Finding"], cut.sum()) == (1, 10, 20, 30)


def test_another_seed_cuts_other_patients_of_the_same_number():
    metadata = table(*[(patient, "No Finding") for patient in range(80)])
    cuts = [
        cut_by_patient(metadata.table["patient_id"].to_numpy(), metadata.findings, 0.25, s) for s in (0, 1)
    ]

    assert [cut.sum() for cut in cuts] == [20, 20]
    assert (cuts[0] != cuts[1]).any()


def test_lists_decide_when_they_are_given():
    splits = make_splits(FIVE, lists("1 2", "4 9", validation_fraction=0, allow_missing=True))

    assert splits.of_image.tolist() == ["train", "train", "", "test", ""]
    assert splits.origin == "lists given (not the official NIH lists)"
    assert not splits.official
    assert (splits.in_no_list, splits.not_in_table) == (2, 1)
    assert splits.warnings == (
        "memory://splits/test.txt: 1 of its 2 names (the first is '00000009_000.png') are in no row of the "
        "table (whose first is 00000001_000.png): left out",
    )
    assert splits.list_digests == {
        "train_val": list_digest(["00000002_000.png", "00000001_000.png"]),
        "test": list_digest(["00000004_000.png", "00000009_000.png"]),
    }


def test_a_validation_list_is_taken_out_of_train_val():
    splits = make_splits(FIVE, lists("1 2 3", "4 5", "2"))

    assert splits.of_image.tolist() == ["train", "validation", "train", "test", "test"]
    assert splits.origin == "lists given (not the official NIH lists); validation from a list given"
    assert list(splits.list_digests) == ["train_val", "test", "validation"]


def test_validation_is_cut_from_train_val_only():
    splits = make_splits(FIVE, lists("1 2 3 5", "4", validation_fraction=0.5))

    assert splits.of_image[3] == TEST
    assert sorted(splits.of_image) == ["test", "train", "train", "validation", "validation"]
    assert splits.origin == (
        "lists given (not the official NIH lists); validation cut from train_val by patient with seed 0"
    )


def test_without_lists_the_splits_are_called_unofficial():
    splits = make_splits(FIVE, SplitOptions(seed=7))

    assert splits.origin == "unofficial: cut by patient with seed 7"
    assert (splits.official, splits.list_digests, splits.in_no_list, splits.not_in_table) == (False, {}, 0, 0)


def test_the_test_images_do_not_depend_on_the_validation_fraction():
    metadata = table(*[(patient, FINDINGS[patient % 14]) for patient in range(200)])
    first, second = (make_splits(metadata, SplitOptions(validation_fraction=f)).of_image for f in (0, 0.3))

    assert (first == TEST).sum() == 40
    assert ((first == TEST) == (second == TEST)).all()


def test_an_eighth_of_train_val_validates_and_a_fifth_of_all_images_tests_where_nothing_is_said():
    metadata = table(*[(patient, "No Finding") for patient in range(1, 802)])
    names = " ".join(map(str, range(1, 801)))

    with_lists = make_splits(metadata, lists(names, "801")).of_image
    without = make_splits(table(*[(p, "No Finding") for p in range(800)]), SplitOptions()).of_image

    assert (with_lists == VALIDATION).sum() == 100
    assert [(without == split).sum() for split in SPLITS] == [560, 80, 160]


@pytest.fixture
def official_are(monkeypatch) -> None:
    """Makes the images of patients 1 and 2 the official train_val list, that of patient 4 the test list."""
    from cxr_records import splits

    names = [[f"{patient:08}_000.png" for patient in patients] for patients in ((1, 2), (4,))]
    monkeypatch.setattr(splits, "OFFICIAL_TRAIN_VAL", list_digest(names[0]))
    monkeypatch.setattr(splits, "OFFICIAL_TEST", list_digest(names[1]))


@pytest.mark.parametrize(
    ("train_val", "test", "official"), [("2 1", "4", True), ("1 2", "4 5", False), ("1 3", "4", False)]
)
def test_lists_are_official_when_both_are_to_the_last_name(train_val, test, official, official_are):
    splits = make_splits(FIVE, lists(train_val, test, validation_fraction=0))

    origin = "official NIH lists" if official else "lists given (not the official NIH lists)"
    assert (splits.official, splits.origin) == (official, origin)


def test_official_lists_given_the_wrong_way_round_are_refused(official_are):
    with pytest.raises(UsageError, match=r"^found NIH's test list under `train_val_list` and its train_val"):
        make_splits(FIVE, lists("4", "1 2"))


HUNDRED = table(*[(patient, "No Finding") for patient in range(1, 201)])


@pytest.mark.parametrize(("strange", "allowed"), [(1, True), (2, False)])
def test_names_that_are_in_no_row_are_said_and_beyond_one_in_a_hundred_refused(strange, allowed):
    train_val = " ".join(map(str, [*range(500, 500 + strange), *range(1, 101 - strange)]))
    options = lists(train_val, "150 151", validation_fraction=0)
    told = (
        f"memory://splits/train_val.txt: {strange} of its 100 names (the first is '00000500_000.png') are in "
        "no row of the table (whose first is 00000001_000.png)"
    )

    if allowed:
        assert make_splits(HUNDRED, options).warnings == (f"{told}: left out",)
    else:
        with pytest.raises(CxrError) as caught:
            make_splits(HUNDRED, options)
        assert str(caught.value) == (
            f"{told}; give the list of this table, or go on without them with `allow_missing=True`"
        )
    splits = make_splits(HUNDRED, dataclasses.replace(options, allow_missing=True))
    assert splits.warnings == (f"{told}: left out",)
    assert (splits.not_in_table, splits.in_no_list) == (strange, 200 - 102 + strange)


def test_official_lists_go_with_a_part_of_the_table_and_say_what_is_left_out(official_are):
    splits = make_splits(table((1, "Mass"), (4, "Mass")), lists("1 2", "4", validation_fraction=0))

    assert (splits.official, splits.of_image.tolist()) == (True, ["train", "test"])
    assert splits.warnings == (
        "memory://splits/train_val.txt: 1 of its 2 names (the first is '00000002_000.png') are in no row of "
        "the table (whose first is 00000001_000.png): left out",
    )


@pytest.mark.parametrize(
    "written",
    [
        lambda name: f"images/{name}",
        lambda name: f"C:\\nih\\images 1\\{name}",
        lambda name: name.removesuffix(".png"),
        lambda name: name.replace(".png", ".dcm"),
        lambda name: name.upper(),
        lambda name: f'"{name}"',
        lambda name: f"{name},Mass|Edema",
        lambda name: f"{name};1;0",
    ],
    ids=["folder", "Windows", "no ending", "DICOM", "upper case", "quotes", "commas", "semicolons"],
)
def test_images_of_a_list_are_those_of_the_table_however_each_is_written(written):
    names = [f"{patient:08}_000.png" for patient in range(1, 6)]
    some = [written(name) if place % 2 else name for place, name in enumerate(names)]
    options = SplitOptions(
        write("a.txt", "\n".join(some[:3])), write("b.txt", "\r\n".join(some[3:])), write("c.txt", names[1])
    )
    splits = make_splits(FIVE, options)

    assert splits.of_image.tolist() == ["train", "validation", "train", "test", "test"]
    assert (splits.in_no_list, splits.not_in_table, splits.warnings) == (0, 0, ())


def test_an_image_that_two_lists_name_in_two_ways_is_in_both():
    options = SplitOptions(
        write("a.txt", "00000001_000.png"), write("b.txt", "x/00000001_000.dcm\n00000002_000")
    )

    with pytest.raises(CxrError, match=r"found 00000001_000\.dcm in `train_val_list` too"):
        make_splits(FIVE, options)


def test_official_lists_with_folders_before_their_names_are_official(official_are):
    options = SplitOptions(
        write("a.txt", "images/00000001_000.png\n00000002_000.png"), write("b.txt", "x/00000004_000.png")
    )

    assert make_splits(FIVE, options).official


@pytest.mark.parametrize(("length", "shown"), [(80, "x" * 80), (81, "x" * 80 + "…")])
def test_a_strange_name_is_shown_up_to_80_characters(length, shown):
    train_val, test = write("a.txt", "x" * length), write("b.txt", "00000001_000.png")

    with pytest.raises(CxrError, match=rf"the first is '{shown}'\)"):
        make_splits(FIVE, SplitOptions(train_val, test))


def test_a_list_is_the_first_word_of_each_line():
    text = "\ufeffb.png 0 1 0\r\n\r\n  a.png\tMass\n\nb.png\n"

    assert read_list(write("list.txt", text), "test_list") == ["b.png", "a.png"]
    assert read_list(write("list.txt.gz", gzip.compress(text.encode())), "test_list") == ["b.png", "a.png"]


@pytest.mark.parametrize(
    "text",
    [
        "Image Index\na.png\nx y.png\n",
        "Image Index,Finding Labels\na.png,Mass\n\nx y.png,Edema\n",
        '\ufeff"Image Index";"Note"\r\n"a.png";"b.png"\r\n"images/x y.png";""\r\n',
        ",image_id\n0,a.png\n1,x y.png\n",
        "label\tfilename\nb.png\ta.png\nMass\tx y.png\n",
        "a.png 0 1 0\nx y.png 0 0 1\n",
        "a.png,b/a.png\nx y.png\na.png\n",
        "'a.png'\n\"x y.png\"\n",
        "  a.png  \n\tsome folder/x y.png\t0.5\n",
    ],
)
@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode()),
                                  lambda text: text.lstrip("\ufeff").encode("utf-16")])  # fmt: skip
def test_a_list_may_be_a_column_of_a_table_and_its_names_may_hold_spaces(text, pack):
    assert read_list(write("list", pack(text)), "test_list") == ["a.png", "x y.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x.png\na.png,b.png\n",
            ", line 2: found 'a.png' and 'b.png' on one line; a list must hold one name on each line",
        ),
        (
            "00000001_000 00000002_000\n",
            ", line 1: found '00000001_000' and '00000002_000' on one line; a list must hold one name on "
            "each line",
        ),
        (
            "Image Index,x\na.png,1\n,2\n",
            ": found no name in row 2 below the header; complete the row, or remove it",
        ),
        (
            'Image Index,x\na.png,"1\n',
            ", line 2: found what is no CSV (unexpected end of data), below a header; correct the line, or "
            "give one name on each line",
        ),
        ("Image Index\n", ": found no names; `test_list` must hold one 'Image Index' per line"),
        ("<html>", ": found a web page; download the file itself, or correct `test_list`"),
        (
            b"\x89PNG\r\n\x1a\n",
            ": found a PNG image, which `test_list` cannot be; name the right file",
        ),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(text, message):
    url = write("list.txt", text)

    with pytest.raises(CxrError, match=f"^{re.escape(url + message)}$"):
        read_list(url, "test_list")


def test_the_digest_of_a_list_is_that_of_its_sorted_names():
    # printf 'a\nb' | sha256sum
    expected = "7e18f737311b2dc3b2f269dd78396b0351f14fb66efa879f768cb23181883c78"

    assert list_digest(["b", "a"]) == list_digest(["a", "b"]) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_val_list": "a"},
            "found `train_val_list` without `test_list`; give both, or neither for an unofficial split",
        ),
        (
            {"test_list": "a"},
            "found `test_list` without `train_val_list`; give both, or neither for an unofficial split",
        ),
        (
            {"validation_list": "a"},
            "found `validation_list` without `train_val_list` and `test_list`; give all three, or use "
            "`validation_fraction`",
        ),
        (
            {"validation_fraction": 1.0},
            "found `validation_fraction=1.0`; expected a share of at least 0 and below 1",
        ),
        ({"test_fraction": -0.1}, "found `test_fraction=-0.1`; expected a share of at least 0 and below 1"),
        (
            {"test_fraction": float("nan")},
            "found `test_fraction=nan`; expected a share of at least 0 and below 1",
        ),
    ],
)
def test_wrong_options_are_refused_when_they_are_made(settings, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        SplitOptions(**settings)


@pytest.mark.parametrize(
    ("given_lists", "message"),
    [
        (
            ("1 2", "2 3", None),
            "memory://splits/test.txt: found 00000002_000.png in `train_val_list` too; an image must be in "
            "one list only, so remove it from one of the two",
        ),
        (
            ("1 2 3", "2 3 4", None),
            "memory://splits/test.txt: found 00000002_000.png and 1 more in `train_val_list` too; an image "
            "must be in one list only, so remove it from one of the two",
        ),
        (
            ("1 2", "3", "2 3"),
            "memory://splits/validation.txt: found '00000003_000.png', which is not in `train_val_list`; "
            "validation images must come from there",
        ),
        (
            ("8 9", "3", None),
            "memory://splits/train_val.txt: none of its 2 names (the first is '00000008_000.png') is in the "
            "table (whose first is 00000001_000.png); `train_val_list` must hold one 'Image Index' per line",
        ),
        (
            ("8", "9", None),
            "memory://splits/train_val.txt: none of its 1 names (the first is '00000008_000.png') is in the "
            "table (whose first is 00000001_000.png); `train_val_list` must hold one 'Image Index' per line",
        ),
        (
            ("1", "", None),
            "memory://splits/test.txt: found an empty file; download it again, or correct `test_list`",
        ),
    ],
    ids=[
        "in both",
        "several in both",
        "validation outside",
        "strange names",
        "strange names in both",
        "empty",
    ],
)
def test_lists_that_cannot_be_right_are_refused(given_lists, message):
    with pytest.raises(CxrError, match=f"^{re.escape(message)}$"):
        make_splits(FIVE, lists(*given_lists))


def test_a_patient_in_two_lists_is_refused_with_an_image_of_each_side():
    metadata = table((1, "Mass"), (1, "Edema"), (2, "Mass"), (2, "Mass"), (3, "Mass"))
    train_val = write("a.txt", "00000001_000.png\n00000002_000.png\n00000003_000.png")
    test = write("b.txt", "00000001_001.png\n00000002_001.png")
    message = (
        "found patient 1 in two splits: 00000001_000.png in train, 00000001_001.png in test (such patients "
        "in all: 2); a patient must be in one split only, so correct the lists"
    )

    with pytest.raises(CxrError, match=f"^{re.escape(message)}$"):
        make_splits(metadata, SplitOptions(train_val, test, validation_fraction=0))


def test_a_validation_list_that_tears_a_patient_is_refused():
    metadata = table((1, "Mass"), (1, "Edema"), (2, "Mass"))
    train_val = write("a.txt", "00000001_000.png\n00000001_001.png")
    options = SplitOptions(train_val, write("b.txt", "00000002_000.png"), write("c.txt", "00000001_001.png"))

    with pytest.raises(
        CxrError,
        match=r"^found patient 1 in two splits: \w+\.png in train, 00000001_001\.png in validation; ",
    ):
        make_splits(metadata, options)


def as_in(metadata: Metadata, **split_lists: str) -> Splits:
    """Takes the splits of a dataset whose lists are given as names without their end: "00000001_000"."""
    named = {split: [f"{name}.png" for name in names.split()] for split, names in split_lists.items()}
    settings = {"dataset": "ds", "dataset_id": "1f", "origin": "official NIH lists", "official": True}
    return take_splits(metadata, named, **settings)


def test_splits_are_taken_from_another_datasets_lists():
    splits = as_in(FIVE, train="00000001_000 00000004_000", validation="00000002_000", test="00000003_000")

    assert splits.of_image.tolist() == ["train", "validation", "test", "train", ""]
    assert splits.origin == "as in dataset 1f (official NIH lists)"
    assert splits.official
    assert (splits.in_no_list, splits.not_in_table, splits.warnings) == (1, 0, ())
    assert splits.list_digests == {
        "train": list_digest(["00000004_000.png", "00000001_000.png"]),
        "validation": list_digest(["00000002_000.png"]),
        "test": list_digest(["00000003_000.png"]),
    }


def test_an_image_that_the_other_dataset_does_not_name_goes_with_its_patient_and_is_counted():
    metadata = table((1, "Mass"), (1, "Edema"), (2, "Mass"), (1, "Mass"), (3, "Mass"))
    splits = as_in(metadata, train="00000002_000 00000009_000", test="00000001_000")

    assert splits.of_image.tolist() == ["test", "test", "train", "test", ""]
    assert splits.warnings == (
        "ds does not name 2 images of its patients (the first is 00000001_001.png): each is in the split of "
        "its patient",
        "ds: 1 of its 3 images (the first is '00000009_000.png') are in no row of the table (whose first is "
        "00000001_000.png): left out",
    )
    assert not splits.official  # the test split has more images than the official one
    assert (splits.in_no_list, splits.not_in_table) == (1, 1)


def test_images_of_the_other_dataset_are_found_by_other_endings():
    metadata = dataclasses.replace(FIVE, table=FIVE.table.assign(image_id=[f"{i}.dcm" for i in "abcde"]))

    assert as_in(metadata, train="a b", test="c").of_image.tolist() == ["train", "train", "test", "", ""]


def test_an_image_of_the_very_name_goes_before_one_of_another_ending():
    metadata = dataclasses.replace(FIVE, table=FIVE.table.assign(image_id=[*"wxyz", "00000001_000.png"]))
    named = {"train": ["00000001_000.jpg", "00000001_000.png"], "test": ["00000001_000.dcm"]}
    settings = {"dataset": "ds", "dataset_id": "1f", "origin": "lists", "official": False}

    assert take_splits(metadata, named, **settings).of_image.tolist() == ["", "", "", "", "train"]


def test_a_dataset_of_other_images_gives_no_splits():
    message = (
        "ds: none of the 2 images in its lists is in the table (whose first is 00000001_000.png); "
        "`splits_of` must name a dataset of the same images"
    )

    with pytest.raises(CxrError, match=f"^{re.escape(message)}$"):
        as_in(FIVE, train="00000008_000", test="00000009_000")


def test_a_dataset_of_other_patients_gives_no_splits():
    metadata = table((1, "Mass"), (1, "Edema"))
    message = (
        "found patient 1 in two splits: 00000001_000.png in train, 00000001_001.png in test; a patient must "
        "be in one split only, so ds has other patients than the table: name another dataset"
    )

    with pytest.raises(CxrError, match=f"^{re.escape(message)}$"):
        as_in(metadata, train="00000001_000", test="00000001_001")


def test_a_missing_list_is_a_wrong_use_and_names_its_option():
    options = SplitOptions(write("a.txt", "00000001_000.png"), "memory://splits/absent.txt")

    with pytest.raises(
        UsageError, match=r"absent\.txt: found no such file; `test_list` must name an existing file$"
    ):
        make_splits(FIVE, options)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x1f\x8b\x08", b"\xef\xbb\xbf", b"\x1c"])
def test_a_list_that_is_no_text_is_refused(content):
    with pytest.raises(CxrError, match=r"^memory://splits/bad\.txt: found "):
        read_list(write("bad.txt", content), "test_list")


def test_splits_and_tasks_are_imported_without_pandas():
    code = "import sys, cxr_records.splits, cxr_records.tasks; sys.exit('pandas' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def official(nih) -> SplitOptions:
    return SplitOptions(str(nih / "train_val_list.txt.gz"), str(nih / "test_list.txt.gz"))


def test_the_official_lists_are_known_and_give_the_published_counts(nih_v2020, official):
    splits = make_splits(nih_v2020, dataclasses.replace(official, validation_fraction=0))
    patients = nih_v2020.table["patient_id"].to_numpy()
    train_val, test = (splits.of_image == split for split in (TRAIN, TEST))
    in_train_val, in_test = (count_findings(nih_v2020.findings[rows]) for rows in (train_val, test))

    assert (splits.official, splits.origin) == (True, "official NIH lists")
    assert (splits.in_no_list, splits.not_in_table) == (0, 0)
    assert (train_val.sum(), test.sum()) == (86_524, 25_596)
    assert (len(set(patients[train_val])), len(set(patients[test]))) == (28_008, 2_797)
    assert {
        name: (in_train_val[name], in_test[name])
        for name in ("Hernia", "Pneumonia", "Infiltration", "No Finding")
    } == {
        "Hernia": (141, 86),
        "Pneumonia": (876, 555),
        "Infiltration": (13_782, 6_112),
        "No Finding": (50_500, 9_861),
    }


def prevalence_ratios(metadata: Metadata, of_image: np.ndarray, split: str) -> dict[str, float]:
    """Returns, for each finding and No Finding, its share of the split over its share of train."""
    there, train = (count_findings(metadata.findings[of_image == name]) for name in (split, TRAIN))
    return {
        name: (there[name] / (of_image == split).sum()) / (train[name] / (of_image == TRAIN).sum())
        for name in there
    }


def test_every_finding_is_as_frequent_in_the_real_validation_split_as_in_train(nih_v2020, official):
    splits = make_splits(nih_v2020, official)
    ratios = prevalence_ratios(nih_v2020, splits.of_image, VALIDATION)
    validation = splits.of_image == VALIDATION
    patients = nih_v2020.table["patient_id"].to_numpy()
    by_view = [
        (nih_v2020.table["view"][splits.of_image == split] == "AP").mean() for split in (TRAIN, VALIDATION)
    ]

    assert len(ratios) == 15
    assert all(0.99 < ratio < 1.01 for name, ratio in ratios.items() if name != "Hernia"), ratios
    in_validation = count_findings(nih_v2020.findings[validation])["Hernia"]
    assert in_validation == 18  # of 141 images: one less or more is 6%
    assert validation.sum() == 10_815
    assert len(set(patients[validation])) == pytest.approx(0.125 * 28_008, rel=0.04)
    assert by_view[0] == pytest.approx(by_view[1], abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_181_corrected_labels_move_less_than_a_hundredth_of_the_real_validation_split(
    nih_v2020, official, seed
):
    splits = make_splits(nih_v2020, dataclasses.replace(official, seed=seed))
    moved = []
    for trial in range(5):
        train_val = np.flatnonzero(splits.of_image != TEST)
        findings = nih_v2020.findings.copy()
        findings[train_val] = relabelled(findings[train_val], 181, trial)
        changed = make_splits(
            dataclasses.replace(nih_v2020, findings=findings), dataclasses.replace(official, seed=seed)
        )
        moved.append(int((changed.of_image != splits.of_image).sum()))

    assert max(moved) < 0.01 * (splits.of_image == VALIDATION).sum(), moved


def test_the_181_labels_corrected_in_2020_move_few_images_of_an_unofficial_split(nih, nih_v2020):
    old = read_metadata(str(nih / "Data_Entry_2017.csv.gz"))
    assert (old.findings != nih_v2020.findings).any(axis=1).sum() == 181
    before, after = (make_splits(metadata, SplitOptions()).of_image for metadata in (old, nih_v2020))

    assert (before != after).sum() < 0.01 * (before == VALIDATION).sum()


def test_the_real_validation_split_never_changes(nih_v2020, official):
    """A changed cut makes results incomparable: change this digest only with a line in the changelog."""
    splits = make_splits(nih_v2020, official)
    cut = nih_v2020.table["image_id"][splits.of_image == VALIDATION].tolist()

    assert list_digest(cut) == "ea633a71cd7fde3660d1efa3320ca7eaab084daa2611dab9ea21194b28cf11c5"


def test_the_tables_of_2017_and_2020_have_the_same_official_splits(nih, nih_v2020, official):
    old = read_metadata(str(nih / "Data_Entry_2017.csv.gz"))

    assert (make_splits(old, official).of_image == make_splits(nih_v2020, official).of_image).all()


def test_the_real_table_without_lists_is_cut_in_proportion_by_patient(nih_v2020):
    splits = make_splits(nih_v2020, SplitOptions())
    shares = {split: (splits.of_image == split).mean() for split in SPLITS}

    assert shares == pytest.approx({TRAIN: 0.7, VALIDATION: 0.1, TEST: 0.2}, abs=0.0005)
    for split in (VALIDATION, TEST):
        ratios = prevalence_ratios(nih_v2020, splits.of_image, split)
        assert all(0.97 < ratio < 1.03 for ratio in ratios.values()), ratios


def test_the_published_validation_list_is_taken_as_it_is(nih, nih_v2020, official):
    options = dataclasses.replace(official, validation_list=str(nih / "patient_val_val.txt.gz"))
    splits = make_splits(nih_v2020, options)

    assert [(splits.of_image == split).sum() for split in SPLITS] == [75_312, 11_212, 25_596]
    assert splits.official
    assert splits.origin == "official NIH lists; validation from a list given"
    assert count_findings(nih_v2020.findings[splits.of_image == VALIDATION])["Hernia"] == 15


def test_the_kaggle_sample_with_the_official_lists_is_official(nih, official):
    splits = make_splits(read_metadata(str(nih / "sample_labels.csv.gz")), official)

    assert splits.official
    assert (splits.in_no_list, splits.not_in_table) == (0, 112_120 - 5_606)
    assert set(splits.of_image) == set(SPLITS)


def test_a_part_of_the_real_table_without_test_images_is_still_official(official):
    splits = make_splits(table((1, "Cardiomegaly"), (2, "No Finding")), official)

    assert splits.official
    assert splits.of_image.tolist() == ["train", "train"]


def test_the_official_lists_with_another_hospitals_table_are_refused(official):
    with pytest.raises(
        CxrError, match=r"none of its 86,524 names .* \(whose first is 00099999_000\.png\); `train"
    ):
        make_splits(table((99_999, "Mass")), official)


def test_a_real_table_given_as_a_list_is_refused(nih, nih_v2020, official):
    options = dataclasses.replace(official, test_list=str(nih / "Data_Entry_2017.csv.gz"))

    with pytest.raises(CxrError, match=r"found 00000001_000\.png and 86,523 more in `train_val_list` too"):
        make_splits(nih_v2020, options)


def test_a_fraction_that_a_list_decides_is_said_to_have_no_effect():
    three = {"validation": "2", "test_fraction": 0.3, "validation_fraction": 0.5}

    assert make_splits(FIVE, lists("1 2 3 4", "5", test_fraction=0.3)).warnings == (
        "test_fraction 0.3 has no effect: the lists say which images test the model",
    )
    assert make_splits(FIVE, lists("1 2 3 4", "5", **three)).warnings == (
        "test_fraction 0.3 has no effect: the lists say which images test the model",
        "validation_fraction 0.5 has no effect: a list says which images validate it",
    )
    assert make_splits(FIVE, lists("1 2 3 4", "5", validation_fraction=0.5)).warnings == ()
