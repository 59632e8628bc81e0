"""Image bytes to pixels and back, strictly: what does not decode to exactly the manifest's image is an error.

The header is compared before anything is decoded, so a forged size never allocates memory, and no decoder runs that
can execute code (no pickle). Shapes: H rows, W columns, C channels.
"""

import io
import struct
from functools import lru_cache

import cv2
import numpy as np
import simplejpeg

from trainer.data.manifest import Encoding, ImageSpec

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_CHANNELS = {(8, 0): 1, (8, 2): 3}  # (bit depth, colour type): grey, RGB
_JPG_CHANNELS = {"gray": 1, "ycbcr": 3, "rgb": 3}


class BadImageError(Exception):
    """An image that cannot be used; its argument says why."""


def encode(image_HWC: np.ndarray, encoding: Encoding) -> bytes:
    """Encodes a uint8 image (grey or RGB). JPEG is written at quality 95; the others lose nothing."""
    if encoding == "npy":
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(image_HWC), version=(1, 0), allow_pickle=False)
        return buffer.getvalue()
    if encoding == "jpg":
        colorspace = "GRAY" if image_HWC.shape[2] == 1 else "RGB"
        return simplejpeg.encode_jpeg(np.ascontiguousarray(image_HWC), quality=95, colorspace=colorspace)
    bgr_HWC = image_HWC[:, :, ::-1]  # cv2's order; the same for one channel
    done, png = cv2.imencode(".png", bgr_HWC)
    assert done
    return png.tobytes()


def check_header(data: bytes, spec: ImageSpec) -> None:
    """Compares what an image says of itself with what the manifest promises.

    Raises:
        BadImageError: another format, size or number of channels.
    """
    found = _SHAPES[spec.encoding](data)
    if found != spec.shape:
        raise BadImageError(f"expected height x width x channels {spec.shape}, found {found}")


def decode_into(slot_HWC: np.ndarray, data: bytes, spec: ImageSpec) -> None:
    """Decodes one image into its uint8 slot of a batch.

    Raises:
        BadImageError: another format, size or number of channels, or damaged content. The slot may then hold anything.
    """
    check_header(data, spec)
    if spec.encoding == "npy":
        pixels = np.frombuffer(data, np.uint8, offset=_npy_start(data))
        if pixels.size != slot_HWC.size:
            raise BadImageError(f"expected {slot_HWC.size} bytes of pixels, found {pixels.size}")
        slot_HWC[:] = pixels.reshape(spec.shape)
    elif spec.encoding == "jpg":
        try:
            simplejpeg.decode_jpeg(data, colorspace="GRAY" if spec.channels == 1 else "RGB", buffer=slot_HWC)
        except ValueError as error:
            raise BadImageError(str(error)) from None
    else:
        flags = cv2.IMREAD_GRAYSCALE if spec.channels == 1 else cv2.IMREAD_COLOR_RGB
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise BadImageError("the PNG decoder refused it")
        slot_HWC[:] = image.reshape(spec.shape)


def _png_shape(data: bytes) -> tuple[int, int, int]:
    if len(data) < 33 or not data.startswith(_PNG_START):
        raise BadImageError(f"expected a PNG, found {data[:8]!r}")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, len(_PNG_START))
    if (depth, colour) not in _PNG_CHANNELS:
        raise BadImageError(f"expected 8-bit grey or RGB, found bit depth {depth} and colour type {colour}")
    return height, width, _PNG_CHANNELS[depth, colour]


def _jpg_shape(data: bytes) -> tuple[int, int, int]:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadImageError(f"expected a JPEG, found {data[:8]!r} ({error})") from None
    if colorspace.lower() not in _JPG_CHANNELS:
        raise BadImageError(f"expected a grey or RGB JPEG, found {colorspace}")
    return height, width, _JPG_CHANNELS[colorspace.lower()]


def _npy_start(data: bytes) -> int:
    return 10 + int.from_bytes(data[8:10], "little")


def _npy_shape(data: bytes) -> tuple[int, int, int]:
    return _parse_npy_header(data[: _npy_start(data)])


# Every image of a data set has the same header, and parsing one costs ten times as much as copying 28x28 pixels.
@lru_cache(maxsize=16)
def _parse_npy_header(header: bytes) -> tuple[int, int, int]:
    stream = io.BytesIO(header)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise BadImageError(f"expected a .npy array, found {header[:8]!r} ({error})") from None
    if dtype != np.uint8 or fortran_order or len(shape) != 3:
        raise BadImageError(f"expected a uint8 array of 3 axes in C order, found {dtype} of shape {shape}")
    return shape


_SHAPES = {"png": _png_shape, "jpg": _jpg_shape, "npy": _npy_shape}
