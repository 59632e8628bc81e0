"""Data folders that are damaged."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_data import write_tiny
from trainer.data.format.manifest import MANIFEST_NAME, read_manifest
from trainer.data.format.names import load_names
from trainer.data.format.verify import verify_shards
from trainer.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "data")
    return tmp_path / "data"


def refusal(folder: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        verify_shards(folder, read_manifest(folder), **{"checksum": False} | options)
    message = str(error.value)
    assert f"Copy {folder} again from where it was made, or delete it" in message
    return message


def edit_manifest(folder: Path, old: str, new: str) -> None:
    path = folder / MANIFEST_NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("checksum", [False, True])
def test_a_sound_folder_passes(folder: Path, checksum: bool) -> None:
    verify_shards(folder, read_manifest(folder), checksum=checksum)


def test_a_missing_shard(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()
    assert "train-000001.tar cannot be read: No such file" in refusal(folder)


def test_a_dangling_link(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()
    (folder / "train-000001.tar").symlink_to("nowhere")
    assert "train-000001.tar cannot be read: No such file" in refusal(folder)


def test_a_directory_for_a_shard(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()
    (folder / "train-000001.tar").mkdir()
    with pytest.raises(UserError, match=r"train-000001.tar is not a regular file"):
        verify_shards(folder, read_manifest(folder), checksum=False)


@pytest.mark.parametrize("keep", [0, 1, 512, 5_120])
def test_a_truncated_shard(folder: Path, keep: int) -> None:
    path = folder / "test-000002.tar"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"test-000002.tar: expected 10240 bytes, as in manifest.json, found {keep}" in refusal(folder)


def test_one_flipped_bit_is_found_by_the_checksum(folder: Path) -> None:
    path = folder / "train-000002.tar"
    content = bytearray(path.read_bytes())
    content[1200] ^= 1
    path.write_bytes(content)
    verify_shards(folder, read_manifest(folder), checksum=False)
    message = refusal(folder, checksum=True)
    assert "train-000002.tar: its content is not that of manifest.json: expected sha256" in message


def test_a_wrong_count(folder: Path) -> None:
    edit_manifest(folder, '"samples": 5', '"samples": 4')
    assert "train-000000.tar: the manifest says 4 samples, the index has 5" in refusal(folder)


@pytest.mark.parametrize("name", ["train.index.npy", "train.labels.npy"])
def test_index_and_labels_are_always_checked(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert f"{name}: its content is not that of manifest.json" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "found"),
    [('["a"', "is not JSON"), ('["a"]', "names of 23 samples"), (str([*range(23)]), "names of 23 samples")],
)
def test_names_are_checked_where_they_are_read(folder: Path, content: str, found: str) -> None:
    path = folder / "train.names.json"
    spec = {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    edit_manifest(folder, '"index":', f'"names": {json.dumps(spec)}, "index":')
    manifest = read_manifest(folder)
    verify_shards(folder, manifest, checksum=True)

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            load_names(folder, manifest, "train")

    refused("train.names.json cannot be read")
    path.write_text(content)
    refused(found)
    path.write_text(content.replace("[", "("))
    refused("train.names.json: its content is not that of manifest.json")


def test_labels_that_the_shards_do_not_have_are_found_even_with_matching_checksums(folder: Path) -> None:
    path = folder / "train.labels.npy"
    before = path.read_bytes()
    table = np.load(path)
    table[3, 1] += 1
    np.save(path, table)
    edit_manifest(folder, hashlib.sha256(before).hexdigest(), hashlib.sha256(path.read_bytes()).hexdigest())
    verify_shards(folder, read_manifest(folder), checksum=False)
    assert "train-000000.tar: its samples are not those of the index" in refusal(folder, checksum=True)


def test_shards_of_another_data_set(tmp_path: Path, folder: Path) -> None:
    write_tiny(tmp_path / "other", train=9)
    shutil.copy(tmp_path / "other" / "train.index.npy", folder / "train.index.npy")
    assert "train.index.npy: expected" in refusal(folder)


def test_only_the_named_splits_are_looked_at(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()
    verify_shards(folder, read_manifest(folder), ["test"], checksum=True)


def test_ranks_share_the_shards_between_them(folder: Path) -> None:
    manifest = read_manifest(folder)
    (folder / "train-000003.tar").unlink()
    found = []
    for rank in range(3):
        try:
            verify_shards(folder, manifest, checksum=True, rank=rank, world_size=3)
        except UserError:
            found.append(rank)
    assert found == [0]
