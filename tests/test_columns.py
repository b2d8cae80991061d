import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cxr_records import columns
from cxr_records.columns import chunks, equals, from_hex, known, rows_of, rows_of_bytes, to_hex, whole_bytes
from cxr_records.seeding import keyed_hash, keyed_hashes

names = st.sampled_from(["", "a", "b", "ä", "a.png", "\N{SNOWMAN}"])


@given(st.integers(0, 50), st.integers(1, 9))
def test_chunks_cover_all_rows_in_order(count, size):
    parts = [range(count)[part] for part in chunks(count, size)]
    assert [row for part in parts for row in part] == list(range(count))
    assert all(0 < len(part) <= size for part in parts)


@given(st.lists(names, max_size=20), st.lists(names, max_size=20))
def test_the_row_of_a_name_is_the_only_one_that_holds_it(wanted, table):
    expected = [table.index(name) if table.count(name) == 1 else -1 for name in wanted]
    assert rows_of(pa.array(wanted, pa.string()), pa.array(table, pa.string())).tolist() == expected


def test_rows_of_many_names_are_found_a_part_at_a_time(monkeypatch):
    parts = []
    monkeypatch.setattr(columns, "chunks", lambda count, size: parts.append(size) or chunks(count, 7))
    table = pa.array([f"{number}.png" for number in range(40)])
    order = np.random.default_rng(0).permutation(40)
    assert rows_of(table.take(pa.array(order)), table).tolist() == order.tolist()
    assert parts == [1 << 16]


@given(st.lists(st.binary(min_size=4, max_size=4), max_size=9))
def test_digests_are_the_same_as_text_and_as_bytes(digests):
    as_bytes = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 4)
    assert to_hex(as_bytes).to_pylist() == [digest.hex() for digest in digests]
    assert (from_hex(to_hex(as_bytes), 4) == as_bytes).all()
    assert whole_bytes(as_bytes).to_pylist() == digests
    assert (rows_of_bytes(whole_bytes(as_bytes)) == as_bytes).all()
    assert (rows_of_bytes(whole_bytes(as_bytes)[1:]) == as_bytes[1:]).all()


@given(st.lists(st.sampled_from(["ok", "rejected", None]), max_size=9))
def test_a_column_with_gaps_equals_a_text_where_it_has_it(values):
    for column in (pa.array(values, pa.string()), pa.array(values, pa.string()).dictionary_encode()):
        assert equals(column, "ok").tolist() == [value == "ok" for value in values]
        assert known(column).tolist() == [value is not None for value in values]


@given(st.integers(0, 2**64), st.lists(st.tuples(names, st.integers(0, 99)), max_size=9))
def test_hashes_of_a_column_are_those_of_its_rows(seed, rows):
    texts, numbers = (
        pa.array([text for text, _ in rows], pa.string()),
        pa.array([n for _, n in rows], pa.int32()),
    )
    expected = [keyed_hash(seed, "order", text, number) for text, number in rows]
    assert keyed_hashes(seed, "order", texts, numbers).tolist() == expected
