import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_data import TASKS, sign, write_tiny
from trainer.data.format.index import index_shard
from trainer.data.format.manifest import read_manifest
from trainer.data.format.specs import MISSING
from trainer.data.format.tables import load_index
from trainer.errors import UserError

GOOD = (("a.json", b'{"even": 1, "digit": 4}'), ("a.npy", b"pixels"))


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path / "x.tar", "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path / "x.tar"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        index_shard(path, number=0, members=["npy"], tasks=TASKS)
    return str(error.value)


def test_rows_point_at_the_images(tmp_path: Path) -> None:
    path = shard(tmp_path, *GOOD, ("b.npy", b"more"), ("b.json", b'{"digit": null, "note": "extra keys are fine"}'))
    rows, labels, keys, _ = index_shard(path, number=7, members=["npy"], tasks=TASKS)
    content = path.read_bytes()
    assert [content[row["offset"] :][: row["bytes"]] for row in rows[:, 0]] == [b"pixels", b"more"]
    assert rows["shard"].tolist() == [[7], [7]]
    assert labels.tolist() == [[1, 4], [MISSING, MISSING]]
    assert keys == ["a", "b"]


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"")
    assert "x.tar is empty" in refusal(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.npy", b"")], "sample 'a' has members ['npy'], expected ['json', 'npy']"),
        ([*GOOD, ("a.pyd", b"")], "has members ['json', 'npy', 'pyd']"),
        ([*GOOD, ("a.npy", b"")], "member 'a.npy' appears twice"),
        ([*GOOD, ("b.json", b"{}"), ("b.npy", b""), *GOOD], "key 'a' appears twice"),
        ([("a.json", b"{}"), ("b.json", b"{}"), ("a.npy", b""), ("b.npy", b"")], "sample 'a' has members ['json']"),
        ([("a.json", b"{"), ("a.npy", b"")], "sample 'a': its labels are not JSON"),
        ([("a.json", b"[1, 0]"), ("a.npy", b"")], "its labels should be a JSON object, found b'[1, 0]'"),
        ([("a.json", b'{"even": 2}'), ("a.npy", b"")], "task 'even' should be null or a class number from 0 to 1"),
    ],
)
def test_a_shard_that_is_no_run_of_whole_samples_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    assert message in refusal(shard(tmp_path, *members))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"garbage", "expected a .npy array, found b'garbage'"),
        (np.arange(3), "expected rows of shape (1,) of"),
    ],
)
def test_a_faulty_index_file(tmp_path: Path, content: object, message: str) -> None:
    write_tiny(tmp_path)
    path = tmp_path / "train.index.npy"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    if content is not None:
        sign(tmp_path)
    with pytest.raises(UserError) as error:
        load_index(tmp_path, read_manifest(tmp_path), "train")
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_labels_table_of_pickles_is_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("unpickled",)

    write_tiny(tmp_path)
    np.save(tmp_path / "train.labels.npy", np.array([Bomb()], object), allow_pickle=True)
    sign(tmp_path)
    with pytest.raises(UserError, match=r"train.labels.npy: expected an array of numbers, found object"):
        load_index(tmp_path, read_manifest(tmp_path), "train")


def test_the_table_says_what_the_members_say(tmp_path: Path) -> None:
    manifest = write_tiny(tmp_path)
    table = load_index(tmp_path, manifest, "train")[1].tolist()
    told = []
    for spec in manifest.splits["train"].shards:
        with tarfile.open(tmp_path / spec.file) as tar:
            for info in tar:
                if info.name.endswith(".json"):
                    content = tar.extractfile(info)
                    assert content is not None
                    found = json.loads(content.read())
                    told.append([MISSING if found.get(t.name) is None else found[t.name] for t in TASKS])
    assert table == told
