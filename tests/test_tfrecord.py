import importlib
import io

import pytest
from conftest import frame
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.tfrecord import OVERHEAD_BYTES, RecordError, masked_crc, read_records, unframe

# As tf.io.TFRecordWriter of TensorFlow 2.21 wrote them.
GOLDEN = {
    b"": "000000000000000029039807d8ea82a2",
    b"abc": "0300000000000000b099490e6162636e57f121",
    bytes(range(20)): "14000000000000005e3d2915000102030405060708090a0b0c0d0e0f10111213cb83507a",
}

payloads = st.binary(max_size=300)


@pytest.mark.parametrize("data", GOLDEN, ids=["empty", "text", "binary"])
def test_a_framed_record_is_these_bytes(data):
    assert frame(data).hex() == GOLDEN[data]


def test_the_masked_checksum_of_a_known_crc_is_as_tensorflow_documents_it():
    # CRC-32C("123456789") is 0xE3069283 (RFC 3720); masked: rotated right by 15 bits, plus 0xA282EAD8.
    crc = 0xE3069283
    assert masked_crc(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


@given(payloads)
def test_what_is_framed_is_unframed(data):
    record = frame(data)
    assert len(record) == len(data) + OVERHEAD_BYTES
    assert unframe(record) == data


@given(st.lists(payloads, max_size=8))
def test_reading_a_file_gives_every_record_and_where_it_begins(records):
    file = b"".join(map(frame, records))
    read = list(read_records(io.BytesIO(file)))
    assert [data for _, data in read] == records
    for offset, data in read:
        assert unframe(file[offset : offset + len(data) + OVERHEAD_BYTES], offset) == data


@given(payloads, st.data())
def test_any_single_flipped_byte_of_a_record_is_found(data, draw):
    record = bytearray(frame(data))
    record[draw.draw(st.integers(0, len(record) - 1))] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(RecordError) as of_one:
        unframe(bytes(record), 5)
    assert of_one.value.offset == 5
    with pytest.raises(RecordError) as of_file:
        list(read_records(io.BytesIO(frame(b"before") + record)))
    assert of_file.value.offset == len(frame(b"before"))


def test_every_truncation_is_found_at_the_record_that_it_cuts():
    records = [b"first", b"", b"x" * 40]
    file = b"".join(map(frame, records))
    starts = [0, 21, 37, len(file)]
    for end in range(len(file)):
        read = []
        if end in starts:
            assert len(list(read_records(io.BytesIO(file[:end])))) == starts.index(end)
            continue
        with pytest.raises(RecordError, match="cut short") as caught:
            read.extend(read_records(io.BytesIO(file[:end])))
        whole = sum(start <= end for start in starts) - 1
        assert read == list(zip(starts, records, strict=False))[:whole]
        assert caught.value.offset == starts[whole]


def test_every_truncation_of_one_record_is_found():
    record = frame(b"data of a record")
    for end in range(len(record)):
        with pytest.raises(RecordError, match=r"^cut short|its header says 32$") as caught:
            unframe(record[:end], 7)
        assert caught.value.offset == 7


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r[:7], "cut short: 7 bytes, a record has at least 16"),
        (lambda r: r[:-1], "18 bytes, its header says 19"),
        (lambda r: r + b"x", "20 bytes, its header says 19"),
        (lambda r: b"\4" + r[1:], "the checksum of the record's length does not match"),
        (lambda r: r.replace(b"abc", b"abd"), "the checksum of the record's data does not match"),
    ],
    ids=["header", "data", "longer", "length", "flipped"],
)
def test_a_damaged_record_is_told_in_these_words(damage, message):
    with pytest.raises(RecordError) as caught:
        unframe(damage(frame(b"abc")))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("kept", "message"),
    [(5, "cut short: 5 bytes of a 12-byte header"), (18, "cut short: 6 bytes, 7 expected")],
)
def test_a_cut_file_is_told_in_these_words(kept, message):
    with pytest.raises(RecordError) as caught:
        list(read_records(io.BytesIO(frame(b"abc")[:kept])))
    assert str(caught.value) == message


@given(payloads)
def test_junk_is_a_record_error_and_nothing_else(junk):
    for read in (unframe, lambda data: list(read_records(io.BytesIO(data)))):
        try:
            read(junk)
        except RecordError:
            pass
        else:
            # The empty file is a file of no records.
            assert not junk


def test_tensorflow_writes_the_same_file_and_reads_ours(tmp_path):
    tf = importlib.import_module("tensorflow")
    records = [b"", b"a", bytes(range(256)) * 30, b"\0" * 5000]
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    with tf.io.TFRecordWriter(str(theirs)) as writer:
        for record in records:
            writer.write(record)
    ours.write_bytes(b"".join(map(frame, records)))
    assert ours.read_bytes() == theirs.read_bytes()
    assert [r.numpy() for r in tf.data.TFRecordDataset(str(ours))] == records


def test_a_length_that_no_memory_holds_is_a_record_cut_short():
    header = (2**64 - 1).to_bytes(8, "little")
    file = io.BytesIO(header + masked_crc(header).to_bytes(4, "little") + b"little")

    with pytest.raises(RecordError) as error:
        list(read_records(file))

    assert str(error.value) == f"cut short: 6 bytes, {2**64 + 3} expected"
