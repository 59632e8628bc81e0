import io

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.tiny import picture, spec
from trainer.data.decode import BadImageError, check_header, decode_into, encode
from trainer.data.manifest import ImageSpec


def decode(data: bytes, image: ImageSpec) -> np.ndarray:
    slot = np.full(image.shape, 77, np.uint8)
    decode_into(slot, data, image)
    return slot


def smooth(image: ImageSpec) -> np.ndarray:
    rows, columns, channels = np.indices(image.shape)
    return (rows * 3 + columns * 2 + channels * 40).astype(np.uint8)


@pytest.mark.parametrize("encoding", ["png", "npy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_encodings_return_every_pixel(encoding: str, channels: int) -> None:
    image = spec(encoding, height=13, width=7, channels=channels)
    pixels = picture(0, image)
    assert np.array_equal(decode(encode(pixels, encoding), image), pixels)


@pytest.mark.parametrize("encoding", ["png", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pillow_agrees_on_what_the_bytes_mean(encoding: str, channels: int) -> None:
    image = spec(encoding, height=24, width=32, channels=channels)
    pixels = smooth(image)
    data = encode(pixels, encoding)
    theirs = np.asarray(Image.open(io.BytesIO(data))).reshape(image.shape).astype(int)
    assert np.abs(theirs - pixels).max() <= 8  # red and blue exchanged would differ by 80
    assert np.abs(theirs - decode(data, image)).max() <= 2


def test_numpy_reads_our_npy() -> None:
    pixels = picture(1, spec())
    assert np.array_equal(np.load(io.BytesIO(encode(pixels, "npy"))), pixels)


@pytest.mark.parametrize("encoding", ["png", "jpg", "npy"])
def test_another_size_channel_count_or_format_is_refused(encoding: str) -> None:
    image = spec(encoding, height=8, width=9)
    for other in (spec(encoding, height=9, width=8), spec(encoding, height=8, width=9, channels=3)):
        with pytest.raises(BadImageError, match=r"expected height x width x channels \(8, 9, 1\)"):
            check_header(encode(smooth(other), encoding), image)
    for strange in ("png", "jpg", "npy"):
        if strange != encoding:
            with pytest.raises(BadImageError, match="expected a"):
                decode(encode(smooth(image), strange), image)
    for rubbish in (b"", b"GIF89a", b"<html>", bytes(300)):
        with pytest.raises(BadImageError):
            decode(rubbish, image)


@pytest.mark.parametrize("encoding", ["png", "jpg", "npy"])
def test_a_truncated_image_is_refused_wherever_it_is_cut(encoding: str) -> None:
    image = spec(encoding, height=16, width=16)
    data = encode(picture(2, image), encoding)
    for keep in range(0, len(data) - 16, 7):
        with pytest.raises(BadImageError):
            decode(data[:keep], image)


def test_a_forged_png_header_allocates_nothing() -> None:
    image = spec("png")
    data = bytearray(encode(picture(0, image), "png"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(BadImageError, match="60000"):
        decode(bytes(data), image)


def test_sixteen_bit_and_palette_pngs_are_refused() -> None:
    image = spec("png", height=2, width=2)
    deep = cv2.imencode(".png", np.zeros((2, 2), np.uint16))[1].tobytes()
    buffer = io.BytesIO()
    Image.new("P", (2, 2)).save(buffer, "png")
    for data in (deep, buffer.getvalue()):
        with pytest.raises(BadImageError, match="expected 8-bit grey or RGB"):
            decode(data, image)


def test_npy_of_objects_or_floats_is_refused_and_runs_nothing() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("unpickled",)

    for array in (np.array([[[Bomb()]]], object), np.zeros((3, 4, 1))):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        with pytest.raises(BadImageError, match="expected a uint8 array"):
            decode(buffer.getvalue(), spec())
