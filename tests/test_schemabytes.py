"""Schemas through their bytes: exactly the same, readable by any Arrow, and damage is said."""

from __future__ import annotations

import pyarrow as pa
import pytest

from shmstore.sameness import same_type, same_types
from shmstore.schemabytes import from_bytes, to_bytes, travelling

KEY = b"shmstore:encoded-values"
NOTED = {"unit": "m", "": "empty"}
UUID, TENSOR = pa.uuid(), pa.fixed_shape_tensor(pa.float32(), (2, 3), dim_names=["y", "x"])
OPAQUE = pa.opaque(pa.list_(pa.int8()), "t", "v")
STRUCT = pa.struct(
    [
        pa.field("u", UUID, nullable=False, metadata=NOTED),
        pa.field("r", pa.run_end_encoded(pa.int16(), pa.list_(TENSOR))),
        pa.field("d", pa.dictionary(pa.int64(), pa.string(), ordered=True)),
        pa.field("i", pa.int8()),
    ]
)
TYPES = {
    "int": pa.int8(),
    "uuid": UUID,
    "tensor": TENSOR,
    "opaque": OPAQUE,
    "struct": STRUCT,
    "opaque over dictionary": pa.opaque(pa.dictionary(pa.int8(), STRUCT), "t", "v"),
    "opaque over run ends": pa.opaque(pa.run_end_encoded(pa.int16(), UUID), "t", "v"),
    "dictionary of text": pa.dictionary(pa.uint32(), pa.string(), ordered=True),
    "dictionary of struct": pa.dictionary(pa.int8(), STRUCT),
    "dictionary of list of uuid": pa.dictionary(pa.int8(), pa.list_(UUID, 2)),
    "dictionary of run ends of uuid": pa.dictionary(pa.int8(), pa.run_end_encoded(pa.int32(), UUID)),
    "run ends of uuid": pa.run_end_encoded(pa.int16(), UUID),
    "run ends of opaque": pa.run_end_encoded(pa.int64(), OPAQUE),
    "run ends of dictionary": pa.run_end_encoded(pa.int16(), pa.dictionary(pa.int8(), pa.string_view())),
    "run ends of dictionary of struct": pa.run_end_encoded(pa.int32(), pa.dictionary(pa.int8(), STRUCT)),
    "run ends of struct": pa.run_end_encoded(pa.int32(), STRUCT),
}


def within(type_: pa.DataType) -> list[pa.DataType]:
    field = pa.field("thing", type_, nullable=False, metadata=NOTED)
    return [
        *(pa.list_(field), pa.large_list(field), pa.list_view(field), pa.large_list_view(field)),
        *(pa.list_(field, 3), pa.struct([pa.field("b", pa.int8()), field, field.with_name("thing")])),
        *(pa.map_(pa.string(), field.with_name("value")), pa.map_(field.with_name("key"), pa.int8(), True)),
        *(pa.sparse_union([field, field], [3, 8]), pa.dense_union([pa.field("i", UUID), field], [3, 8])),
    ]


def check(schema: pa.Schema) -> None:
    found = from_bytes(to_bytes(schema))
    assert found.equals(schema, check_metadata=True)
    assert same_types(found, schema)  # Arrow's own comparison does not look into everything
    assert str(found) == str(schema)


@pytest.mark.parametrize("name", TYPES)
def test_any_type_is_kept_at_any_depth(name: str) -> None:
    check(pa.schema([pa.field("a", TYPES[name])]))
    for outer in within(TYPES[name]):
        check(pa.schema([pa.field("a", outer, nullable=False, metadata=NOTED)]))
        for outermost in within(outer):
            check(pa.schema([pa.field("a", outermost)]))


def test_all_together_in_their_order() -> None:
    types = [*TYPES.values(), *within(TYPES["run ends of uuid"]), *within(TYPES["dictionary of struct"])]
    fields = [pa.field(str(number % 9), type_) for number, type_ in enumerate(types)]
    check(pa.schema(fields, metadata={"title": "everything", b"\xff": b"\0"}))
    check(pa.schema(fields[::-1]))


def test_what_travels_is_what_a_stream_brings() -> None:
    schema = pa.schema([(name, type_) for name, type_ in TYPES.items() if "over" not in name])
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, schema).close()
    assert travelling(schema).equals(pa.ipc.open_stream(sink.getvalue()).schema, check_metadata=True)


# -- values of encoded types apart -----------------------------------------------------------------------


def schema_with(values: bytes, *types: pa.DataType) -> bytes:
    """A schema as it is written where Arrow's own form loses what its values are."""
    fields = [pa.field(str(number), type_, metadata=NOTED) for number, type_ in enumerate(types)]
    metadata = pa.KeyValueMetadata({KEY: values, b"title": b"t"})
    data: bytes = pa.schema(fields, metadata=metadata).serialize().to_pybytes()
    return data


