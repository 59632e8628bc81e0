"""Where each member of an uncompressed tar lies, or one clear error.

The standard library's `tarfile` takes a damaged header for the end of the archive and says nothing; here every block
must be a sound header, a member's content or the end marker, so a tar is either read to its last byte or refused.
"""

from collections.abc import Iterator
from typing import NamedTuple

from trainer.errors import UserError

BLOCK = 512
_EMPTY = bytes(BLOCK)


class Member(NamedTuple):
    """A file inside a tar: `tar[offset : offset + size]`."""

    name: str
    offset: int
    size: int


def walk_tar(tar: memoryview, where: str) -> Iterator[Member]:
    """Every member in order.

    Args:
        tar: the whole archive.
        where: its name in errors.

    Raises:
        UserError: naming the byte at which the archive stops being a plain, whole, uncompressed tar.
    """
    offset = 0
    while offset < len(tar):
        header = bytes(tar[offset : offset + BLOCK])
        if header == _EMPTY:
            if len(tar) - offset < 2 * BLOCK or any(tar[offset:]):
                raise UserError(f"{where}: byte {offset}: empty blocks that are not the archive's end. It is damaged.")
            return
        member = _parse(header, offset, where)
        if member.offset + member.size > len(tar):
            raise UserError(
                f"{where}: member {member.name} should end at byte {member.offset + member.size}, "
                f"the file ends at {len(tar)}. It is cut short."
            )
        yield member
        offset = member.offset + -(-member.size // BLOCK) * BLOCK
    raise UserError(f"{where}: byte {len(tar)}: the archive has no end marker. It is cut short.")


def _parse(header: bytes, offset: int, where: str) -> Member:
    # A checksum counts its own eight bytes as spaces.
    found = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if len(header) < BLOCK or _octal(header[148:156]) != found:
        raise UserError(f"{where}: byte {offset}: expected a tar header, found {header[:16]!r}. Not a tar, or damaged.")
    name, size = header[:100].rstrip(b"\0").decode("utf-8", "replace"), _octal(header[124:136])
    if header[156:157] not in (b"0", b"\0") or size is None:
        raise UserError(f"{where}: byte {offset}: member {name!r} is no regular file. Shards hold regular files only.")
    return Member(name, offset + BLOCK, size)


def _octal(field: bytes) -> int | None:
    try:
        return int(field.strip(b" \0"), 8)
    except ValueError:
        return None
