"""Read IDX, the format of the MNIST files: a magic number, the axes' lengths, then bytes.

Shapes: N images, H rows, W columns.
"""

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from trainer.errors import UserError
from trainer.files import read_bytes

MAX_BYTES = 1 << 30
"""Limit of an unpacked file: twenty times MNIST's largest."""

_UINT8 = 8
_STEMS = ("{split}-{what}-idx{axes}-ubyte", "{split}-{what}.idx{axes}-ubyte")


def read_idx(folder: Path, split: str, what: str, *, axes: int) -> tuple[bytes, np.ndarray]:
    """Find and read a file by its standard name, gzipped or not.

    Args:
        folder: the folder that contains it.
        split: `train` or `t10k`.
        what: `images` or `labels`.
        axes: 3 for images, 1 for labels.

    Returns:
        The whole uncompressed file, and its uint8 array.

    Raises:
        UserError: there is no such file, or it is not a complete IDX file of unsigned bytes with that many axes.
    """
    path = _find(folder, split, what, axes)
    content = _uncompressed(path)
    expected = struct.pack(">HBB", 0, _UINT8, axes)
    header_bytes = 4 + 4 * axes
    if content[:4] != expected or len(content) < header_bytes:
        raise UserError(
            f"{path} is not an IDX file of {what}: expected it to begin with {expected!r}, found {content[:4]!r}.\n"
            + _download_again(path)
        )
    shape = struct.unpack_from(f">{axes}I", content, 4)
    expected_bytes = header_bytes + math.prod(shape)
    if len(content) != expected_bytes:
        raise UserError(
            f"{path}: its header says shape {shape}, so {expected_bytes} bytes, but it has {len(content)}.\n"
            + _download_again(path)
        )
    return content, np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def _find(folder: Path, split: str, what: str, axes: int) -> Path:
    names = [stem.format(split=split, what=what, axes=axes) for stem in _STEMS]
    names += [f"{name}.gz" for name in names]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} has no {names[0]} (nor {', '.join(names[1:])}).\n"
        "Point --mnist at the folder with the four MNIST files: train- and t10k-, images and labels."
    )


def _uncompressed(path: Path) -> bytes:
    packed = read_bytes(path, MAX_BYTES)
    if path.suffix != ".gz":
        return packed
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.\n{_download_again(path)}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} unpacks to more than {MAX_BYTES:,} bytes.\n{_download_again(path)}")
    return content


def _download_again(path: Path) -> str:
    return f"The download may be damaged, or another file: fetch {path.name} again."
