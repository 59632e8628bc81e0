"""A data path becomes a folder on this machine."""

import shutil
from pathlib import Path

import pytest

from tests.support.copies import PLENTY, fetch_all, kept
from tests.support.data_server import Server, serving
from tests.support.tiny_data import write_tiny
from trainer.data.format.manifest import MANIFEST_NAME, read_manifest
from trainer.data.format.verify import verify_shards
from trainer.data.remote.folder import local_folder, open_folder
from trainer.errors import UserError

pytestmark = pytest.mark.usefixtures("impatient")


def test_places_in_the_cache_do_not_collide(tmp_path: Path) -> None:
    paths = ["https://a.org/train/shards", "https://a.org/test/shards", "http://a.org/train/shards", "s3://a/shards"]
    found = {local_folder(path, tmp_path) for path in paths}
    assert len(found) == 4
    assert all(path.parent == tmp_path and path.name.startswith("shards-") for path in found)
    assert local_folder("data/digits", tmp_path) == Path("data/digits")
    assert local_folder("s3://a/b", Path("~/x")).parent == Path.home() / "x"


def test_other_data_at_the_same_address_replaces_the_copy(tmp_path: Path) -> None:
    write_tiny(tmp_path / "remote")
    with serving(tmp_path / "remote") as server:
        folder = open_folder(server.url, tmp_path / "cache", PLENTY)
        fetch_all(folder)
        shutil.rmtree(tmp_path / "remote")
        write_tiny(tmp_path / "remote", train=17)
        assert open_folder(server.url, tmp_path / "cache", PLENTY) == folder
        assert not kept(folder)
        fetch_all(folder)
        verify_shards(folder, read_manifest(folder), checksum=True)


def test_without_its_server_a_copy_can_be_named_itself(server: Server, tmp_path: Path) -> None:
    folder = open_folder(server.url, tmp_path, PLENTY)
    server.faults[MANIFEST_NAME] = [503, 503]
    with pytest.raises(UserError) as error:
        open_folder(server.url, tmp_path, PLENTY)
    assert "answered 503" in str(error.value)
    assert str(error.value).endswith(f"To train on the copy from earlier: data.path={folder}")
    assert open_folder(str(folder), tmp_path, PLENTY) == folder


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"The cache .* cannot be written: .*\nChoose another folder with data.cache.dir"
    ):
        open_folder(server.url, tmp_path / "file", PLENTY)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"train-000001.tar"', '"../../x.tar"', "file: String should match pattern"),
        ('"train.index.npy"', '"/etc/passwd"', "file: String should match pattern"),
        ("{", "<html>", "is not JSON"),
    ],
)
def test_a_hostile_manifest_names_no_file_outside(tmp_path: Path, old: str, new: str, said: str) -> None:
    write_tiny(tmp_path / "remote")
    path = tmp_path / "remote" / MANIFEST_NAME
    path.write_text(path.read_text().replace(old, new, 1))
    with serving(tmp_path / "remote") as server, pytest.raises(UserError) as error:
        open_folder(server.url, tmp_path / "cache", PLENTY)
    assert said in str(error.value)
    assert f"It was fetched from {server.url}." in str(error.value)
    assert [name for name, _ in server.requests] == [MANIFEST_NAME]


@pytest.mark.parametrize("place", ["~nobody-of-that-name/x", "a\0b"])
def test_a_cache_that_cannot_be_named(place: str) -> None:
    with pytest.raises(UserError, match=r"data\.cache\.dir="):
        local_folder("http://a/x", Path(place))
