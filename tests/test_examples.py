import contextlib
import dataclasses
import importlib

import numpy as np
import pytest
from google.protobuf.internal import encoder
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.examples import (
    FEATURES,
    Feature,
    decode_example,
    encode_example,
    example_parts,
    record_features,
    record_problems,
)

NIH_FEATURES = record_features((14,), 14)  # of a multilabel task
RECORD = {
    "image": bytes(range(256)),
    "label": np.array([0, 1] * 7, np.uint8),
    "findings": np.array([0, 1] * 7, np.uint8),
    "image_id": "00000001_000.png",
    "patient_id": 1,
    "view": "PA",
    "sex": "F",
    "age_years": -1,
    "copy": 2,
    "augmentation": '{"function": "rotate", "degrees": -3.5}',
}

int64s = st.integers(-(2**63), 2**63 - 1)
values = st.one_of(st.binary(max_size=50), st.text(max_size=20), int64s, st.lists(int64s, max_size=20))
records = st.builds(
    lambda rest, image: {**rest, "image": image},
    # Names of one length: Python's protobuf writes a name before its own beginning ("00" before "0").
    st.dictionaries(st.text(min_size=4, max_size=4), values, max_size=12),
    st.binary(max_size=300),
)


def as_lists(record):
    """What `decode_example` gives for a record: every value in a list, text as UTF-8."""
    decoded = {}
    for name, value in record.items():
        value = value.encode() if isinstance(value, str) else value
        decoded[name] = [value] if isinstance(value, bytes | int) else [int(v) for v in value]
    return decoded


@pytest.fixture(scope="module")
def tf():
    return importlib.import_module("tensorflow")


def tensorflow_features(tf, record):
    features = {}
    for name, value in as_lists(record).items():
        if value and isinstance(value[0], bytes):
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        else:
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=value))
    return features


def test_a_small_record_is_these_bytes():
    # As protobuf's protoc --encode=tensorflow.Example writes it, with the map in the order of its keys.
    golden = (
        "0a350a140a0161120f1a0d0a0b01ffffffffffffffffff010a0b0a016212060a040a02c3a9"
        "0a100a05696d61676512070a050a0378797a"
    )
    assert encode_example({"image": b"xyz", "b": "é", "a": [1, -1]}).hex() == golden


def test_the_order_in_which_values_are_given_changes_no_byte():
    assert encode_example(dict(reversed(RECORD.items()))) == encode_example(RECORD)


def test_a_record_is_what_tensorflow_writes_of_each_feature_in_the_order_of_the_names(tf):
    @given(records)
    def check(record):
        features = tensorflow_features(tf, record)
        entries = (tf.train.Features(feature={name: features[name]}) for name in sorted(features))
        body = b"".join(entry.SerializeToString() for entry in entries)
        assert encode_example(record) == b"\n" + encoder._VarintBytes(len(body)) + body

    check()


def test_tensorflow_parses_any_record(tf):
    @given(records)
    def check(record):
        expected = tf.train.Example(features=tf.train.Features(feature=tensorflow_features(tf, record)))
        assert tf.train.Example.FromString(encode_example(record)) == expected

    check()


@given(records)
def test_the_parts_of_a_record_hold_the_image_itself(record):
    before, image, after = example_parts(record)
    assert image is record["image"]
    assert before + image + after == encode_example(record)


def test_tensorflow_parses_a_record_by_the_table(tf):
    specs = {
        f.name: tf.io.FixedLenFeature(f.shape, tf.int64 if f.kind == "int64" else tf.string)
        for f in NIH_FEATURES
    }
    parsed = tf.io.parse_single_example(encode_example(RECORD), specs)
    for name, value in as_lists(RECORD).items():
        assert np.ravel(parsed[name]).tolist() == value


@given(records)
def test_what_is_encoded_is_decoded(record):
    assert decode_example(encode_example(record)) == as_lists(record)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_integers_of_any_width_are_the_same_bytes(kind):
    of_array = encode_example({"image": b"", "a": np.array([0, 1, 1], kind), "b": kind(1)})
    assert of_array == encode_example({"image": b"", "a": [0, 1, 1], "b": 1})


