"""The descriptor: the 64-byte record that announces a sealed slot to the writer.

It is a doorbell. What it says stands in the slot header too, and that header is the truth: a writer that
missed descriptors finds every sealed slot by scanning the ring. This module knows the record, not how it
travels.

On the wire, a ``multiprocessing`` connection puts a 4-byte big-endian length in front, so the payload here is
60 bytes and a whole record 64: below ``PIPE_BUF``, hence written atomically or not at all.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from shmstore.errors import BrokenError

RECORD_BYTES = 64
PAYLOAD_BYTES = RECORD_BYTES - 4
_MAGIC = 0x53_48_4D_44  # "SHMD"
_LAYOUT = struct.Struct("<IIQQQII16xI")  # magic, ring, sequence, position, length, schema id, rows, -, crc
_LAYOUT_HEAD = struct.Struct("<IIQQQII16x")


class Descriptor(NamedTuple):
    """What a descriptor says of its slot.

    Attributes
    ----------
    ring
        Number of the ring within its session.
    sequence
        Sequence number of the slot in its ring, from 0.
    position
        Absolute position of the slot header in the ring (bytes since the ring was made; never wraps).
    length
        Length of the slot's body in bytes.
    schema_id
        Number of the schema that the body follows.
    rows
        Rows in the body.
    """

    ring: int
    sequence: int
    position: int
    length: int
    schema_id: int
    rows: int

    def pack(self) -> bytes:
        """Return the record's 60 payload bytes."""
        head = _LAYOUT_HEAD.pack(_MAGIC, *self)
        return head + zlib.crc32(head).to_bytes(4, "little")

    @classmethod
    def unpack(cls, payload: bytes) -> Descriptor:
        """Check and return a descriptor.

        Raises
        ------
        BrokenError
            The bytes are no descriptor: wrong length, magic or checksum.
        """
        if len(payload) != PAYLOAD_BYTES:
            raise BrokenError(
                f"a descriptor has {PAYLOAD_BYTES} bytes, not {len(payload)}: its sender is no shmstore"
            )
        magic, ring, sequence, position, length, schema_id, rows, crc = _LAYOUT.unpack(payload)
        if magic != _MAGIC or crc != zlib.crc32(payload[:-4]):
            raise BrokenError("a descriptor failed its checksum: its sender is no shmstore")
        return cls(ring, sequence, position, length, schema_id, rows)
