"""List the members of an uncompressed tar, or raise one clear error.

The standard library's `tarfile` silently takes a damaged header for the end of the archive. Here every block must be a
valid header, a member's content or the end marker, so a tar is either read to its last byte or refused.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from trainer.data.format.faults import unreadable
from trainer.data.format.specs import MAX_BYTES
from trainer.errors import UserError
from trainer.files import open_regular

BLOCK = 512
MAX_MEMBER_BYTES = MAX_BYTES
"""A forged size, or a sparse file, would take hours to read."""
MAX_PADDING_BYTES = 1 << 20
"""Limit of empty blocks at the end; tar programs write ten kilobytes at most."""
MAX_HEADER_BYTES = 1 << 20
"""Limit of a header that contains a long name: a path has at most a few thousand bytes."""
PIECE_BYTES = 1 << 18
"""Bytes read at a time."""
_EMPTY = bytes(BLOCK)
_MAX_DIGITS = 20
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of a file -> the program that packed it."""
_FILE = (b"0", b"\0")
_TOLERATED = (*_FILE, b"5", b"x", b"g", b"L")


class Member(NamedTuple):
    """A file inside a tar: `tar[offset : offset + size]`."""

    name: str
    offset: int
    size: int


class TarBytes(Protocol):
    """The bytes of an archive: `bytes`, or a file that is read on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, wanted: slice, /) -> bytes: ...


class _FileBytes:
    """A file as TarBytes, read in pieces. It is not mapped: truncating a mapped file kills the process."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self._size = os.fstat(self._descriptor).st_size
        self._begin, self._piece = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, wanted: slice) -> bytes:
        begin, end, _ = wanted.indices(self._size)
        if not self._begin <= begin <= end <= self._begin + len(self._piece):
            self._begin, self._piece = begin, os.pread(self._descriptor, max(end - begin, PIECE_BYTES), begin)
        return self._piece[begin - self._begin : end - self._begin]


@contextmanager
def open_tar(path: Path) -> Iterator[TarBytes]:
    """Open an archive for reading.

    Raises:
        UserError: it is not a regular file, is empty, or cannot be read, also while it is in use.
    """
    try:
        with open_regular(path) as file:
            tar = _FileBytes(file)
            if not len(tar):
                raise UserError(f"{path} is empty.")
            yield tar
    except OSError as error:
        raise unreadable(path, error) from None


def walk_tar(tar: TarBytes, where: str, *, tolerant: bool = False) -> Iterator[Member]:
    """Yield every member in order.

    Args:
        tar: the whole archive.
        where: its name, for error messages.
        tolerant: accept what tar programs write besides plain files: folders, and long names in separate headers
            (POSIX's `x` and `g`, GNU's `L`). Every block is still checked.

    Raises:
        UserError: it is not a complete, plain, uncompressed tar; the message names the byte.
    """
    offset, long_name = 0, None
    while offset < len(tar):
        header = tar[offset : offset + BLOCK]
        if header == _EMPTY:
            if not 2 * BLOCK <= len(tar) - offset <= MAX_PADDING_BYTES or any(tar[offset:]):
                raise UserError(f"{where}: byte {offset}: empty blocks that are not the archive's end. It is damaged.")
            return
        kind, member = _parse(header, offset, where, _TOLERATED if tolerant else _FILE)
        if member.offset + member.size > len(tar):
            raise UserError(
                f"{where}: member {member.name} should end at byte {member.offset + member.size}, "
                f"the file ends at {len(tar)}. It is cut short."
            )
        if kind in _FILE:
            yield member if long_name is None else member._replace(name=long_name)
            long_name = None
        elif kind in (b"x", b"L"):
            if member.size > MAX_HEADER_BYTES:
                raise UserError(f"{where}: byte {offset}: a name of {member.size} bytes. It is damaged.")
            content = tar[member.offset : member.offset + member.size]
            long_name = _long_name(kind, content, f"{where}: byte {member.offset}") or long_name
        offset = member.offset + -(-member.size // BLOCK) * BLOCK
    raise UserError(f"{where}: byte {len(tar)}: the archive has no end marker. It is cut short.")


def _parse(header: bytes, offset: int, where: str, kinds: Sequence[bytes]) -> tuple[bytes, Member]:
    # The checksum counts its own eight bytes as spaces.
    found = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if len(header) < BLOCK or _octal(header[148:156]) != found:
        packer = next((name for start, name in _PACKED.items() if not offset and header.startswith(start)), None)
        if packer is not None:
            raise UserError(
                f"{where}: byte 0: expected a tar header, found {header[:2]!r}: it is packed by {packer}. Samples are "
                "read in random order, which a packed tar does not allow.\n"
                f"Unpack it first, and index that: {packer} -dc {where} > NEW.tar"
            )
        raise UserError(f"{where}: byte {offset}: expected a tar header, found {header[:16]!r}. Not a tar, or damaged.")
    kind, name, size = header[156:157], _text(header[:100]), _octal(header[124:136])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    if kind not in kinds:
        raise UserError(
            f"{where}: byte {offset}: member {name!r} is no regular file. Shards contain regular files only."
        )
    if size is None or size > MAX_MEMBER_BYTES:
        claimed = "more than a tar can contain" if size is None else f"{size} bytes"
        raise UserError(
            f"{where}: byte {offset}: member {name!r} should have at most {MAX_MEMBER_BYTES} bytes, found {claimed}."
        )
    return kind, Member(name, offset + BLOCK, size)


def _long_name(kind: bytes, content: bytes, where: str) -> str | None:
    """Return the next member's name, or None if the records have none. POSIX's records are `LENGTH KEY=VALUE`."""
    if kind == b"L":
        return _text(content)
    begin = 0
    while begin < len(content):
        digits = content[begin : begin + _MAX_DIGITS + 1].partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) <= _MAX_DIGITS else 0
        record, begin = content[begin : begin + length], begin + length
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals:
            raise UserError(f"{where}: expected a record `LENGTH KEY=VALUE`, found {record[:40]!r}. It is damaged.")
        if key == b"path":
            return value.decode("utf-8", "replace")
    return None


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    # int() alone would accept a sign, and a negative size would make the walk loop.
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None
