"""Turn photos upright: cameras store them as the sensor lay, and write into EXIF how to turn them.

Shapes: H rows, W columns, C channels.
"""

import struct

import numpy as np

from trainer.data.format.decode import decode_into, encode, image_shape
from trainer.data.format.pixels import unmeasured
from trainer.data.format.specs import Encoding

UPRIGHT = 1
_ORIENTATION = 0x0112
_SHORT = 3
_MARKERS_WITHOUT_SIZE = (0x01, *range(0xD0, 0xD9))
_START_OF_SCAN, _APP1 = 0xDA, 0xE1


def orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, from 1 to 8; 1, upright, if it has none or is no JPEG."""
    offset = 2 if data.startswith(b"\xff\xd8") else len(data)
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker in _MARKERS_WITHOUT_SIZE:
            offset += 2
            continue
        size = int.from_bytes(data[offset + 2 : offset + 4], "big")
        content = data[offset + 4 : offset + 2 + size]
        if marker == _APP1 and content.startswith(b"Exif\0\0"):
            return _of_exif(content[6:])
        if marker == _START_OF_SCAN or size < 2:
            break
        offset += 2 + size
    return UPRIGHT


def upright_shape(data: bytes, encoding: Encoding) -> tuple[int, int, int]:
    """Return height, width and channels of an image when it is turned upright.

    Raises:
        BadImageError: the data has another format, or no valid header.
    """
    height, width, channels = image_shape(data, encoding)
    return (width, height, channels) if orientation(data) > 4 else (height, width, channels)


def turn_upright(data: bytes, encoding: Encoding, stored: Encoding | None = None) -> bytes:
    """Return an image upright: unchanged if it is, else decoded, turned, and encoded again as `encode` does.

    Args:
        data: the image.
        encoding: its encoding.
        stored: the encoding of what is returned; None: the same.

    Raises:
        BadImageError: it has to be encoded again, and cannot be decoded.
    """
    found = orientation(data)
    if found == UPRIGHT and stored in (None, encoding):
        return data
    height, width, channels = image_shape(data, encoding)
    pixels_HWC = np.empty((height, width, channels), np.uint8)
    decode_into(pixels_HWC, data, unmeasured(height, width, 3 if channels == 3 else 1, encoding))
    return encode(turn(pixels_HWC, found), stored or encoding)


def turn(pixels_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror pixels as an EXIF orientation says (EXIF 2.32, tag 0x0112)."""
    if orientation > 4:
        pixels_HWC = pixels_HWC.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC


def _of_exif(tiff: bytes) -> int:
    """Return the orientation in the first directory of a TIFF header."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return UPRIGHT
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return UPRIGHT
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for number in range(count):
        offset = start + 2 + 12 * number
        if offset + 12 > len(tiff):
            break
        tag, kind = struct.unpack_from(f"{order}HH", tiff, offset)
        if tag == _ORIENTATION and kind == _SHORT:
            (value,) = struct.unpack_from(f"{order}H", tiff, offset + 8)
            return value if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT
