"""What is ours in the cache, and what is never read, written or removed: all else."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.copies import PLENTY, copy_of, fetch_all, kept, shards
from tests.support.data_server import Server, serving
from tests.support.tiny_data import write_tiny
from trainer.data.format.manifest import MANIFEST_NAME, read_manifest
from trainer.data.format.origin import ORIGIN_NAME, copy_name, origin, origin_content
from trainer.data.format.verify import verify_shards
from trainer.data.remote.cache import arriving, fetch, open_shard
from trainer.data.remote.copies import copy_at, held_files
from trainer.data.remote.folder import local_folder, open_folder
from trainer.data.remote.room import make_room
from trainer.errors import UserError

pytestmark = pytest.mark.timeout(60)

Put = Callable[[Path], object]


@pytest.fixture
def server(original: Path, tmp_path: Path) -> Iterator[Server]:
    """Serve a data folder that a test may change."""
    with serving(Path(shutil.copytree(original, tmp_path / "srv"))) as server:
        yield server


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def evict_all(cache_dir: Path) -> None:
    """Leave room for what may never go alone."""
    make_room(cache_dir, 0, sum(status.st_size for _, status, may_go in held_files(cache_dir) if not may_go))


def test_a_mark_outside_the_configured_cache_is_ignored(original: Path, tmp_path: Path, cache_dir: Path) -> None:
    """Even in a folder with the right name: whoever made the data chose that, too."""
    url = "http://127.0.0.1:9/x"
    evil = Path(shutil.copytree(original, tmp_path / "elsewhere" / copy_name(url)))
    (evil / ORIGIN_NAME).write_text(json.dumps({"url": url, "max_bytes": 1}))
    (evil / "train-000000.tar").unlink()
    assert origin(evil) == url
    assert copy_at(evil, cache_dir, PLENTY) is None
    with pytest.raises(UserError, match=r"train-000000\.tar"):
        verify_shards(evil, read_manifest(evil), checksum=False)
    with pytest.raises(FileNotFoundError):
        open_shard(evil, read_manifest(evil).split("train").shards[0], None)


@pytest.mark.parametrize(
    "mark",
    [
        b'{"url": "http://another/x"}',
        b'{"url": "pipe:touch hit"}',
        b'{"url": 7}',
        b"[" * 50_000,
        b"\xff\xfe",
        b"[]",
        b'{"url": "http://a/' + b"x" * (1 << 17) + b'"}',
    ],
)
def test_an_unsound_mark_makes_no_copy(original: Path, cache_dir: Path, mark: bytes) -> None:
    folder = Path(shutil.copytree(original, cache_dir / copy_name("http://a/x")))
    (folder / ORIGIN_NAME).write_bytes(mark)
    assert copy_at(folder, cache_dir, PLENTY) is None
    before = content(cache_dir)
    evict_all(cache_dir)
    assert content(cache_dir) == before


def test_the_bound_is_the_configurations(original: Path, cache_dir: Path) -> None:
    url = "http://a/x"
    folder = Path(shutil.copytree(original, cache_dir / copy_name(url)))
    (folder / ORIGIN_NAME).write_text(json.dumps({"url": url, "max_bytes": 1}))
    copy = copy_at(folder, cache_dir, PLENTY)
    assert copy is not None
    assert copy.max_bytes == PLENTY


def test_a_cache_in_a_folder_of_data_sets_leaves_them_alone(server: Server, original: Path, cache_dir: Path) -> None:
    """Whatever else lies there: data, data with a mark, links to data, loose files."""
    shutil.copytree(original, cache_dir / "mine")
    shutil.copytree(original, cache_dir / "marked")
    (cache_dir / "marked" / ORIGIN_NAME).write_bytes(origin_content(server.url))
    (cache_dir / "link").symlink_to(cache_dir / "mine")
    (cache_dir / "loose.tar").write_bytes(b"x" * 100_000)
    before = content(cache_dir)
    folder = open_folder(server.url, cache_dir, PLENTY)
    fetch_all(folder)
    evict_all(cache_dir)
    assert not kept(folder)
    assert {name: found for name, found in content(cache_dir).items() if not name.startswith(folder.name)} == before
    make_room(cache_dir, 1, sum(path.stat().st_size for path in folder.iterdir()) + 1)  # the others do not count


def test_nothing_is_removed_for_a_file_that_will_never_fit(server: Server, cache_dir: Path) -> None:
    """Its size is what a server says."""
    folder = open_folder(server.url, cache_dir, PLENTY)
    fetch_all(folder)
    before = content(folder)
    with pytest.raises(UserError, match="is full"):
        make_room(cache_dir, 1 << 60, PLENTY)
    assert content(folder) == before


def test_foreign_files_in_a_copy_stay_and_do_not_count(server: Server, cache_dir: Path, tmp_path: Path) -> None:
    folder = open_folder(server.url, cache_dir, PLENTY)
    fetch_all(folder)
    before = content(folder)
    (folder / "thesis.tar").write_bytes(b"mine")
    (folder / "notes.part").write_bytes(b"mine")
    (folder / "train-000000.tar.part").write_bytes(b"ours")
    (folder / "sub").mkdir()
    (folder / "sub" / "train-000000.tar").write_bytes(b"mine")
    (folder / "\x1b[31m.part").write_bytes(b"mine")
    (tmp_path / "precious").write_bytes(b"mine")
    (folder / "train-000001.tar").unlink()
    (folder / "train-000001.tar").symlink_to(tmp_path / "precious")
    names = {path.name for path, _, _ in held_files(cache_dir)}
    assert names == (before.keys() - {".lock", "train-000001.tar"}) | {"train-000000.tar.part"}
    assert arriving(copy_of(folder)).keys() == {"train-000000.tar", "notes"}
    evict_all(cache_dir)
    assert (folder / "thesis.tar").exists()
    assert (folder / "notes.part").exists()
    assert (folder / "sub" / "train-000000.tar").exists()
    assert (folder / "train-000001.tar").is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert not (folder / "train-000000.tar").exists()
    assert not (folder / "train-000000.tar.part").exists()


# What is in the place of a copy


def test_a_folder_in_the_place_of_a_copy_is_not_taken_over(server: Server, original: Path, cache_dir: Path) -> None:
    folder = local_folder(server.url, cache_dir)
    shutil.copytree(original, folder)
    before = content(cache_dir)
    with pytest.raises(UserError, match="Nothing in it was changed"):
        open_folder(server.url, cache_dir, PLENTY)
    assert content(cache_dir) == before


def test_a_link_in_the_place_of_a_copy_is_not_followed(server: Server, cache_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    local_folder(server.url, cache_dir).symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match="it is a link"):
        open_folder(server.url, cache_dir, PLENTY)
    assert not list((tmp_path / "home").iterdir())


def test_the_cache_itself_may_be_a_link(server: Server, tmp_path: Path) -> None:
    """To a larger disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    folder = open_folder(server.url, tmp_path / "link", PLENTY)
    for place in (tmp_path / "link", tmp_path / "disk"):
        copy = copy_at(folder, place, PLENTY)
        assert copy is not None
        assert copy.folder.parent == tmp_path / "disk"
    fetch_all(folder)
    evict_all(tmp_path / "link")
    assert not kept(folder)


