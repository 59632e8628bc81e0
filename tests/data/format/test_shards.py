import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset

from tests.support import rich_data as rich
from tests.support.rich_data import write_rich
from tests.support.tiny_data import TASKS, labels, picture, spec, write_tiny
from trainer.data.format.decode import decode_into, encode
from trainer.data.format.index import INDEX_DTYPE
from trainer.data.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ClassificationSpec
from trainer.data.format.tables import load_index
from trainer.data.format.verify import verify_shards
from trainer.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "data")
    return tmp_path / "data"


def write_samples(out: Path, samples: list[Sample]) -> Manifest:
    return write_shards(out, name="x", made_by={}, inputs=spec(), tasks=TASKS, splits={"train": samples})


def good_image() -> bytes:
    return encode(picture(0, spec()), "npy")


# What is written


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards(folder: Path) -> None:
    read = []
    for shard in read_manifest(folder).splits["train"].shards:
        read += list(webdataset.WebDataset(str(folder / shard.file), shardshuffle=False))
    assert len(read) == 23
    for sample_id, sample in enumerate(read):
        # A missing label takes no bytes.
        known = {name: label for name, label in labels(sample_id).items() if label is not None}
        assert json.loads(sample["json"]) == known
        slot = np.zeros(spec().shape, np.uint8)
        decode_into(slot, sample["npy"], spec())
        assert np.array_equal(slot, picture(sample_id, spec()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_every_kind_of_member(tmp_path: Path) -> None:
    write_rich(tmp_path, train=3)
    read = list(webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [f"{sample_id:09d}" for sample_id in range(3)]
    for sample_id, sample in enumerate(read):
        pixels_HWC = cv2.imdecode(np.frombuffer(sample["png"], np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.array_equal(pixels_HWC, picture(sample_id, rich.IMAGE))
        assert json.loads(sample["json"])["even"] == 1 - sample_id % 2
        parts_HW = cv2.imdecode(np.frombuffer(sample["parts.png"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(parts_HW, rich.parts(sample_id))
        assert ("depth.npy" in sample) == bool(sample_id % 3)
        if sample_id % 3:
            np.testing.assert_array_equal(np.load(io.BytesIO(sample["depth.npy"])), rich.depth(sample_id))


def test_the_same_samples_give_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    write_tiny(tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_the_manifest_describes_every_file(folder: Path) -> None:
    files = {file.file: file for split in read_manifest(folder).splits.values() for file in split.files}
    assert {path.name for path in folder.iterdir()} == set(files) | {MANIFEST_NAME}
    for name, file in files.items():
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)


def test_the_index_is_small() -> None:
    assert INDEX_DTYPE.itemsize <= 64


@pytest.mark.parametrize("encoding", ["png", "jpg"])
def test_other_encodings_are_written_and_verified(tmp_path: Path, encoding: str) -> None:
    manifest = write_tiny(tmp_path, image=spec(encoding, height=8, width=8, channels=3))
    verify_shards(tmp_path, manifest, checksum=True)


# Conversions that fail


def test_an_interrupted_conversion_looks_unfinished_and_starts_afresh(tmp_path: Path) -> None:
    out = tmp_path / "data"

    def interrupted() -> Iterator[Sample]:
        for sample_id in range(7):
            yield Sample(encode(picture(sample_id, spec()), "npy"), labels(sample_id))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(
            out,
            name="tiny",
            made_by={},
            inputs=spec(),
            tasks=TASKS,
            splits={"train": interrupted()},
            samples_per_shard=5,
        )
    with pytest.raises(UserError, match="contains an unfinished conversion"):
        read_manifest(out)
    assert not list(out.glob("*.tar"))
    manifest = write_tiny(out)
    verify_shards(out, manifest, checksum=True)
    write_tiny(tmp_path / "clean")
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "clean").iterdir()}


def test_data_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(UserError, match="already contains a data set"):
        write_tiny(folder)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"not empty \(found thesis.tex\)"):
        write_tiny(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Writing .*data failed"):
        write_tiny(tmp_path / "file" / "data")


@pytest.mark.parametrize("split", ["../../x", "hold out", "", ".x", "é"])
def test_a_split_is_no_path(split: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Expected letters, digits, .* in the name of a split, found"):
        write_shards(tmp_path / "a" / "b", name="x", made_by={}, inputs=spec(), tasks=TASKS, splits={split: []})
    assert not list(tmp_path.iterdir())


def test_faulty_tasks_are_named_before_anything_is_written(tmp_path: Path) -> None:
    for tasks, message in (([], "tasks: .*at least 1 item"), ([*TASKS, TASKS[0]], "tasks: .*found twice: even")):
        with pytest.raises(UserError, match=f"Data 'x' cannot be written:\n  {message}"):
            write_shards(tmp_path / "data", name="x", made_by={}, inputs=spec(), tasks=tasks, splits={})
    assert not list(tmp_path.iterdir())


def test_a_split_without_samples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The train split has no samples"):
        write_samples(tmp_path / "data", [])


@pytest.mark.parametrize("label", [10, -1, 1.0, True, "3", [3]])
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, label: object) -> None:
    samples = [Sample(good_image(), {"digit": 3}), Sample(good_image(), {"digit": label})]  # type: ignore[dict-item]
    with pytest.raises(UserError, match="sample '000000001': label of task 'digit' should be null or a class"):
        write_samples(tmp_path / "data", samples)


def test_an_image_that_does_not_decode_is_refused_where_it_would_be_evaluated_on(tmp_path: Path) -> None:
    image = spec("jpg", height=64, width=64)
    torn = Sample(encode(picture(0, image), "jpg")[:900], {"digit": 3}, name="face.jpg")
    splits = {"train": [torn], "test": [torn]}
    with pytest.raises(UserError, match=r"Sample 000000000 \(face.jpg\), jpg: Premature end of JPEG file"):
        write_shards(tmp_path / "data", name="x", made_by={}, inputs=image, tasks=TASKS, splits=splits)
    write_shards(tmp_path / "data", name="x", made_by={}, inputs=image, tasks=TASKS, splits={"train": [torn]})


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    wrong = encode(picture(0, spec(height=5)), "npy")
    with pytest.raises(UserError, match=r"Sample 000000001, npy: expected height x width x channels \(3, 4, 1\)"):
        write_samples(tmp_path / "data", [Sample(good_image(), {}), Sample(wrong, {})])


def test_many_classes_get_a_wider_table(tmp_path: Path) -> None:
    tasks = [ClassificationSpec(name="word", classes=tuple(map(str, range(40_000))))]
    manifest = write_shards(
        tmp_path / "data",
        name="x",
        made_by={},
        inputs=spec(),
        tasks=tasks,
        splits={"train": [Sample(good_image(), {"word": 39_999})]},
    )
    assert load_index(tmp_path / "data", manifest, "train")[1].tolist() == [[39_999]]
