"""Decode PNG files of every kind whose meaning is plain: as 8-bit pixels, or as class numbers.

The kinds: grey of 1, 2, 4, 8 or 16 bits, RGB of 8 or 16 bits, palettes, and grey or RGB with an alpha channel, if all
pixels are opaque. A transparent pixel has no colour of its own, so images with one are refused.

Shapes: H rows, W columns, C channels.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import cv2
import numpy as np

from trainer.data.format.signatures import PNG_START, describe


class BadImageError(Exception):
    """An image that cannot be used; its argument says why."""


class PngHeader(NamedTuple):
    """The contents of the header.

    Attributes:
        height: in pixels.
        width: in pixels.
        depth: bits of a sample.
        colour: GREY, RGB, PALETTE, GREY_ALPHA or RGB_ALPHA.
    """

    height: int
    width: int
    depth: int
    colour: int

    @property
    def channels(self) -> int:
        """Channels of the decoded image."""
        return 1 if self.colour in (GREY, GREY_ALPHA) else 3

    @property
    def is_plain(self) -> bool:
        """Whether it is 8-bit grey or RGB, as we write it."""
        return self.depth == 8 and self.colour in (GREY, RGB)


GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6

_START = PNG_START + b"\0\0\0\rIHDR"
_HEADER_BYTES = 33
_DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}


def png_header(data: bytes) -> PngHeader:
    """Read the header.

    Raises:
        BadImageError: it is no PNG.
    """
    if len(data) < _HEADER_BYTES or not data.startswith(_START):
        raise BadImageError(f"expected a PNG, found {describe(data)}")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, len(_START))
    if depth not in _DEPTHS.get(colour, ()):
        raise BadImageError(f"expected a PNG, found one of bit depth {depth} and colour type {colour}")
    return PngHeader(height, width, depth, colour)


def decode_png(data: bytes, channels: int) -> np.ndarray:
    """Decode to uint8 pixels, shape (H, W, C); grey becomes RGB if `channels` is 3.

    Raises:
        BadImageError: it is damaged, or has transparent pixels.
    """
    if png_header(data).is_plain:
        flags = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
        pixels = _decode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
        return pixels.reshape(*pixels.shape[:2], channels)
    pixels = _opaque(_decode(data, cv2.IMREAD_UNCHANGED))
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)  # as PNG defines it, 13.12
    grey = pixels.ndim == 2 or png_header(data).channels == 1
    pixels_HWC = pixels.reshape(*pixels.shape[:2], -1)
    return np.repeat(pixels_HWC[..., :1], channels, axis=2) if grey else pixels_HWC[..., ::-1]


def decode_classes(data: bytes) -> np.ndarray:
    """Decode to class numbers, uint8, shape (H, W): the grey values as stored, or the entries of a palette.

    Raises:
        BadImageError: it is damaged, has transparent pixels or colours, or a number above 255.
    """
    header = png_header(data)
    if header.channels == 3 and header.colour != PALETTE:
        raise BadImageError("expected a PNG of class numbers, grey or with a palette, found RGB colours")
    if header.colour == PALETTE:
        data = _without_palette(data, header)
    if header.colour == GREY_ALPHA:
        numbers = _opaque(_decode(data, cv2.IMREAD_UNCHANGED))[..., 0]
    else:
        numbers = _decode(data, cv2.IMREAD_UNCHANGED if header.depth == 16 else cv2.IMREAD_GRAYSCALE)
    if header.depth < 8:
        numbers = numbers // (255 // (2**header.depth - 1))  # the decoder spreads them from 0 to 255
    if numbers.max(initial=0) > 255:
        raise BadImageError(f"expected class numbers up to 255, found {numbers.max()}")
    return numbers.astype(np.uint8, copy=False)


def _opaque(pixels: np.ndarray) -> np.ndarray:
    """Return pixels without their alpha channel, if they have one."""
    if pixels.ndim < 3 or pixels.shape[2] != 4:
        return pixels
    if (pixels[..., 3] != np.iinfo(pixels.dtype).max).any():
        raise BadImageError("it has transparent pixels; draw it on a background of your choice first")
    return pixels[..., :3]


def _without_palette(data: bytes, header: PngHeader) -> bytes:
    """Return a grey PNG whose values are the entries of the palette."""
    head = b"IHDR" + struct.pack(">IIBB", header.width, header.height, header.depth, GREY) + data[26:29]
    parts = [data[:12], head, struct.pack(">I", zlib.crc32(head))]
    offset = _HEADER_BYTES
    while offset + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, offset)
        if kind in (b"IDAT", b"IEND"):
            parts.append(data[offset : offset + size + 12])
        offset += size + 12
    return b"".join(parts)


def _decode(data: bytes, flags: int) -> np.ndarray:
    with opencv_refusing():
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise BadImageError("the PNG decoder refused it")
    return pixels


@contextmanager
def opencv_refusing() -> Iterator[None]:
    """Raise MemoryError if OpenCV ran out of memory, BadImageError if it refused the image."""
    try:
        yield
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        raise BadImageError(str(error.err)) from None
