"""Data made to do harm: nothing of it runs, nothing is written, nothing large is allocated."""

import gzip
import io
import json
import pickle
import resource
import tarfile
import tracemalloc
import zlib
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import tiny_data as tiny
from tests.support.loaders import train_loader
from trainer.data.format.decode import decode_into, encode
from trainer.data.format.index import index_shard
from trainer.data.format.manifest import read_manifest
from trainer.data.format.png import BadImageError
from trainer.data.format.verify import verify_shards
from trainer.data.remote.folder import open_folder
from trainer.errors import UserError


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def torch_bomb(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Bomb(path), buffer)
    return buffer.getvalue()


def shard(folder: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(folder / "x.tar", "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder / "x.tar"


def refusal(path: Path, member: str = "npy") -> str:
    with pytest.raises(UserError) as error:
        index_shard(path, number=0, members=[member], tasks=tiny.TASKS)
    return str(error.value).removeprefix(str(path))


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "json.pyd", "npy.pth"])
def test_members_that_hold_code_are_refused_and_run_nothing(extension: str, tmp_path: Path) -> None:
    bomb = torch_bomb(tmp_path / "hit") if "pth" in extension else pickle.dumps(Bomb(tmp_path / "hit"))
    path = shard(tmp_path, ("a.json", b"{}"), ("a.npy", b"x"), (f"a.{extension}", bomb))
    expected = sorted(["json", "npy", extension])
    assert refusal(path) == f": sample 'a' has members {expected}, expected ['json', 'npy']."
    assert not (tmp_path / "hit").exists()


def test_the_bombs_of_these_tests_do_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "pickle")))
    torch.load(io.BytesIO(torch_bomb(tmp_path / "pth")), weights_only=False)
    assert {path.name for path in tmp_path.iterdir()} == {"pickle", "pth"}


def test_code_under_the_name_of_an_image_is_a_bad_sample(tmp_path: Path) -> None:
    """In a folder whose checksums all fit, as an attacker would make it."""
    data = tmp_path / "data"
    tiny.write_tiny(data, test=1)
    train, index = data / "train-000000.tar", data / "train.index.npy"
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb(tmp_path / "hit")], object), allow_pickle=True)
    rows = np.load(index)
    for sample_id, content in enumerate([pickle.dumps(Bomb(tmp_path / "hit")), objects.getvalue()]):
        whole = bytearray(train.read_bytes())
        start, size = rows[sample_id, 0]["offset"], rows[sample_id, 0]["bytes"]
        whole[start : start + size] = content[:size].ljust(size, b"\0")
        train.write_bytes(whole)
        rows[sample_id, 0]["crc32"] = zlib.crc32(whole[start : start + size])
    np.save(index, rows)
    tiny.sign(data)
    verify_shards(data, read_manifest(data), checksum=True)
    with closing(train_loader(data, tasks=["even"], global_batch=23, seed=0)) as loader:
        next(loader)
        assert loader.streams[0].bad_samples.total == {"decode": 2}
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("name", ["train.index.npy", "train.labels.npy"])
def test_code_in_the_tables_is_refused(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    tiny.write_tiny(data)
    size = (data / name).stat().st_size
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb(tmp_path / "hit")], object), allow_pickle=True)
    (data / name).write_bytes(objects.getvalue()[:size].ljust(size, b"\0"))
    tiny.sign(data)
    with pytest.raises(UserError, match=rf"{name}: expected an array of numbers, found object"):
        verify_shards(data, read_manifest(data), checksum=False)
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("name", ["../../evil.npy", "/evil.npy", "a/../../evil.npy"])
def test_a_members_path_is_a_name_and_never_a_place(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    path = shard(inside, (name.replace(".npy", ".json"), b"{}"), (name, b"x"))
    before = sorted(tmp_path.rglob("*"))
    with suppress(UserError):
        index_shard(path, number=0, members=["npy"], tasks=tiny.TASKS)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/evil.npy").exists()


@pytest.mark.parametrize("path", ["pipe:touch hit", "pipe:touch hit |", "file:///x", "exec:touch hit"])
def test_no_command_is_a_data_path(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="No other scheme is supported"):
        open_folder(path, tmp_path / "cache", 1 << 30)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "file:///etc", "pipe:touch hit", "elsewhere", 7])
def test_a_folder_cannot_send_the_reader_anywhere(url: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that somebody else made, that says it is a copy, and lacks a shard: that is all there is to say."""
    tiny.write_tiny(tmp_path / "data")
    (tmp_path / "data" / "train-000000.tar").unlink()
    (tmp_path / "data" / "origin.json").write_text(json.dumps({"url": url, "max_bytes": 1 << 40}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"train-000000.tar"):
        verify_shards(tmp_path / "data", read_manifest(tmp_path / "data"), checksum=False)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# Sizes


def peak_bytes(path: Path, said: str) -> int:
    """What Python allocates on the way to the refusal."""
    tracemalloc.start()
    assert said in refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_bomb_of_zeros_is_not_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(5 << 20))
    (tmp_path / "x.tar").write_bytes(bomb)
    assert peak_bytes(tmp_path / "x.tar", "byte 0: expected a tar header, found b'\\x1f\\x8b") < 1 << 20
    path = shard(tmp_path, ("a.json", b"{}"), ("a.npy.gz", bomb))
    assert peak_bytes(path, "has members ['json', 'npy.gz'], expected ['json', 'npy']") < 1 << 20


def test_files_of_a_tebibyte_of_holes_are_not_read(tmp_path: Path) -> None:
    path = shard(tmp_path, ("a.json", b"{}"), ("a.npy", b"x"))
    with path.open("r+b") as stream:
        stream.truncate(1 << 40)
    assert peak_bytes(path, "empty blocks that are not the archive's end") < 1 << 20
    info = tarfile.TarInfo("a.json")
    info.size = 1 << 39
    with path.open("r+b") as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
    assert peak_bytes(path, "byte 0: member 'a.json' should have at most 268435456 bytes") < 1 << 20


def test_a_picture_that_claims_ten_gigabytes_allocates_none(tmp_path: Path) -> None:
    image = tiny.spec("jpg", height=16, width=16, channels=3).model_copy(update={"stored_sizes": "any"})
    jpeg = bytearray(encode(tiny.picture(0, image), "jpg"))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = (60_000).to_bytes(2, "big") * 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImageError, match="60000 x 60000"):
        decode_into(np.zeros(image.shape, np.uint8), bytes(jpeg), image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "a gibibyte"
