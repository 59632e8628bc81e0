"""Tasks without labels, misspelt or absent: said where data are made, read, checked and trained on."""

import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_data import picture, spec
from trainer.cli import main
from trainer.data.format.coverage import check_trainable
from trainer.data.format.decode import encode
from trainer.data.format.manifest import read_manifest
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ClassificationSpec
from trainer.data.format.tables import load_index
from trainer.data.sources.webdataset.index import index_folder
from trainer.errors import UserError

Said = pytest.CaptureFixture[str]
IMAGE = spec("png", height=6, width=8, channels=3)
HEAD = 'splits: {train: "*.tar"}\ninput: {encoding: png, height: 6, width: 8}\n'


def write_tar(path: Path, members: Callable[[int], Mapping[str, bytes]], count: int = 6) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            for extension, content in members(number).items():
                info = tarfile.TarInfo(f"{number:03d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def image(number: int) -> bytes:
    return encode(picture(number, IMAGE), "png")


def indexed(folder: Path, description: str) -> Path:
    (folder / "tasks.yaml").write_text(HEAD + description)
    index_folder(folder, folder / "tasks.yaml", folder / "data")
    return folder / "data"


def test_a_misspelt_task_is_named_with_the_keys_that_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {"animal": 1, "labels": {"sex": 0}}
    write_tar(tmp_path / "a.tar", lambda i: {"png": image(i), "json": json.dumps(labels | {"colour": i % 2}).encode()})
    data = indexed(tmp_path, "tasks: [{name: aminal, classes: 3}, {name: colour, classes: 2}]")
    said = "has a label of task 'aminal'. Did you mean 'json/animal'? Labels that samples have: 'json/animal', 'json/c"
    assert said in caplog.text
    with pytest.raises(UserError, match="Did you mean 'json/animal'"):
        check_trainable(data, read_manifest(data), None, load_index(data, read_manifest(data), "train"))


def test_a_description_of_which_no_task_has_a_label_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", lambda i: {"png": image(i), "json": b'{"labels": {"sex": 1, "age": 2}}'})
    with pytest.raises(UserError, match=r"Did you mean 'json/labels/sex'\? Labels .* 'json/labels/age', 'json/lab"):
        indexed(tmp_path, "tasks: [{name: sex, classes: 2}]")
    with pytest.raises(UserError, match=r"Did you mean 'json/labels/age'\? .* Name one of them with from: MEMBER/KEY"):
        indexed(tmp_path, "tasks: [{name: labels.age, kind: regression}]")
    assert not (tmp_path / "data" / "manifest.json").exists()


@pytest.mark.long
def test_a_converter_names_the_labels_that_belong_to_no_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Said
) -> None:
    tasks = [ClassificationSpec(name=name, classes=("no", "yes")) for name in ("smiling", "male")]
    samples = [Sample(image(i), {"smilling": i % 2, "male": 1 if i else None}) for i in range(4)]
    write_shards(tmp_path, name="x", made_by={}, inputs=IMAGE, tasks=tasks, splits={"train": samples})
    assert "has a label of task 'smiling'. Did you mean 'smilling'? Labels that samples have: 'male'" in caplog.text
    assert "all labels of task 'male' in the train split are 'yes'" in caplog.text
    assert capsys.readouterr().out.splitlines() == [
        "task smiling: classification, 2 classes: no, yes; labelled: 0 of 4 train",
        "task male: classification, 2 classes: no, yes; labelled: 3 of 4 train",
    ]
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "Did you mean 'smilling'?" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.processes
def test_check_shows_absent_tasks_as_absent(tmp_path: Path, capsys: Said) -> None:
    inputs = spec(height=28, width=28)
    tasks = [ClassificationSpec(name=name, classes=("no", "yes")) for name in ("often", "once")]
    samples = [
        Sample(encode(picture(i, inputs), "npy"), {"often": i % 2} | ({"once": i % 2} if i < 2 else {}))
        for i in range(256)
    ]
    splits = {"train": samples, "test": samples[:2]}
    write_shards(tmp_path / "data", name="x", made_by={}, inputs=inputs, tasks=tasks, splits=splits)
    options = [f"data.path={tmp_path}/data", f"output={tmp_path}/runs", "parallel.processes=1", "train.global_batch=4"]
    assert main(["check", "configs/digits.yaml", *options]) == 0
    said = "".join(capsys.readouterr().out.split())
    assert "onceabsent:nolabelinthisbatch" in said.replace("│", "")
    assert "onceloss" not in said


