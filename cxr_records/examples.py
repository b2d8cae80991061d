"""What a record holds: one table of features drives writing, reading, checking and the TFDS metadata.

A record is a serialized tf.train.Example. The message is declared here at run time under a package name
of our own, so that workers need no TensorFlow and a process that imports TensorFlow sees no name twice.
Serialization is deterministic: features follow each other in the order of their names.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

Value = bytes | str | int | Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature of a record.

    Attributes:
        name: its key in the Example.
        kind: "bytes", "text" (UTF-8 in a bytes list) or "int64".
        shape: () for one value, `PER_FINDING` for one for each finding of the set.
        meaning: one line for people.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    meaning: str

    @property
    def num_values(self) -> int:
        """How many values the feature's list holds."""
        return int(np.prod(self.shape, dtype=int))


PER_FINDING = (-1,)

# `label` is a single number in binary and multiclass records; record_features() sets the shapes.
FEATURES = (
    Feature("image", "bytes", (), "raw uint8 pixels row by row, or PNG, or JPEG: the dataset's codec"),
    Feature("label", "int64", PER_FINDING, "0/1, class index, or 14 zeros and ones: the task's label"),
    Feature("findings", "int64", PER_FINDING, "all 14 findings as zeros and ones, whatever the task"),
    Feature("image_id", "text", (), "file name in the NIH table, such as 00000001_000.png"),
    Feature("patient_id", "int64", (), "number of the patient; a patient is in one split only"),
    Feature("view", "text", (), "PA or AP; empty where unknown"),
    Feature("sex", "text", (), "M or F; empty where unknown"),
    Feature("age_years", "int64", (), "age in years; -1 where unknown"),
    Feature("copy", "int64", (), "0 for the original, 1, 2, ... for augmented copies of it"),
    Feature("augmentation", "text", (), "JSON of function and parameters; empty for the original"),
)


def record_features(label_shape: tuple[int, ...], num_findings: int) -> tuple[Feature, ...]:
    """Returns the table with the shapes of a dataset.

    Args:
        label_shape: of its task's labels.
        num_findings: of its set of images.
    """
    shapes = {"label": label_shape, "findings": (num_findings,)}
    return tuple(dataclasses.replace(f, shape=shapes.get(f.name, f.shape)) for f in FEATURES)


def encode_example(values: Mapping[str, Value]) -> bytes:
    """Serializes a record: bytes and str become a bytes list, ints and int arrays an int64 list.

    Args:
        values: by name; `image` must be among them.
    """
    return b"".join(example_parts(values))


def example_parts(values: Mapping[str, Value]) -> tuple[bytes, bytes, bytes]:
    """Returns what `encode_example` does in three parts: what is before the image's bytes, they, the rest.

    The image, nearly all of a record, is not copied. The parts are spliced by protobuf's encoding: a field
    of bytes is a tag, a length and the bytes; map entries follow each other in the order of their keys.
    """
    image = values["image"]
    if not isinstance(image, bytes):
        raise TypeError(f"image is {type(image).__name__}, expected bytes")
    before = _features({name: value for name, value in values.items() if name < "image"})
    after = _features({name: value for name, value in values.items() if name > "image"})
    # features.feature["image"].bytes_list.value: four messages, one in the other, around the bytes.
    opening = _field(1, len(image))
    opening = _field(1, len(opening) + len(image)) + opening
    opening = _KEY_IMAGE + _field(2, len(opening) + len(image)) + opening
    opening = _field(1, len(opening) + len(image)) + opening
    head = before.SerializeToString(deterministic=True) + opening
    tail = after.SerializeToString(deterministic=True)
    return _field(1, len(head) + len(image) + len(tail)) + head, image, tail


def _features(values: Mapping[str, Value]) -> Any:  # a message made at run time has no type
    features: Any = _Features()
    for name, value in values.items():
        feature = features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, str):
            feature.bytes_list.value.append(value.encode())
        elif isinstance(value, list):
            feature.int64_list.value.extend(value)
        elif isinstance(value, int | np.integer):
            feature.int64_list.value.append(int(value))
        else:
            feature.int64_list.value.extend(np.asarray(value).tolist())
    return features


def _field(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field (protobuf encoding, wire type 2)."""
    encoded = bytearray([number << 3 | 2])
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


_KEY_IMAGE = _field(1, len("image")) + b"image"


def decode_example(data: bytes) -> dict[str, list[Any]]:
    """Parses a serialized Example into a list of values for each feature: bytes or ints in ours.

    Raises:
        ValueError: the bytes are no Example.
    """
    example = _Example()
    try:
        example.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"no tf.train.Example: {error}") from error
    values = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values[name] = list(getattr(feature, kind).value) if kind else []
    return values


def record_problems(
    values: Mapping[str, Sequence[bytes] | Sequence[int]], features: Sequence[Feature]
) -> list[str]:
    """Returns what is wrong with a decoded record by the table: missing, unknown, mistyped, miscounted."""
    problems = []
    for feature in features:
        given = values.get(feature.name)
        if given is None:
            problems.append(f"feature {feature.name!r} is missing")
            continue
        if len(given) != feature.num_values:
            problems.append(
                f"feature {feature.name!r} has {len(given)} values, expected {feature.num_values}"
            )
        expected = int if feature.kind == "int64" else bytes
        if not all(isinstance(value, expected) for value in given):
            problems.append(f"feature {feature.name!r} is not {feature.kind}")
    unknown = sorted(set(values) - {feature.name for feature in features})
    problems += [f"feature {name!r} is unknown" for name in unknown]
    return problems


def _declare_messages() -> tuple[Any, Any]:
    """Declares tf.train.Example and tf.train.Features (tensorflow/core/example/*.proto)."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="cxr_records/example.proto", package="cxr_records", syntax="proto3"
    )

    def add(
        message: descriptor_pb2.DescriptorProto,
        name: str,
        number: int,
        kind: "descriptor_pb2.FieldDescriptorProto.Type.ValueType",
        type_name: str | None = None,
        label: "descriptor_pb2.FieldDescriptorProto.Label.ValueType" = field.LABEL_OPTIONAL,
        oneof: int | None = None,
    ) -> None:
        made = message.field.add(name=name, number=number, type=kind, label=label)
        if type_name:
            made.type_name = f".cxr_records.{type_name}"
        if oneof is not None:
            made.oneof_index = oneof

    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        add(file.message_type.add(name=name), "value", 1, kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        type_name = name.title().replace("_", "")
        add(feature, name, number, field.TYPE_MESSAGE, type_name, oneof=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, "Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, "Features.FeatureEntry", field.LABEL_REPEATED)
    add(file.message_type.add(name="Example"), "features", 1, field.TYPE_MESSAGE, "Features")

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    example, features_class = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"cxr_records.{name}"))
        for name in ("Example", "Features")
    )
    return example, features_class


_Example, _Features = _declare_messages()
