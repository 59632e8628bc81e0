"""Photos that lie on their side, and pictures that are there twice."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.support.tiny_data import picture, spec
from trainer.data.format.coverage import warnings
from trainer.data.format.decode import encode
from trainer.data.format.overlap import Overlap, find_overlaps
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ClassificationSpec
from trainer.data.sources.image_folder import write_image_folder
from trainer.data.sources.orientation import orientation, turn, turn_upright, upright_shape
from trainer.data.sources.tables.options import Columns, SplitBy

ORIENTATION = 0x0112
H, W = 16, 24


def photo(found: int, seed: int = 0) -> bytes:
    smooth = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (2, 3, 3), np.uint8)).resize((W, H))
    exif = Image.Exif()
    exif[0x010F], exif[ORIENTATION] = "A camera", found
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("found", range(1, 9))
def test_photos_are_turned_as_pillow_turns_them(found: int) -> None:
    data = photo(found)
    assert orientation(data) == found
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(turn(pixels, found), expected)
    assert upright_shape(data, "jpg") == expected.shape
    upright = turn_upright(data, "jpg")
    assert (upright == data) == (found == 1)
    assert orientation(upright) == 1
    off = np.abs(np.asarray(Image.open(io.BytesIO(upright))).astype(int) - expected)
    assert off.mean() < 3


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\x00\x08Exif\0\0", photo(6)[:40], b"\x89PNG"])
def test_what_is_no_whole_photo_is_taken_for_upright(data: bytes) -> None:
    assert orientation(data) == 1


def write_folder(folder: Path, contents: dict[str, bytes], table: str) -> None:
    (folder / "images").mkdir()
    for name, content in contents.items():
        (folder / "images" / name).write_bytes(content)
    (folder / "labels.csv").write_text(table)


def test_a_folder_of_photos_is_written_upright(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["a.jpg,x,train", "b.jpg,y,train", "c.jpg,x,test"]
    upright = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (W, H, 3), np.uint8)).save(upright, "JPEG")
    contents = {"a.jpg": photo(6), "b.jpg": upright.getvalue(), "c.jpg": photo(8, 1)}
    write_folder(tmp_path, contents, "file,kind,part\n" + "\n".join(rows))
    manifest = write_image_folder(
        tmp_path / "images", tmp_path / "labels.csv", tmp_path / "data", Columns(split=SplitBy("part"))
    )
    assert manifest.input.shape == (W, H, 3)
    assert manifest.input.stored_sizes == "exact", "all are the same, once they are upright"
    assert "2 images are turned upright" in capsys.readouterr().out
    with tarfile.open(tmp_path / "data" / "train-000000.tar") as tar:
        member = tar.extractfile("000000001.jpg")
        assert member is not None
        assert member.read() == contents["b.jpg"], "the bytes of the others are not changed"


def test_jpegs_among_pngs_are_stored_pixel_for_pixel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (W, H), np.uint8)).save(grey, "PNG")
    # The second one has the wrong name; the third one lies on its side.
    contents = {"a.png": grey.getvalue(), "b.png": photo(1), "c.JPG": photo(6), "d.jpg": photo(1, 1)}
    rows = ["a.png,x,train", "b.png,y,train", "c.JPG,x,train", "d.jpg,y,test"]
    write_folder(tmp_path, contents, "file,kind,part\n" + "\n".join(rows))
    out = tmp_path / "data"
    write_image_folder(tmp_path / "images", tmp_path / "labels.csv", out, Columns(split=SplitBy("part")), size=(W, H))
    assert "3 JPEG images are stored as PNG" in capsys.readouterr().out
    with tarfile.open(out / "train-000000.tar") as tar:
        for number, name in enumerate(["a.png", "b.png", "c.JPG"]):
            member = tar.extractfile(f"{number:09d}.png")
            assert member is not None
            expected = ImageOps.exif_transpose(Image.open(io.BytesIO(contents[name])))
            off = np.abs(np.asarray(Image.open(member)).astype(int) - np.asarray(expected))
            assert off.max() <= 3, "two decoders of JPEG"


def test_equal_images_are_kept_in_one_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number}.png" for number in range(60)]
    image = spec("png", height=4, width=4, channels=3)
    contents = {name: encode(picture(number // 2, image), "png") for number, name in enumerate(names)}
    table = "file,kind\n" + "".join(f"{name},{'ab'[number % 2]}\n" for number, name in enumerate(names))
    write_folder(tmp_path, contents, table)
    manifest = write_image_folder(tmp_path / "images", tmp_path / "labels.csv", tmp_path / "data", Columns())
    assert "60 images are byte for byte equal to others; equal images are kept in one split" in capsys.readouterr().out
    assert sum(manifest.num_samples(split) for split in manifest.splits) == 60
    assert manifest.num_samples("test") % 2 == 0
    assert find_overlaps(tmp_path / "data", manifest) == {}


def test_equal_images_in_two_splits_are_counted(tmp_path: Path) -> None:
    image = spec()
    task = ClassificationSpec(name="a", classes=("no", "yes"))
    samples = [Sample(encode(picture(number, image), "npy"), {"a": number % 2}) for number in range(8)]
    splits = {"train": samples[:5], "test": samples[3:], "val": samples[5:]}
    manifest = write_shards(tmp_path, name="x", made_by={}, inputs=image, tasks=[task], splits=splits)
    assert find_overlaps(tmp_path, manifest) == {"test": Overlap(2, (0, 3))}
    (warning,) = warnings(tmp_path, manifest)
    assert "2 of 5 test images are byte for byte equal to a train image, such as sample 0 to train sample 3" in warning
