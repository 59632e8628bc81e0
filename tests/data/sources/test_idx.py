import gzip
from pathlib import Path

import numpy as np
import pytest

from tests.support.idx import idx
from trainer.data.sources import idx as module
from trainer.data.sources.idx import read_idx
from trainer.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte"])
@pytest.mark.parametrize("zipped", [False, True])
def test_files_are_found_gzipped_or_not(tmp_path: Path, name: str, zipped: bool) -> None:
    content = idx(IMAGES)
    (tmp_path / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    file, array = read_idx(tmp_path, "train", "images", axes=3)
    assert file == content
    assert np.array_equal(array, IMAGES)


def test_labels_have_one_axis(tmp_path: Path) -> None:
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([7, 1], np.uint8)))
    assert read_idx(tmp_path, "t10k", "labels", axes=1)[1].tolist() == [7, 1]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no train-images-idx3-ubyte .*\nPoint --mnist at the folder"):
        read_idx(tmp_path, "train", "images", axes=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found b''"),
        (b"<html><body>404 Not Found", "found b'<htm'"),
        (idx(IMAGES[0]), r"found b'\x00\x00\x08\x02'"),
        (b"\0\0\x0d" + idx(IMAGES)[3:], r"found b'\x00\x00\r\x03'"),
        (idx(IMAGES)[:10], "is not an IDX file of images"),
        (idx(IMAGES)[:-1], "says shape (3, 4, 5), so 76 bytes, but it has 75"),
        (idx(IMAGES) + b"x", "so 76 bytes, but it has 77"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "but it has 16"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_that_is_no_whole_idx_file(tmp_path: Path, content: bytes, message: str, zipped: bool) -> None:
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * zipped)
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(UserError) as error:
        read_idx(tmp_path, "train", "images", axes=3)
    assert message in str(error.value)
    assert f"fetch {path.name} again" in str(error.value)


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(idx(IMAGES))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[:-12], bytes(flipped), b"plain", whole[:5]):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            read_idx(tmp_path, "train", "images", axes=3)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(UserError, match="unpacks to more than 1,000 bytes"):
        read_idx(tmp_path, "train", "images", axes=3)