def test_values_that_stand_apart_are_put_back_in_their_order() -> None:
    plain = pa.binary(16)
    inner = pa.dictionary(pa.int8(), plain, ordered=True)
    hidden = pa.struct([("d", inner)])
    values = [pa.run_end_encoded(pa.int16(), plain), UUID, hidden, UUID, pa.json_()]
    found = from_bytes(
        schema_with(
            to_bytes(pa.schema([pa.field("", type_) for type_ in values])),
            pa.dictionary(pa.int32(), pa.run_end_encoded(pa.int16(), plain)),
            pa.int8(),
            pa.list_(
                pa.field("thing", pa.run_end_encoded(pa.int64(), pa.struct([("d", inner)])), False, NOTED)
            ),
            pa.dictionary(pa.int8(), pa.string()),
        )
    )
    assert found.metadata == {b"title": b"t"}
    assert [field.metadata for field in found] == [{k.encode(): v.encode() for k, v in NOTED.items()}] * 4
    known = pa.struct([("d", pa.dictionary(pa.int8(), UUID, ordered=True))])
    expected = [
        pa.dictionary(pa.int32(), pa.run_end_encoded(pa.int16(), UUID)),
        pa.int8(),
        pa.list_(pa.field("thing", pa.run_end_encoded(pa.int64(), known), False, NOTED)),
        pa.dictionary(pa.int8(), pa.json_()),
    ]
    assert [str(type_) for type_ in found.types] == [str(type_) for type_ in expected]
    assert all(map(same_type, found.types, expected))


def test_values_that_are_not_all_there_are_said() -> None:
    with pytest.raises(ValueError, match="not all there"):
        from_bytes(schema_with(to_bytes(pa.schema([])), pa.dictionary(pa.int8(), pa.binary(16))))


@pytest.mark.parametrize("values", [b"", b"no schema"])
def test_values_that_are_no_schema_are_refused(values: bytes) -> None:
    with pytest.raises((ValueError, OSError)):
        from_bytes(schema_with(values, pa.dictionary(pa.int8(), pa.binary(16))))


# -- metadata --------------------------------------------------------------------------------------------


def test_a_schema_that_arrow_keeps_is_a_message_of_arrow_s_own() -> None:
    schema = pa.schema(list(TYPES.items()), metadata=NOTED)
    assert to_bytes(schema) == schema.serialize().to_pybytes()


@pytest.mark.parametrize("metadata", [None, {}, NOTED, {b"\xff\0": b"", b"b": b"\0" * 1000}])
@pytest.mark.parametrize("name", ["run ends of uuid", "uuid"])
def test_metadata_is_what_it_was(name: str, metadata: dict[str | bytes, str | bytes] | None) -> None:
    schema = pa.schema([pa.field("a", TYPES[name])], metadata=metadata)
    found = from_bytes(to_bytes(schema))
    assert (found.metadata or None) == (schema.metadata or None)


@pytest.mark.parametrize("name", ["run ends of uuid", "uuid"])
def test_doubled_keys_stay_doubled(name: str) -> None:
    metadata = pa.KeyValueMetadata([("k", "1"), ("other", "x"), ("k", "2")])
    schema = pa.schema([pa.field("a", TYPES[name])], metadata=metadata)
    found = from_bytes(to_bytes(schema))
    assert found.serialize().to_pybytes() == schema.serialize().to_pybytes()


@pytest.mark.parametrize("name", ["run ends of uuid", "uuid"])
def test_doubled_keys_of_a_field_stay_doubled(name: str) -> None:
    metadata = pa.KeyValueMetadata([("k", "1"), ("other", "x"), ("k", "2")])
    schema = pa.schema([pa.field("a", TYPES[name], metadata=metadata)])
    assert from_bytes(to_bytes(schema)).serialize().to_pybytes() == schema.serialize().to_pybytes()


def test_bytes_come_in_any_form() -> None:
    schema = pa.schema([("a", TYPES["run ends of uuid"])])
    data = to_bytes(schema)
    for form in (data, memoryview(data), memoryview(bytearray(data)), pa.py_buffer(data)):
        assert from_bytes(form).equals(schema)


# -- damage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\0", b"no schema at all", b"\xff" * 64, bytes(64)])
def test_bytes_that_are_no_schema_are_refused(data: bytes) -> None:
    with pytest.raises((ValueError, OSError)):
        from_bytes(data)


def test_a_cut_schema_is_refused() -> None:
    data = to_bytes(pa.schema([("a", TYPES["dictionary of struct"])]))
    for size in range(0, len(data) - 8, 7):
        with pytest.raises((ValueError, OSError)):
            from_bytes(data[:size])


def test_a_damaged_byte_is_refused_or_gives_a_schema() -> None:
    data = to_bytes(pa.schema([("a", TYPES["dictionary of struct"]), ("b", TYPES["run ends of uuid"])]))
    refused = 0
    for place in range(0, len(data), 3):
        try:
            found = from_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
            assert isinstance(found, pa.Schema)
        except (ValueError, OSError):
            refused += 1
    assert refused
