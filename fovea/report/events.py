"""Scalars in TensorBoard's event files, written without TensorBoard.

A file is a sequence of records, each [length u64][masked CRC-32C of the length][data][masked CRC-32C of the data]; data is a protocol
buffer `Event` (tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto). Only the fields of scalars and of a restart are
written. Importing TensorBoard's own writer takes seconds; a step takes this one a millisecond.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

POLYNOMIAL = 0x82F63B78


def _table() -> list[int]:
    rows = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (POLYNOMIAL if byte & 1 else 0)
        rows.append(byte)
    return rows


TABLE = _table()


class Events:
    """Appends to a new event file in `folder`; TensorBoard drops what earlier files hold from step `first` on.

    A step that is logged twice (an evaluation after its step) simply has two events.
    """

    def __init__(self, folder: Path, first: int):
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}.fovea.{os.getpid()}").open("xb")
        self._write(_text(3, "brain.Event:2"), 0)
        self._write(_bytes(7, _number(1, 1)), first)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the finite numbers of a step."""
        values = b"".join(_bytes(1, _text(1, name) + b"\x15" + struct.pack("<f", value)) for name, value in metrics.items() if _fits(value))
        self._write(_bytes(5, values), step)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, what: bytes, step: int) -> None:
        data = b"\x09" + struct.pack("<d", time.time()) + _number(2, step) + what
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked(length) + data + _masked(data))


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as in RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _fits(value: float) -> bool:
    return math.isfinite(value) and abs(value) < 3.4e38


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def _number(field: int, n: int) -> bytes:
    return _varint(field << 3) + _varint(n)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode("utf-8", "replace"))
