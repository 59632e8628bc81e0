import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.tiny_data import picture, spec
from trainer.data.format.decode import check_header, decode_into, decode_many, encode
from trainer.data.format.png import BadImageError
from trainer.data.format.specs import ImageSpec


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


@pytest.mark.parametrize("encoding", ["png", "npy"])
@pytest.mark.parametrize("first", ["sound", "short", "other shape"])
def test_a_batch_holds_what_its_images_give_one_by_one(encoding: str, first: str) -> None:
    image = spec(encoding, height=5, width=4, channels=3)
    images = {number: encode(picture(number, image), encoding) for number in (6, 1, 3)}
    turned = encode(picture(7, image).transpose(1, 0, 2), encoding)
    faulty = {"short": images[6][:-1], "other shape": turned, "long": images[6] + b"0", "empty": b""}
    contents = dict(enumerate(faulty.values(), 10)) | images
    ahead = {} if first == "sound" else {20: faulty[first]}
    batch = np.full((30, *image.shape), 77, np.uint8)
    errors = decode_many(batch, ahead | images | contents, image)
    assert errors.keys() <= contents.keys() | ahead.keys()
    assert errors.keys().isdisjoint(images)
    for slot, data in (ahead | contents).items():
        if slot in errors:
            with pytest.raises(BadImageError, match=re.escape(str(errors[slot]))):
                decode(data, image)
        else:
            assert np.array_equal(batch[slot], decode(data, image))


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


def test_npy_of_objects_or_floats_is_refused_and_runs_nothing() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("unpickled",)

    for array in (np.array([[[Bomb()]]], object), np.zeros((3, 4, 1))):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        with pytest.raises(BadImageError, match=r"expected (a uint8 array|an array of numbers, found object)"):
            decode(buffer.getvalue(), spec())


# Images of any stored size


def any_size(encoding: str, *, height: int = 64, width: int = 64, channels: int = 3) -> ImageSpec:
    return spec(encoding, height=height, width=width, channels=channels).model_copy(update={"stored_sizes": "any"})


def photograph(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth and coloured, so that a good resize is known up to rounding."""
    y, x, channel = np.meshgrid(*(np.linspace(0, 1, n) for n in (height, width, channels)), indexing="ij")
    return (128 + 60 * np.sin(5 * x + channel) + 50 * np.cos(4 * y - 2 * channel)).astype(np.uint8)


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["png", "jpg", "npy"])
@pytest.mark.parametrize("stored", [(218, 178), (64, 64), (130, 70), (60, 200), (20, 30), (1000, 900), (65, 63)])
def test_any_stored_size_becomes_what_pillow_makes_of_it(encoding: str, stored: tuple[int, int]) -> None:
    pixels = photograph(*stored)
    expected = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    found = decode(encode(pixels, encoding), any_size(encoding))
    assert np.abs(found - expected).mean() < 2.5
    assert np.abs(found - expected).max() < 25


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["png", "jpg", "npy"])
@given(stored=st.tuples(*[st.integers(1, 70)] * 2), wanted=st.tuples(*[st.integers(1, 40)] * 2), grey=st.booleans())
@settings(max_examples=60)
def test_one_colour_stays_that_colour_at_every_size(
    encoding: str, stored: tuple[int, int], wanted: tuple[int, int], grey: bool
) -> None:
    pixels = np.full((*stored, 1 if grey else 3), 90, np.uint8)
    if not grey:
        pixels[:] = (200, 90, 40)
    found = decode(encode(pixels, encoding), any_size(encoding, height=wanted[0], width=wanted[1]))
    assert np.abs(found.astype(int) - pixels[0, 0]).max() <= 3


@pytest.mark.parametrize("encoding", ["png", "jpg", "npy"])
@pytest.mark.parametrize("stored", [(64, 64), (100, 130)])
def test_a_grey_image_may_stand_for_rgb_but_not_the_reverse(encoding: str, stored: tuple[int, int]) -> None:
    grey = decode(encode(photograph(*stored, 1), encoding), any_size(encoding, channels=1))
    stands_for_rgb = decode(encode(photograph(*stored, 1), encoding), any_size(encoding))
    assert np.array_equal(stands_for_rgb, np.repeat(grey, 3, axis=2))
    with pytest.raises(BadImageError, match="expected 1 channels, found 3"):
        decode(encode(photograph(*stored), encoding), any_size(encoding, channels=1))


def test_cmyk_is_refused_since_its_colours_depend_on_an_ink_profile() -> None:
    buffer = io.BytesIO()
    Image.fromarray(photograph(20, 20)).convert("CMYK").save(buffer, "jpeg")
    with pytest.raises(BadImageError, match="expected a grey or RGB JPEG, found CMYK"):
        decode(buffer.getvalue(), any_size("jpg"))


def test_the_pixels_are_taken_as_they_are_stored_whatever_exif_says() -> None:
    plain, turned = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(photograph(40, 60))
    picture.save(plain, "jpeg")
    picture.save(turned, "jpeg", exif=exif)
    image = any_size("jpg", height=20, width=30)
    assert np.array_equal(decode(plain.getvalue(), image), decode(turned.getvalue(), image))


@pytest.mark.parametrize("encoding", ["png", "jpg", "npy"])
def test_a_forged_size_is_refused_before_any_decoder_runs(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(encode(photograph(16, 16), encoding))
    if encoding == "png":
        data[16:24] = (60_000).to_bytes(4, "big") * 2
    elif encoding == "jpg":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = (60_000).to_bytes(2, "big") * 2
    else:
        data[:128] = data[:128].replace(b"(16, 16, 3), }      ", b"(60000, 60000, 3), }")[:128]
    for decoder in ("simplejpeg.decode_jpeg", "cv2.imdecode", "np.frombuffer"):
        monkeypatch.setattr(f"trainer.data.format.decode.{decoder}", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(BadImageError, match="expected from 1 to 67,108,864 pixels, found 60000 x 60000"):
        decode_into(np.empty((64, 64, 3), np.uint8), bytes(data), any_size(encoding))


@pytest.mark.parametrize("encoding", ["png", "jpg", "npy"])
def test_damage_at_any_size_is_refused(encoding: str) -> None:
    image = any_size(encoding)
    data = encode(picture(2, spec(encoding, height=90, width=80, channels=3)), encoding)
    for cut in range(0, len(data) - 16, len(data) // 60):
        with pytest.raises(BadImageError):
            decode(data[:cut], image)
    for strange in ({"png", "jpg", "npy"} - {encoding}) | {"text"}:
        wrong = b"<html>404" if strange == "text" else encode(photograph(90, 80), strange)
        with pytest.raises(BadImageError, match="expected a"):
            decode(wrong, image)
