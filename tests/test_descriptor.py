from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmstore.descriptor import PAYLOAD_BYTES, RECORD_BYTES, Descriptor
from shmstore.errors import BrokenError

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
DESCRIPTOR = Descriptor(3, 1_000_000, 2**40, 4096, 2, 100)


@given(st.builds(Descriptor, U32, U64, U64, U64, U32, U32))
def test_what_is_packed_comes_back(descriptor: Descriptor) -> None:
    assert Descriptor.unpack(descriptor.pack()) == descriptor


def test_a_record_with_its_length_prefix_is_64_bytes() -> None:
    assert len(DESCRIPTOR.pack()) == PAYLOAD_BYTES == RECORD_BYTES - 4 == 60


@given(st.integers(0, PAYLOAD_BYTES * 8 - 1))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    payload = bytearray(DESCRIPTOR.pack())
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BrokenError, match="checksum"):
        Descriptor.unpack(bytes(payload))


@pytest.mark.parametrize("size", [0, 1, 59, 61, 64])
def test_a_record_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(BrokenError, match=f"not {size}"):
        Descriptor.unpack((DESCRIPTOR.pack() + bytes(4))[:size])
