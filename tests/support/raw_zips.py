"""Zips byte by byte: what other tools write and zipfile does not."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

UTF8, ENCRYPTED, DESCRIPTOR = 0x800, 0x1, 0x8  # general purpose flags
DOS, UNIX, NTFS, MACOS = 0, 3, 10, 19  # creator systems


@dataclass(frozen=True)
class RawEntry:
    """An entry; every field is written as it is."""

    name: bytes
    data: bytes = b"x"
    system: int = DOS
    flags: int = 0
    extra: bytes = b""
    attributes: int = 0
    method: int = 0  # 8 deflates, and every other method stores
    local_name: bytes | None = None  # in the entry's own header; None for the same name
    declared: int | None = None  # unpacked size in the directory; None for the right one


def unicode_path(raw: bytes, name: bytes, crc_of: bytes | None = None) -> bytes:
    """Return a Unicode path extra field (0x7075) for a raw name."""
    field = struct.pack("<BL", 1, zlib.crc32(raw if crc_of is None else crc_of)) + name
    return struct.pack("<HH", 0x7075, len(field)) + field


def raw_zip(entries: Sequence[RawEntry], prefix: bytes = b"", same_offset: bool = False) -> bytes:
    """Return a zip of these entries.

    Args:
        entries: In the order of the directory.
        prefix: Bytes before the zip, as in a self-extracting one; offsets do not count them.
        same_offset: Every entry of the directory points to the first entry's bytes.
    """
    body, directory = b"", b""
    for entry in entries:
        packed = entry.data
        if entry.method == 8:
            deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = deflate.compress(entry.data) + deflate.flush()
        size = len(entry.data) if entry.declared is None else entry.declared
        sums = struct.pack("<LLL", zlib.crc32(entry.data), len(packed), size)
        in_header, after = (bytes(12), b"PK\7\x08" + sums) if entry.flags & DESCRIPTOR else (sums, b"")
        offset = 0 if same_offset else len(body)
        local = entry.name if entry.local_name is None else entry.local_name
        common = struct.pack("<HHHHH", 20, entry.flags, entry.method, 0, 0x21)
        body += b"PK\3\4" + common + in_header + struct.pack("<HH", len(local), 0) + local + packed + after
        directory += b"PK\1\2" + struct.pack("<BB", 20, entry.system) + common + sums
        directory += struct.pack("<HHHHHLL", len(entry.name), len(entry.extra), 0, 0, 0, entry.attributes, offset)
        directory += entry.name + entry.extra
    end = struct.pack("<HHHHLLH", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    return prefix + body + directory + b"PK\5\6" + end
