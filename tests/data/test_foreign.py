"""Shards that another program wrote: names as they come, members that nobody asks for, labels in their own way."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.loaders import eval_loader
from tests.support.tiny_data import picture, spec
from trainer.cli import main
from trainer.data.format.decode import encode
from trainer.data.format.foreign import ForeignSpec
from trainer.data.format.manifest import read_manifest
from trainer.data.format.names import load_names
from trainer.data.format.specs import MISSING, ClassificationSpec, RegressionSpec
from trainer.data.format.tar import walk_tar
from trainer.data.format.verify import verify_shards
from trainer.data.reading.batch import Batch
from trainer.data.sources.webdataset.index import index_folder
from trainer.errors import UserError

IMAGE = spec("png", height=6, width=8, channels=3)
CLS = """
splits: {train: "train-*.tar", test: "test/*.tar"}
input: {encoding: png, height: 6, width: 8}
labels: cls
tasks: [{name: digit, classes: 10}]
"""
LONG = "a-name-of-more-than-a-hundred-letters-which-no-plain-header-can-hold-" * 2


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    tar.addfile(info, io.BytesIO(content))


def write_foreign(folder: Path, split: str, shard: int, labels: dict[str, bytes], format: int) -> None:
    """Four samples, each named in another way."""
    names = (f"./{shard}/0.PNG", f"{shard}/1.png", f"{LONG}{shard}.Png", f"ünï{shard}.png")
    path = folder / (f"{split}-{shard}.tar" if split == "train" else f"{split}/{shard}.tar")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        add(tar, f"{shard}", kind=tarfile.DIRTYPE)
        for number, name in enumerate(names):
            sample_id = 4 * shard + number
            stem = name.rpartition(".")[0]
            add(tar, name, encode(picture(sample_id, IMAGE), "png"))
            add(tar, f"{stem}.txt", b"a caption")
            if number == 1:
                add(tar, f"{shard}/._1.png", b"what a file manager leaves behind")
            for extension, content in labels.items():
                add(tar, f"{stem}.{extension}", content % sample_id)


@pytest.fixture(params=[tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["posix", "gnu"])
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two train shards and a test shard."""
    for split, shard in (("train", 0), ("train", 1), ("test", 0)):
        labels = {"cls": b"%d\n", "json": b'{"digit": %d, "age": 1.5}'}
        write_foreign(tmp_path / "raw", split, shard, labels, request.param)
    (tmp_path / "tasks.yaml").write_text(CLS)
    return tmp_path / "raw"


def read(folder: Path, tasks: list[str]) -> Batch:
    loader = eval_loader(folder, split="train", tasks=tasks, batch_size=8)
    (batch,) = loader
    loader.close()
    return batch