def test_a_copy_that_was_begun_is_taken_up(server: Server, cache_dir: Path) -> None:
    """A process that was killed between the first files of a copy."""
    folder = local_folder(server.url, cache_dir)
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / f"{ORIGIN_NAME}.new").write_text("{")
    fetch_all(open_folder(server.url, cache_dir, PLENTY))


@pytest.mark.long
@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", [ORIGIN_NAME, MANIFEST_NAME, ".lock", "train-000000.tar", "train-000000.tar.part"])
def test_anything_else_in_the_place_of_a_file_is_one_sentence(
    server: Server, cache_dir: Path, name: str, put: Put
) -> None:
    folder = open_folder(server.url, cache_dir, PLENTY)
    (folder / name).unlink(missing_ok=True)
    put(folder / name)

    def read() -> None:
        open_folder(server.url, cache_dir, PLENTY)
        os.close(open_shard(folder, shards(folder)[0], copy_of(folder)))

    with pytest.raises(UserError, match=re.escape(name)):
        read()


def test_no_link_in_a_copy_is_written_through(server: Server, cache_dir: Path, tmp_path: Path) -> None:
    folder = open_folder(server.url, cache_dir, PLENTY)
    shard = shards(folder)[0]
    (tmp_path / "precious").write_bytes(b"mine")
    failed, part = folder / f"{shard.file}.failed", folder / f"{shard.file}.part"
    failed.symlink_to(tmp_path / "precious")
    (server.folder / shard.file).unlink()
    with pytest.raises(UserError, match="404"):
        fetch(copy_of(folder), shard)
    assert not failed.is_symlink()
    part.unlink()
    part.symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="is a link"):
        fetch(copy_of(folder), shard)
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_what_another_process_says_cannot_write_to_the_terminal(server: Server, cache_dir: Path) -> None:
    folder = open_folder(server.url, cache_dir, PLENTY)
    failed = folder / f"{shards(folder)[0].file}.failed"
    failed.write_text("No\x1b[2J way\nEnd")
    os.utime(failed, (4e9, 4e9))
    with pytest.raises(UserError) as error:
        fetch(copy_of(folder), shards(folder)[0])
    assert str(error.value) == "No\\x1b[2J way\nEnd"


