"""PNG of every kind, against Pillow, which shares no code with our decoder."""

import io

import numpy as np
import pytest
from PIL import Image

from trainer.data.format.decode import check_header, decode_into
from trainer.data.format.members import BadMemberError, check_member, decode_member
from trainer.data.format.npy import write_npy
from trainer.data.format.pixels import unmeasured
from trainer.data.format.png import BadImageError
from trainer.data.format.specs import DenseRegressionSpec, SegmentationSpec

H, W = 5, 7
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (H, W, 3), np.uint8)
ENTRIES = RNG.integers(0, 3, (H, W), np.uint8)


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_palette(entries: np.ndarray = ENTRIES, **options) -> bytes:
    """The masks of PASCAL VOC: small numbers, shown in colours."""
    image = Image.fromarray(entries).convert("P")
    image.putpalette([*range(200, 0, -1)][:96] * 8)
    image.frombytes(entries.tobytes())
    return png(image, **options)


def decoded(data: bytes, channels: int) -> np.ndarray:
    slot = np.zeros((H, W, channels), np.uint8)
    decode_into(slot, data, unmeasured(H, W, 3 if channels == 3 else 1, "png"))
    return slot


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "RGB"])
def test_kinds_of_one_meaning_are_converted(mode: str) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    channels = 1 if mode in ("L", "LA", "1") else 3
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(H, W, channels)
    assert np.array_equal(decoded(png(image), channels), expected)


def test_palettes_of_few_bits() -> None:
    assert np.array_equal(
        decoded(with_palette(bits=2), 3), np.asarray(Image.open(io.BytesIO(with_palette())).convert("RGB"))
    )


def test_sixteen_bits_keep_black_and_white() -> None:
    values = np.array([0, 128, 129, 257, 32768, 65535 - 129, 65535], np.uint16)
    image = Image.fromarray(np.tile(values, (H, 1)))
    assert decoded(png(image), 1)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_refused(mode: str) -> None:
    if mode == "P":
        data = with_palette(transparency=1)
    else:
        image = Image.fromarray(COLOURS).convert(mode)
        image.putalpha(Image.fromarray(np.eye(H, W, dtype=np.uint8) * 255))
        data = png(image)
    channels = 1 if mode == "LA" else 3
    with pytest.raises(BadImageError, match="transparent pixels; draw it on a background"):
        decoded(data, channels)
    spec = unmeasured(H, W, 3 if channels == 3 else 1, "png")
    check_header(data, spec)
    with pytest.raises(BadMemberError, match="transparent pixels"):
        check_member(data, spec, spec, whole=False)


SEGMENTATION = SegmentationSpec(name="parts", classes=("a", "b", "c"))
ANY = SEGMENTATION.model_copy(update={"stored_sizes": "any"})


def mask(data: bytes, spec: SegmentationSpec = SEGMENTATION, size: tuple[int, int] = (H, W)) -> np.ndarray:
    slot = np.full(size, 77, np.uint8)
    decode_member(slot, data, spec)
    return slot


@pytest.mark.parametrize(
    "data",
    [
        with_palette(),
        with_palette(bits=2),
        with_palette(bits=4),
        png(Image.fromarray(ENTRIES)),
        png(Image.fromarray(ENTRIES.astype(np.uint16))),
        png(Image.merge("LA", [Image.fromarray(ENTRIES), Image.new("L", (W, H), 255)])),
    ],
    ids=["palette", "2-bit palette", "4-bit palette", "grey", "16-bit", "grey and alpha"],
)
def test_masks_are_class_numbers(data: bytes) -> None:
    assert np.array_equal(mask(data), ENTRIES)


def test_a_mask_of_one_bit_has_the_classes_0_and_1() -> None:
    assert np.array_equal(mask(png(Image.fromarray(ENTRIES > 0))), ENTRIES > 0)


def test_255_of_a_palette_is_no_label() -> None:
    assert (mask(with_palette(np.full((H, W), 255, np.uint8))) == 255).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(Image.fromarray(COLOURS)), "a PNG of class numbers, grey or with a palette, found RGB colours"),
        (png(Image.fromarray(np.full((H, W), 256, np.uint16))), "expected class numbers up to 255, found 256"),
        (png(Image.fromarray(ENTRIES[1:])), "expected height x width x channels (5, 7, 1), found (4, 7, 1)"),
        (with_palette()[:-30], "refused"),
        (b"GIF89a" + bytes(40), "expected a PNG"),
    ],
)
def test_other_masks_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadMemberError) as error:
        mask(data)
    assert message in str(error.value)


def test_masks_and_depth_are_resized_by_nearest_neighbour() -> None:
    expected = np.asarray(Image.fromarray(ENTRIES).resize((14, 3), Image.Resampling.NEAREST))
    assert np.array_equal(mask(with_palette(), ANY, (3, 14)), expected)
    depth = RNG.normal(size=(H, W)).astype(np.float32)
    task = DenseRegressionSpec(name="depth", channels=1, stored_sizes="any")
    slot = np.zeros((3, 14, 1), np.float32)
    decode_member(slot, write_npy(depth.astype(np.float16)), task)
    expected = np.asarray(Image.fromarray(depth).resize((14, 3), Image.Resampling.NEAREST))
    np.testing.assert_allclose(slot[..., 0], expected, atol=2e-3)


def test_depth_may_lack_its_only_channel() -> None:
    depth = RNG.normal(size=(H, W)).astype(np.float32)
    slot = np.zeros((H, W, 1), np.float32)
    decode_member(slot, write_npy(depth), DenseRegressionSpec(name="depth", channels=1, mean=1.0, std=2.0))
    np.testing.assert_allclose(slot[..., 0], (depth - 1) / 2)
    with pytest.raises(BadMemberError, match=r"of shape \(5, 7, 2\), found float32 of shape \(5, 7\)"):
        decode_member(np.zeros((H, W, 2), np.float32), write_npy(depth), DenseRegressionSpec(name="flow", channels=2))


def test_exact_targets_are_described_as_before() -> None:
    assert "stored_sizes" not in SEGMENTATION.model_dump(mode="json")
    assert ANY.model_dump(mode="json")["stored_sizes"] == "any"