@pytest.mark.parametrize("value", [2**63, [2**63], [0.5], np.array([0.5])], ids=repr)
def test_a_number_that_is_no_int64_is_refused_and_not_rounded(value):
    with pytest.raises((ValueError, TypeError)):
        encode_example({"image": b"", "a": value})


@given(st.one_of(st.binary(max_size=60), st.data()))
def test_junk_is_a_value_error_and_nothing_else(junk):
    if not isinstance(junk, bytes):
        whole = bytearray(encode_example(RECORD))
        for _ in range(junk.draw(st.integers(1, 4))):
            whole[junk.draw(st.integers(0, len(whole) - 1))] = junk.draw(st.integers(0, 255))
        junk = bytes(whole[: junk.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(ValueError):
        decode_example(junk)


def test_the_table_is_that_of_the_design():
    assert [(f.name, f.kind, f.shape) for f in NIH_FEATURES] == [
        ("image", "bytes", ()),
        ("label", "int64", (14,)),
        ("findings", "int64", (14,)),
        ("image_id", "text", ()),
        ("patient_id", "int64", ()),
        ("view", "text", ()),
        ("sex", "text", ()),
        ("age_years", "int64", ()),
        ("copy", "int64", ()),
        ("augmentation", "text", ()),
    ]
    assert all(f.meaning for f in FEATURES)


def test_the_shapes_are_those_of_the_task_and_of_the_set():
    shapes = {feature.name: feature.shape for feature in record_features((), 3)}

    assert shapes == {feature.name: () for feature in FEATURES} | {"findings": (3,)}
    assert [f.shape for f in record_features((3,), 3) if f.name in ("label", "findings")] == [(3,), (3,)]


@pytest.mark.parametrize(("shape", "count"), [((), 1), ((14,), 14), ((2, 3), 6), ((0,), 0)])
def test_a_feature_holds_as_many_values_as_its_shape_says(shape, count):
    assert dataclasses.replace(FEATURES[0], shape=shape).num_values == count


def test_a_right_record_has_no_problems():
    assert record_problems(decode_example(encode_example(RECORD)), NIH_FEATURES) == []


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"view": None}, ["feature 'view' is missing"]),
        ({"label": 1}, ["feature 'label' has 1 values, expected 14"]),
        ({"label": []}, ["feature 'label' has 0 values, expected 14"]),
        ({"age_years": [1, 2]}, ["feature 'age_years' has 2 values, expected 1"]),
        ({"image": 3}, ["feature 'image' is not bytes"]),
        ({"sex": 3}, ["feature 'sex' is not text"]),
        ({"copy": "1"}, ["feature 'copy' is not int64"]),
        ({"zzz": 1, "mask": 1}, ["feature 'mask' is unknown", "feature 'zzz' is unknown"]),
        (
            {"label": "x", "sex": None, "more": 0},
            [
                "feature 'label' has 1 values, expected 14",
                "feature 'label' is not int64",
                "feature 'sex' is missing",
                "feature 'more' is unknown",
            ],
        ),
    ],
    ids=["missing", "short", "empty", "long", "image", "text", "int64", "unknown", "several"],
)
def test_a_wrong_record_is_told_in_these_words(change, problems):
    record = {name: value for name, value in {**RECORD, **change}.items() if value is not None}
    assert record_problems(as_lists(record), NIH_FEATURES) == problems


def test_a_feature_of_floats_is_found(tf):
    floats = tf.train.Feature(float_list=tf.train.FloatList(value=[1.0]))
    example = tf.train.Example(features=tf.train.Features(feature={"copy": floats}))
    found = decode_example(example.SerializeToString())
    assert found == {"copy": [1.0]}
    assert record_problems(found, [Feature("copy", "int64", (), "")]) == ["feature 'copy' is not int64"]


@pytest.mark.parametrize("image", ["pixels", 7, np.zeros(4, np.uint8)])
def test_an_image_that_is_no_bytes_is_refused(image):
    with pytest.raises(TypeError, match=r"^image is (str|int|ndarray), expected bytes$"):
        encode_example({"image": image})
