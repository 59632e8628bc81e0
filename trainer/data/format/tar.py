"""Where each member of an uncompressed tar lies, or one clear error.

The standard library's `tarfile` takes a damaged header for the end of the archive and says nothing; here every block
must be a sound header, a member's content or the end marker, so a tar is either read to its last byte or refused.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from trainer.errors import UserError

BLOCK = 512
MAX_MEMBER_BYTES = 256 << 20
"""No part of a sample is larger. A forged size, or a file of holes, would be read for hours."""
MAX_PADDING_BYTES = 1 << 20
"""Of empty blocks at the end; tar programs write ten kilobytes at most."""
_EMPTY = bytes(BLOCK)
_FILE = (b"0", b"\0")
_TOLERATED = (*_FILE, b"5", b"x", b"g", b"L")


class Member(NamedTuple):
    """A file inside a tar: `tar[offset : offset + size]`."""

    name: str
    offset: int
    size: int


@contextmanager
def open_tar(path: Path) -> Iterator[memoryview]:
    """The bytes of a file, mapped, not read.

    Raises:
        UserError: it cannot be opened, or is empty.
    """
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise UserError(f"{path} is empty.")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    with mapped, memoryview(mapped) as tar:
        yield tar


def walk_tar(tar: memoryview, where: str, *, tolerant: bool = False) -> Iterator[Member]:
    """Every member in order.

    Args:
        tar: the whole archive.
        where: its name in errors.
        tolerant: take what tar programs write besides plain files: folders, and longer names in headers of their own
            (POSIX's `x` and `g`, GNU's `L`). The bytes of every member are looked at all the same.

    Raises:
        UserError: naming the byte at which the archive stops being a plain, whole, uncompressed tar.
    """
    offset, long_name = 0, None
    while offset < len(tar):
        header = bytes(tar[offset : offset + BLOCK])
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
            content = bytes(tar[member.offset : member.offset + member.size])
            long_name = _long_name(kind, content, f"{where}: byte {member.offset}") or long_name
        offset = member.offset + -(-member.size // BLOCK) * BLOCK
    raise UserError(f"{where}: byte {len(tar)}: the archive has no end marker. It is cut short.")


def _parse(header: bytes, offset: int, where: str, kinds: Sequence[bytes]) -> tuple[bytes, Member]:
    # A checksum counts its own eight bytes as spaces.
    found = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if len(header) < BLOCK or _octal(header[148:156]) != found:
        raise UserError(f"{where}: byte {offset}: expected a tar header, found {header[:16]!r}. Not a tar, or damaged.")
    kind, name, size = header[156:157], _text(header[:100]), _octal(header[124:136])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    if kind not in kinds:
        raise UserError(f"{where}: byte {offset}: member {name!r} is no regular file. Shards hold regular files only.")
    if size is None or size > MAX_MEMBER_BYTES:
        claimed = "more than a plain tar can hold" if size is None else f"{size} bytes"
        raise UserError(
            f"{where}: byte {offset}: member {name!r} should have at most {MAX_MEMBER_BYTES} bytes, found {claimed}."
        )
    return kind, Member(name, offset + BLOCK, size)


def _long_name(kind: bytes, content: bytes, where: str) -> str | None:
    """The name of the next member; None if these records tell none. POSIX's are lines `LENGTH KEY=VALUE`."""
    if kind == b"L":
        return _text(content)
    while content:
        digits = content.partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record, content = content[:length], content[length:]
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
    # int() alone would take a sign, and a negative size would send the walk back to where it was.
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None