# Other data at the same address


def republish(server: Server, **changes: int) -> None:
    shutil.rmtree(server.folder)
    write_tiny(server.folder, **changes)


def test_new_data_replaces_what_the_old_manifest_names(server: Server, cache_dir: Path, tmp_path: Path) -> None:
    folder = open_folder(server.url, cache_dir, PLENTY)
    fetch_all(folder)
    (folder / "thesis.tar").write_bytes(b"mine")
    (folder / "sub").mkdir()
    (tmp_path / "precious").write_bytes(b"mine")
    (folder / "train-000001.tar").unlink()
    (folder / "train-000001.tar").symlink_to(tmp_path / "precious")
    republish(server, train=17)
    open_folder(server.url, cache_dir, PLENTY)
    assert kept(folder) == {"thesis.tar"}
    assert (folder / "sub").is_dir()
    assert (tmp_path / "precious").read_bytes() == b"mine"
    fetch_all(folder)
    verify_shards(folder, read_manifest(folder), checksum=True, is_copy=True)


def test_new_data_with_the_name_of_a_foreign_file_is_refused(server: Server, cache_dir: Path) -> None:
    folder = open_folder(server.url, cache_dir, PLENTY)
    fetch_all(folder)
    (folder / "train-000005.tar").write_bytes(b"mine")
    before = content(folder)
    republish(server, train=40)
    with pytest.raises(UserError, match=r"train-000005\.tar does not belong to the copy"):
        open_folder(server.url, cache_dir, PLENTY)
    assert content(folder) == before


@pytest.mark.long
@pytest.mark.parametrize("page", [b"<html>log in</html>", b"[" * 50_000, b"", b'{"format_version": 2}', b"\xff"])
def test_a_page_in_place_of_the_manifest_costs_no_copy(server: Server, cache_dir: Path, page: bytes) -> None:
    """The page is that of a network that wants a login, say."""
    folder = open_folder(server.url, cache_dir, PLENTY)
    fetch_all(folder)
    before = content(folder)
    (server.folder / MANIFEST_NAME).write_bytes(page)
    with pytest.raises(UserError, match="It was fetched from"):
        open_folder(server.url, cache_dir, PLENTY)
    assert content(folder) == before


def test_an_old_manifest_that_nobody_understands_removes_nothing(server: Server, cache_dir: Path) -> None:
    folder = open_folder(server.url, cache_dir, PLENTY)
    fetch_all(folder)
    (folder / MANIFEST_NAME).write_text("{")
    before = content(folder)
    with pytest.raises(UserError, match="Delete it with: rm -r"):
        open_folder(server.url, cache_dir, PLENTY)
    evict_all(cache_dir)
    assert content(folder) == before


@pytest.mark.parametrize("name", [ORIGIN_NAME, MANIFEST_NAME, "x.part", "x.failed", "x.new"])
def test_a_server_cannot_name_the_caches_own_files(server: Server, cache_dir: Path, name: str) -> None:
    path = server.folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"train-000001.tar"', f'"{name}"'))
    with pytest.raises(UserError, match="a name that the cache reserves"):
        open_folder(server.url, cache_dir, PLENTY)
    assert not list(cache_dir.iterdir())