def test_shards_are_used_where_they_are(raw: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in raw.rglob("*.tar")}
    out = tmp_path / "data"
    assert main(["data", "index", str(raw), "--tasks", str(tmp_path / "tasks.yaml"), "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in raw.rglob("*.tar")} == before
    manifest = read_manifest(out)
    verify_shards(out, manifest, checksum=True)
    assert manifest.foreign == ForeignSpec(labels="cls")
    assert manifest.tasks == (ClassificationSpec(name="digit", classes=tuple("0123456789")),)
    assert [shard.file for shard in manifest.splits["test"].shards] == ["test-0.tar"]
    assert all((out / shard.file).is_symlink() for split in manifest.splits.values() for shard in split.shards)
    pixels = np.stack([picture(i, IMAGE) for i in range(8)])
    np.testing.assert_allclose(manifest.input.mean, (pixels / 255).mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(manifest.input.std, (pixels / 255).std((0, 1, 2)), atol=1e-6)
    batch = read(out, ["digit"])
    assert np.array_equal(batch.inputs, pixels)
    assert batch.targets["digit"].tolist() == list(range(8))
    keys = [f"{shard}/0 {shard}/1 {LONG}{shard} ünï{shard}".split() for shard in (0, 1)]
    assert load_names(out, manifest, "train") == [*keys[0], *keys[1]]


def test_files_outside_of_samples_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        add(tar, "folder", kind=tarfile.DIRTYPE)
        for name in ("README", "folder/LICENSE", ".DS_Store"):
            add(tar, name, b"text")
        for number in range(2):
            add(tar, f"{number}.png", encode(picture(number, IMAGE), "png"))
            add(tar, f"{number}.cls", b"%d" % number)
    description = CLS.replace(', test: "test/*.tar"', "").replace("train:", "training:")
    (tmp_path / "tasks.yaml").write_text(description)
    manifest = index_folder(tmp_path, tmp_path / "tasks.yaml")
    assert load_names(tmp_path, manifest, "training") == ["0", "1"]
    assert "no split is called train, which training reads. Its splits: training." in caplog.text


def test_a_tar_without_samples_is_refused_with_what_it_has(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        add(tar, "0/png", encode(picture(0, IMAGE), "png"))
    (tmp_path / "tasks.yaml").write_text(CLS.replace(', test: "test/*.tar"', ""))
    with pytest.raises(UserError, match=r"contains no sample: expected members such as KEY.png, found '0/png'"):
        index_folder(tmp_path, tmp_path / "tasks.yaml")


def test_keys_that_are_in_two_shards_are_named_with_their_shard(tmp_path: Path) -> None:
    write_foreign(tmp_path, "train", 0, {"cls": b"%d"}, tarfile.PAX_FORMAT)
    (tmp_path / "train-1.tar").write_bytes((tmp_path / "train-0.tar").read_bytes())
    (tmp_path / "tasks.yaml").write_text(CLS.replace(', test: "test/*.tar"', ""))
    names = load_names(tmp_path, index_folder(tmp_path, tmp_path / "tasks.yaml"), "train")
    assert names is not None
    assert (names[0], names[-1]) == ("train-0.tar/0/0", "train-1.tar/ünï0")


def test_members_lie_where_the_standard_library_finds_them(raw: Path) -> None:
    for path in raw.rglob("*.tar"):
        with tarfile.open(path) as tar:
            expected = [(info.name, info.offset_data, info.size) for info in tar if info.isfile()]
        assert [tuple(member) for member in walk_tar(path.read_bytes(), "x", tolerant=True)] == expected


def test_labels_of_several_tasks_in_json_beside_the_shards(tmp_path: Path) -> None:
    labels = (b'{"digit": %d, "age": 20.5}', b'{"age": 10.5, "x": %d}')
    for shard, text in enumerate(labels):
        write_foreign(tmp_path, "train", shard, {"JSON": text}, tarfile.PAX_FORMAT)
    (tmp_path / "tasks.yaml").write_text(
        "splits: {train: 'train-*'}\n"
        "input: {encoding: png, height: 3, width: 4, mean: [0.1, 0.2, 0.3], std: [0.4, 0.5, 0.6]}\n"
        "tasks: [{name: age, kind: regression, unit: years}, {name: digit, classes: [zero, one, two, three]}]\n"
    )
    manifest = index_folder(tmp_path, tmp_path / "tasks.yaml")
    verify_shards(tmp_path, manifest, checksum=True)
    assert manifest.tasks[0] == RegressionSpec(name="age", unit="years", mean=15.5, std=5.0)
    assert manifest.input.mean == (0.1, 0.2, 0.3)
    batch = read(tmp_path, ["digit", "age"])
    assert batch.inputs.shape == (8, 3, 4, 3)
    assert batch.targets["digit"].tolist() == [0, 1, 2, 3] + [MISSING] * 4
    assert batch.targets["age"].tolist() == [1.0] * 4 + [-1.0] * 4
    with pytest.raises(UserError, match=r"already is a data folder: it has a manifest.json"):
        index_folder(tmp_path, tmp_path / "tasks.yaml")


def test_what_is_missing_is_asked_for(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "index", str(raw)]) == 2
    said = capsys.readouterr().err
    assert "test/0.tar begins with ./0/0.PNG (" in said
    assert 'such as\nsplits: {train: "train-*.tar", test: "val-*.tar"}\n' in said
    assert len(said.splitlines()) <= 12
    (tmp_path / "empty" / "folder.tar").mkdir(parents=True)
    (tmp_path / "empty" / "link.tar").symlink_to("nowhere")
    assert main(["data", "index", str(tmp_path / "empty")]) == 2
    assert "has no shards: no *.tar anywhere in it" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train-*.tar", "training-*.tar", "has no training-*.tar; found: test, train-0.tar, train-1.tar"),
        ("labels: cls", "labels: text", "has a label of task 'digit'. Labels that samples have: 'cls', 'txt'."),
        ("labels: cls", "labels: txt", "a class number from 0 to 9, found 'a caption'"),
        ("classes: 10", "classes: 5", "label of task 'digit' should be null or a class number from 0 to 4, found 5"),
        ("encoding: png", "encoding: jpg", "sample '0/0' has members ['cls', 'png', 'txt'], expected ['jpg']"),
        ("height: 6,", "", "input.height: Field required"),
        ("classes: 10", "clases: 10", "tasks.0.classification.clases: Extra inputs are not permitted"),
        ("classes: 10", "kind: poetry", "tasks.0: Input tag 'poetry' found using 'kind' does not match any of"),
        (CLS, "- a list", "is not a description of shards"),
        (CLS, "{", "is not YAML"),
        (CLS, "a: &a [*a]", "line 1, column 4: an alias"),
        ("name: digit", "name: !!timestamp 2020-01-01", "is not allowed here"),
        ("name: digit, classes: 10", "name: a, classes: 2}, {name: a, classes: 2", "must be unique, found twice: a"),
        ("classes: 10", "classes: 1000000000000", "tasks.0.classification.classes: Input should be a valid array\nExp"),
        ("height: 6", "height: 1000000", "input.height: Input should be less than or equal to 8192"),
        ("width: 8", "width: 8, mean: [.nan, .nan, .nan]", "input.mean.0: Input should be a finite number"),
        ("train: ", "a/../../b: ", "splits.a/../../b.[key]: String should match pattern"),
        ("train-*.tar", "/etc/*.tar", "Expected a pattern of files in "),
        ("train-*.tar", "", "Expected a pattern of files in "),
        ("test/*.tar", "train-1.tar", "train-1.tar is in two splits"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    for split, shard in (("train", 0), ("train", 1), ("test", 0)):
        write_foreign(tmp_path / "raw", split, shard, {"cls": b"%d"}, tarfile.PAX_FORMAT)
    assert old in CLS
    (tmp_path / "tasks.yaml").write_text(CLS.replace(old, new))
    with pytest.raises(UserError) as error:
        index_folder(tmp_path / "raw", tmp_path / "tasks.yaml", tmp_path / "data")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 12
    assert not (tmp_path / "data" / "manifest.json").exists()


@pytest.mark.parametrize("damage", [b"xx path=a\n", b"0 path=a\n", b"12 pathname\n"])
def test_a_damaged_long_name_is_refused(damage: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, "PaxHeaders/a", damage, kind=tarfile.XHDTYPE)
        add(tar, "a.png", b"")
    with pytest.raises(UserError, match=r"x.tar: byte 512: expected a record `LENGTH KEY=VALUE`, found b"):
        list(walk_tar(buffer.getvalue(), "x.tar", tolerant=True))


def test_names_that_a_data_folder_cannot_hold(tmp_path: Path) -> None:
    write_foreign(tmp_path / "raw", "train", 0, {"cls": b"%d"}, tarfile.PAX_FORMAT)
    (tmp_path / "raw" / "train-0.tar").rename(tmp_path / "raw" / "train-#0.tar")
    (tmp_path / "tasks.yaml").write_text(CLS.replace(', test: "test/*.tar"', ""))
    with pytest.raises(UserError, match=r"train-#0.tar: shards of a data folder have names of letters"):
        index_folder(tmp_path / "raw", tmp_path / "tasks.yaml")
    with pytest.raises(UserError, match=r"Rename it\.$"):
        index_folder(tmp_path / "raw", tmp_path / "tasks.yaml", tmp_path / "out")


def test_shards_in_subfolders_need_links(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test/0.tar is in a subfolder of .*raw.\nChoose a new folder with --out"):
        index_folder(raw, tmp_path / "tasks.yaml")
    assert not (raw / "manifest.json").exists()


def test_links_need_an_empty_folder(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "train-0.tar").write_text("in the way")
    with pytest.raises(UserError, match=r"full is not empty \(found train-0.tar\)"):
        index_folder(raw, tmp_path / "tasks.yaml", tmp_path / "full")


def test_the_labels_are_json(tmp_path: Path) -> None:
    """A bare label serves one task alone."""
    write_foreign(tmp_path / "raw", "train", 0, {"cls": b"%d"}, tarfile.PAX_FORMAT)
    description = CLS.replace(', test: "test/*.tar"', "").replace("classes: 10}", "classes: 10}, {name: b, classes: 2}")
    (tmp_path / "tasks.yaml").write_text(description)
    with pytest.raises(UserError, match="its labels should be a JSON object, or a list of 2, found 0"):
        index_folder(tmp_path / "raw", tmp_path / "tasks.yaml", tmp_path / "data")
