import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.findings import FINDINGS, NO_FINDING, format_findings, nearest, parse_findings

vectors = st.lists(st.integers(0, 1), min_size=14, max_size=14).map(lambda bits: np.array(bits, np.uint8))


def test_findings_stand_in_the_order_of_chexnet():
    assert FINDINGS == (
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Fibrosis",
        "Pleural_Thickening",
        "Hernia",
    )


@given(vectors)
def test_every_set_of_findings_survives_formatting_and_parsing(vector):
    parsed = parse_findings(format_findings(vector))

    assert parsed.dtype == np.uint8
    assert parsed.tolist() == vector.tolist()


@given(st.permutations(FINDINGS), st.integers(1, 14))
def test_the_order_of_the_names_makes_no_difference(names, count):
    expected = sorted(names[:count], key=FINDINGS.index)

    assert format_findings(parse_findings("|".join(names[:count]))) == "|".join(expected)


def test_no_finding_is_all_zeros_both_ways():
    assert parse_findings(NO_FINDING).tolist() == [0] * 14
    assert format_findings(np.zeros(14, np.uint8)) == NO_FINDING


def test_spaces_around_names_and_repeated_names_do_no_harm():
    assert format_findings(parse_findings(" Mass | Nodule|Mass")) == "Mass|Nodule"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Infiltrate", "unknown finding 'Infiltrate' (did you mean Infiltration?)"),
        ("Mass|pneumothorax", "unknown finding 'pneumothorax' (did you mean Pneumothorax?)"),
        ("Pleural Thickening", "unknown finding 'Pleural Thickening' (did you mean Pleural_Thickening?)"),
        ("no finding", "unknown finding 'no finding' (did you mean No Finding?)"),
        ("xyz", "unknown finding 'xyz'"),
        ("", "empty finding in ''; an image without findings is 'No Finding'"),
        ("Mass|", "empty finding in 'Mass|'; an image without findings is 'No Finding'"),
        ("Mass|No Finding", "'Mass|No Finding' names findings and 'No Finding' at once"),
    ],
)
def test_a_wrong_label_string_is_refused_with_its_reason(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_findings(text)


@given(st.text())
def test_any_text_is_parsed_or_refused_with_value_error(text):
    try:
        vector = parse_findings(text)
    except ValueError:
        return
    assert set(vector.tolist()) <= {0, 1}


def test_nothing_is_suggested_for_a_name_like_no_other():
    assert nearest("Fracture of rib") == ""
    assert nearest("Oedema") == " (did you mean Edema?)"
