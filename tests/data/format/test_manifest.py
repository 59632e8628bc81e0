import json
from pathlib import Path

import pytest

from tests.support.tiny_data import write_tiny
from trainer.data.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from trainer.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "data")
    return tmp_path / "data"


def edit(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        read_manifest(folder)
    return str(error.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = write_tiny(tmp_path / "data", train=23, test=11, samples_per_shard=5)
    assert read_manifest(tmp_path / "data") == written
    assert (written.num_samples("train"), written.num_samples("test")) == (23, 11)
    assert [shard.samples for shard in written.splits["train"].shards] == [5, 5, 5, 5, 3]


def test_no_folder(tmp_path: Path) -> None:
    assert f"No data folder {tmp_path / 'none'}" in refusal(tmp_path / "none")


def test_a_file_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "No data folder" in refusal(tmp_path / "file")


def test_an_empty_folder(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert "has no manifest.json" in message
    assert "paretrain data digits --out" in message


def test_a_garbled_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_bytes(b'{"format_version": 2, "na')
    assert "is not JSON" in refusal(folder)


def test_a_binary_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00")
    assert "is not JSON" in refusal(folder)


def test_a_manifest_that_is_a_list(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_text("[]")
    assert "format version None" in refusal(folder)


def test_an_unknown_version(folder: Path) -> None:
    edit(folder, format_version=1)
    assert "has format version 1; this paretrain reads version 2" in refusal(folder)


def test_wrong_types_unknown_keys_and_absent_ones_are_named(folder: Path) -> None:
    edit(folder, tasks=[{"name": "left", "classes": ["a", "b"], "kind": "guess"}], colour="red", input=None)
    message = refusal(folder)
    for place in ("tasks.0", "colour", "input"):
        assert f"  {place}: " in message


def test_a_file_name_cannot_leave_the_folder(folder: Path) -> None:
    splits = json.loads((folder / MANIFEST_NAME).read_text())["splits"]
    splits["train"]["shards"][0]["file"] = "../elsewhere.tar"
    edit(folder, splits=splits)
    assert "splits.train.shards.0.file" in refusal(folder)


def test_a_task_named_twice(folder: Path) -> None:
    edit(folder, tasks=[{"name": "left", "kind": "classification", "classes": ["a", "b"]}] * 2)
    assert "task names must be unique, found twice: left" in refusal(folder)


def test_unknown_names_get_a_suggestion(folder: Path) -> None:
    manifest = read_manifest(folder)
    with pytest.raises(UserError, match="no task 'digits'; did you mean 'digit'"):
        manifest.select_tasks(["even", "digits"])
    with pytest.raises(UserError, match="no split 'tset'; did you mean 'test'"):
        manifest.num_samples("tset")


@pytest.mark.parametrize("names", [[], ["even", "even"]])
def test_tasks_must_be_some_and_different(folder: Path, names: list[str]) -> None:
    with pytest.raises(UserError, match="Expected one or more different tasks"):
        read_manifest(folder).select_tasks(names)


def test_tasks_come_in_the_order_asked_for(folder: Path) -> None:
    assert [task.name for task in read_manifest(folder).select_tasks(["digit", "even"])] == ["digit", "even"]


def test_the_fingerprint_follows_the_data_and_nothing_else(folder: Path) -> None:
    manifest = read_manifest(folder)
    found = manifest.fingerprint("train")

    def changed(**changes: object) -> str:
        return Manifest.model_validate(manifest.model_dump() | changes).fingerprint("train")

    assert found != manifest.fingerprint("test")
    assert found == changed(name="other", made_by={"by": "hand"})
    assert found != changed(tasks=manifest.model_dump()["tasks"][:1])
    assert found != changed(input=manifest.model_dump()["input"] | {"mean": (0.4,)})
    other = manifest.model_dump()["splits"]
    other["train"]["shards"][0]["sha256"] = "0" * 64
    assert found != changed(splits=other)
