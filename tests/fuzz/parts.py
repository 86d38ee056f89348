"""Several byte strings in one input: each behind its length, uint16, little-endian."""

from __future__ import annotations

import struct

_LENGTH = struct.Struct("<H")


def join(*parts: bytes) -> bytes:
    """Write parts of less than 64 KiB behind each other."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def split(data: bytes, least: int = 0) -> list[bytes]:
    """Read what `join` wrote; of any other bytes the last part is cut. Empty parts follow until there are `least`."""
    parts, at = [], 0
    while at + _LENGTH.size <= len(data):
        end = at + _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
        parts.append(data[at + _LENGTH.size : end])
        at = end
    return parts + [b""] * (least - len(parts))


def chosen(part: bytes, count: int) -> int:
    """Return a number below `count`, from the first byte."""
    return part[0] % count if part else 0


def safetensors_parts(file: bytes) -> bytes:
    """Write a safetensors file as an input whose header may grow: as `safetensors_file` reads it."""
    end = 8 + int.from_bytes(file[:8], "little")
    return join(file[8:end], file[end:])


def safetensors_file(data: bytes) -> bytes:
    """Make a file of a header and what stands behind it."""
    header, body = split(data, 2)[:2]
    return len(header).to_bytes(8, "little") + header + body
