"""Write members of a plain (ustar) archive, ten times as fast as `tarfile`, and always the same bytes."""

from trainer.data.format.tar import BLOCK

RECORD = 20 * BLOCK
"""Archives are padded to whole records."""

MAX_NAME_BYTES = 100
MAX_MEMBER_BYTES = 8**11 - 1

_CHECKSUM = slice(148, 156)


def tar_member(name: str, content: bytes) -> bytes:
    """Return a file as an archive member: a header block, the content, and zeros up to the next block.

    Name and content must fit ustar's fields: MAX_NAME_BYTES and MAX_MEMBER_BYTES.
    """
    name_bytes, size = name.encode(), b"%011o\0" % len(content)
    assert len(name_bytes) <= MAX_NAME_BYTES
    assert len(content) <= MAX_MEMBER_BYTES
    header = bytearray(_TEMPLATE)
    header[: len(name_bytes)] = name_bytes
    header[124:136] = size
    header[_CHECKSUM] = b"%06o\0 " % (_TEMPLATE_SUM + sum(name_bytes) + sum(size))
    return b"".join((header, content, bytes(-len(content) % BLOCK)))


def tar_end(offset: int) -> bytes:
    """Return the bytes that end an archive whose members fill `offset` bytes."""
    return bytes(2 * BLOCK + -(offset + 2 * BLOCK) % RECORD)


def _template() -> bytes:
    """Return a header without name, size and checksum: mode 0444, owner 0, modified in 1970."""
    header = bytearray(BLOCK)
    header[100:108] = b"0000444\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[136:148] = b"00000000000\0"
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    return bytes(header)


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE) + 8 * ord(" ")  # a checksum counts its own eight bytes as spaces