def test_a_few_samples_of_every_shard_are_decoded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "two").mkdir()
    half = image(0)[:-40]
    for folder, damaged in ((tmp_path, 6), (tmp_path / "two", 1)):
        write_tar(folder / "a.tar", lambda i: {"png": image(i), "cls": b"%d" % (i % 2)})
        write_tar(folder / "b.tar", lambda i, n=damaged: {"png": half if i < n else image(i), "cls": b"1"})
    description = "labels: cls\ntasks: [{name: a, classes: 2}]"
    with pytest.raises(UserError, match=r"b.tar: none of the 4 samples that were tried can be used, such as sample 6"):
        indexed(tmp_path, description)
    indexed(tmp_path / "two", description)
    assert "1 of 8 samples that were tried cannot be used, such as sample 6 (" in caplog.text


def test_targets_are_decoded_too(tmp_path: Path) -> None:
    mask = encode(np.full((6, 8, 1), 3, np.uint8), "png")
    write_tar(tmp_path / "a.tar", lambda i: {"png": image(i), "seg.png": mask})
    with pytest.raises(UserError, match=r"none of the 4 samples .* expected class numbers from 0 to 1"):
        indexed(tmp_path, "tasks: [{name: seg, kind: segmentation, classes: [a, b]}]")


@pytest.mark.parametrize(("values", "said"), [((0, 255), "if it should be a class"), ((1, 1), "the class 'b' only")])
def test_masks_of_one_class_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: tuple[int, int], said: str
) -> None:
    mask = np.full((6, 8, 1), values[0], np.uint8)
    mask[2:4] = values[1]
    write_tar(tmp_path / "a.tar", lambda i: {"png": image(i), "seg.png": encode(mask, "png")})
    data = indexed(tmp_path, "tasks: [{name: seg, kind: segmentation, classes: [a, b]}]")
    assert "all masks of task 'seg' that were looked at have the class" in caplog.text
    assert said in caplog.text
    manifest = read_manifest(data)
    (warning,) = check_trainable(data, manifest, None, load_index(data, manifest, "train"))
    assert said in warning


def test_photos_that_lie_on_their_side_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    plain = encode(picture(0, IMAGE), "jpg")
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    write_tar(tmp_path / "a.tar", lambda i: {"jpg": plain if i else turned, "cls": b"%d" % (i % 2)})
    (tmp_path / "tasks.yaml").write_text(HEAD.replace("png", "jpg") + "labels: cls\ntasks: [{name: a, classes: 2}]")
    index_folder(tmp_path, tmp_path / "tasks.yaml", tmp_path / "data")
    assert "1 of 4 images that were tried do not lie upright" in caplog.text


def test_the_members_that_are_there_are_listed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", lambda i: {"webp": b"RIFF", "caption.txt": b"a cat"})
    with pytest.raises(UserError, match=r"sample '000' has members \['caption.txt', 'webp'\], expected"):
        indexed(tmp_path, "labels: cls\ntasks: [{name: a, classes: 2}]")


def test_the_converter_says_how_long_it_took(tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(20)))
    assert main(["data", "table", "--csv", f"{tmp_path}/t.csv", "--targets", "y", "--out", f"{tmp_path}/data"]) == 0
    assert re.fullmatch(r"t: \d+ train, \d+ test samples in \d+\.\d s", capsys.readouterr().out.splitlines()[-1])
