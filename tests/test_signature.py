"""Signatures: what is one, what is none."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmstore.signature import SIGNATURE_BYTES, crc32, sign, signed_version

MAGIC = b"SHMSTORE"


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_the_checksum_is_that_of_zlib(data: bytes, start: int) -> None:
    assert crc32(data, start) == zlib.crc32(data, start)
    assert crc32(np.frombuffer(data, np.uint8)) == crc32(memoryview(data)) == zlib.crc32(data)


def test_a_signature_tells_its_version_whatever_follows() -> None:
    signature = sign(MAGIC, (3, 65535))
    assert len(signature) == SIGNATURE_BYTES == 16
    assert signature[:12] == MAGIC + b"\x03\x00\xff\xff"
    assert signed_version(signature + b"more", MAGIC) == (3, 65535)
    assert signed_version(signature, b"ANOTHER1") is None


@pytest.mark.parametrize("at", range(16))
def test_a_damaged_or_short_signature_is_none(at: int) -> None:
    signature = bytearray(sign(MAGIC, (1, 0)))
    assert signed_version(bytes(signature[:at]), MAGIC) is None
    for bit in range(8):
        signature[at] ^= 1 << bit
        assert signed_version(bytes(signature), MAGIC) is None
        signature[at] ^= 1 << bit
