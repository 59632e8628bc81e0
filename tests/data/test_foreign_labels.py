"""Labels as other programs write them: names, booleans, nested, in lists, in members of their own, or missing."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_data import picture, spec
from trainer.data.format.decode import encode
from trainer.data.format.foreign import ForeignSpec
from trainer.data.format.manifest import Manifest
from trainer.data.format.tables import load_index
from trainer.data.format.verify import verify_shards
from trainer.data.sources.webdataset.index import index_folder
from trainer.errors import UserError

IMAGE = spec("jpg", height=16, width=16, channels=3)
COUNT = 6

Members = Callable[[int], Mapping[str, bytes]]


def photo(number: int, encoding: str = "jpg") -> bytes:
    return encode(picture(number, IMAGE), encoding)


def index(folder: Path, members: Members, description: str, mode: str = "w", name: str = "a.tar") -> Manifest:
    with tarfile.open(folder / name, mode) as tar:
        for number in range(COUNT):
            for extension, content in members(number).items():
                info = tarfile.TarInfo(f"{number:03d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    if "input:" not in description:
        description = f"input: {{encoding: jpg, height: 16, width: 16}}\n{description}"
    (folder / "tasks.yaml").write_text(f'splits: {{train: "{name}"}}\n{description}')
    manifest = index_folder(folder, folder / "tasks.yaml", folder / "data")
    verify_shards(folder / "data", manifest, checksum=True)
    return manifest


def labels(folder: Path, members: Members, description: str) -> list[list[float]]:
    """Return the labels of each task."""
    manifest = index(folder, members, description)
    _, labels_NT = load_index(folder / "data", manifest, "train")
    return labels_NT[:].T.tolist()


def of_json(value: Callable[[int], object]) -> Members:
    return lambda i: {"jpg": photo(i), "json": json.dumps(value(i)).encode()}


def of_text(value: Callable[[int], str]) -> Members:
    return lambda i: {"jpg": photo(i), "cls": value(i).encode()}


CLS_2, CLS_3 = (f"labels: cls\ntasks: [{{name: a, classes: {count}}}]" for count in (2, 3))
JSON_2 = "tasks: [{name: a, classes: 2}]"
THREE = [0, 1, 2, 0, 1, 2]
TWO = [0, 1, 0, 1, 0, 1]


@pytest.mark.long
@pytest.mark.parametrize(
    ("members", "description", "expected"),
    [
        (
            of_text(lambda i: ["cat", "dog", "emu"][i % 3]),
            "labels: cls\ntasks: [{name: a, classes: [cat, dog, emu]}]",
            [THREE],
        ),
        (of_text(lambda i: f"{i % 3 + 1}\n"), "labels: cls\ntasks: [{name: a, classes: [1, 2, 3]}]", [THREE]),
        (of_text(lambda i: f"{i % 3}.0"), CLS_3, [THREE]),
        (
            of_text(lambda i: ["0", "None", " N/A"][i % 3]),
            CLS_3,
            [[0, -1, -1] * 2],
        ),
        (of_text(lambda i: ["False", "True"][i % 2]), "labels: cls\ntasks: [{name: a, classes: [no, yes]}]", [TWO]),
        (
            of_json(lambda i: {"animal": ["cat", "dog", "emu"][i % 3], "colour": i % 2}),
            "tasks: [{name: animal, classes: [cat, dog, emu]}, {name: colour, classes: 2}]",
            [THREE, TWO],
        ),
        (
            of_json(lambda i: {"smile": bool(i % 2), "hat": float(i % 2), "age": 20 + i}),
            "tasks: [{name: smile, classes: 2}, {name: hat, classes: 2}, {name: age, kind: regression}]",
            [TWO, TWO, [20, 21, 22, 23, 24, 25]],
        ),
        (of_json(lambda i: {"a": bool(i % 2)}), "tasks: [{name: a, classes: ['true', 'false']}]", [[1, 0] * 3]),
        (of_json(lambda i: {"a": 1 if i % 2 else -1}), "tasks: [{name: a, classes: [-1, 1]}]", [TWO]),
        (
            of_json(lambda i: {"labels": {"age": 20.5 + i, "sex": i % 2}, "id": i}),
            "tasks: [{name: a, kind: regression, from: json/labels/age}, {name: s, classes: 2, from: json/labels/sex}]",
            [[20.5, 21.5, 22.5, 23.5, 24.5, 25.5], TWO],
        ),
        (
            of_json(lambda i: [i % 2, (i // 2) % 2, 1]),
            "tasks: [{name: a, classes: 2}, {name: b, classes: 2}, {name: c, classes: 2}]",
            [TWO, [0, 0, 1, 1, 0, 0], [1] * 6],
        ),
        (of_json(lambda i: {"x": [7, i % 3]}), "tasks: [{name: a, classes: 3, from: json/x/1}]", [THREE]),
        (
            lambda i: {"jpg": photo(i), "age.cls": b"%d" % (i % 3), "sex.cls": b"%d" % (i % 2)},
            "tasks: [{name: age, classes: 3, from: age.cls}, {name: sex, classes: 2, from: sex.cls}]",
            [THREE, TWO],
        ),
        (
            of_json(lambda i: {"label": -1 if i % 3 == 0 else i % 2}),
            "tasks: [{name: label, classes: 2, missing: -1}]",
            [[-1, 1, 0, -1, 0, 1]],
        ),
        (
            of_json(lambda i: {"label": "unknown" if i % 2 else "b"}),
            "missing: [unknown, -1]\ntasks: [{name: label, classes: [a, b]}]",
            [[1, -1, 1, -1, 1, -1]],
        ),
        (of_text(lambda i: str(i % 3 - 1)), f"missing: -1\n{CLS_2}", [[-1, 0, 1] * 2]),
        (
            of_text(lambda i: str(i % 3 - 1)),
            "labels: cls\ntasks: [{name: a, classes: 2, missing: -1}]",
            [[-1, 0, 1] * 2],
        ),
        (
            of_json(lambda i: [i % 2, i % 3 - 1]),
            "tasks: [{name: a, classes: 2}, {name: b, classes: 2, missing: -1}]",
            [TWO, [-1, 0, 1] * 2],
        ),
        (of_json(lambda i: {"a": [None, 1][i % 2]}), JSON_2, [[-1, 1] * 3]),
        (of_json(lambda i: {"a": ["", "NaN", 1][i % 3]}), JSON_2, [[-1, -1, 1] * 2]),
        (of_text(lambda i: ["NA", "SA"][i % 2]), "labels: cls\ntasks: [{name: a, classes: [SA, NA]}]", [[1, 0] * 3]),
        (
            lambda i: {"jpg": photo(i)} | ({"cls": b"%d" % (i % 3)} if i % 3 else {}),
            CLS_3,
            [[-1, 1, 2] * 2],
        ),
        (
            lambda i: {"JPEG": photo(i), "CLS": b"%d\n" % (i % 3)},
            CLS_3,
            [THREE],
        ),
    ],
)
def test_labels_as_they_come(tmp_path: Path, members: Members, description: str, expected: list[list[float]]) -> None:
    assert labels(tmp_path, members, description) == expected


def test_a_missing_number_is_meant_however_it_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = of_json(lambda i: {"a": ["-1", -1.0, 20.5][i % 3], "b": ["-9", True, 0][i % 3]})
    tasks = 'tasks: [{name: a, kind: regression, missing: -1}, {name: b, classes: 2, missing: ["-9", -99, unknown]}]'
    a, b = labels(tmp_path, members, tasks)
    np.testing.assert_array_equal(a, [np.nan, np.nan, 20.5] * 2)
    assert b == [-1, 1, 0] * 2
    assert "no label is -99.0 or 'unknown', which `missing` names" in caplog.text


def test_nan_is_missing(tmp_path: Path) -> None:
    members = of_json(lambda i: {"age": float("nan") if i % 2 else 20.5})
    (found,) = labels(tmp_path, members, "tasks: [{name: age, kind: regression}]")
    np.testing.assert_array_equal(found, [20.5, np.nan] * 3)


def test_a_member_has_a_name_and_an_extension(tmp_path: Path) -> None:
    """The input may be input.JPEG, beside a mask.png that is the target of a task of another name."""
    mask = encode(np.eye(16, dtype=np.uint8)[..., None], "png")
    members = lambda i: {"input.JPEG": photo(i), "mask.png": mask, "outputs.cls": b"1"}  # noqa: E731
    tasks = "tasks: [{name: parts, kind: segmentation, classes: [a, b], from: mask.png}, {name: a, classes: 2}]"
    manifest = index(
        tmp_path, members, f"input: {{from: input.jpg, height: 16, width: 16}}\nlabels: outputs.cls\n{tasks}"
    )
    assert manifest.foreign is not None
    assert (manifest.input.encoding, manifest.foreign.input) == ("jpg", "input.jpg")
    index_NM, labels_NT = load_index(tmp_path / "data", manifest, "train")
    assert labels_NT[:].tolist() == [[1]] * COUNT
    assert (index_NM["bytes"][:, 1] == len(mask)).all()


def test_the_only_member_of_the_encoding_is_the_input(tmp_path: Path) -> None:
    members = lambda i: {"input.jpg": photo(i), "cls": b"1"}  # noqa: E731
    manifest = index(tmp_path, members, CLS_2)
    assert manifest.foreign == ForeignSpec(labels="cls", input="input.jpg")
    (tmp_path / "c").mkdir()
    inputs = "input: {encoding: left.jpg, height: 16, width: 16}"
    two = lambda i: {"left.jpg": photo(i), "right.jpg": photo(i), "cls": b"1"}  # noqa: E731
    manifest = index(tmp_path / "c", two, f"{inputs}\n{CLS_2}")
    assert manifest.foreign == ForeignSpec(labels="cls", input="left.jpg")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"has members \['cls', 'left.jpg', 'right.jpg'\], expected \['jpg'\]"):
        index(tmp_path / "b", two, CLS_2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("members", "description", "message"),
    [
        (
            of_json(lambda i: {"a": -1}),
            JSON_2,
            "If -1 means that there is none, add missing: -1",
        ),
        (of_text(lambda i: "catt"), "labels: cls\ntasks: [{name: a, classes: [cat, dog]}]", "Did you mean 'cat'?"),
        (
            of_json(lambda i: {"a": {"b": 1}}),
            JSON_2,
            "Name what is inside with from: MEMBER/KEY",
        ),
        (of_json(lambda i: {"a": 0.5}), JSON_2, "a class number from 0 to 1, found 0.5"),
        (of_json(lambda i: {"a": "old"}), "tasks: [{name: a, kind: regression}]", "a finite number of at most"),
        (of_json(lambda i: [1, 0]), JSON_2, "or a list of 1, found [1, 0]"),
        (
            of_json(lambda i: {"a": 1}),
            "tasks: [{name: a, classes: 2, from: json/a/b}]",
            "json/a/b: 'b' should be a key",
        ),
        (lambda i: {"jpg": photo(i), "json": b"{"}, JSON_2, "its labels are not JSON"),
        (
            of_json(lambda i: {}),
            "tasks: [{name: a, kind: segmentation, classes: [a, b], from: json/a}]",
            "`from` names it without keys",
        ),
        (of_json(lambda i: {}), f"foreign: {{labels: x}}\n{JSON_2}", "unknown key 'foreign'"),
        (
            lambda i: {"jpg": photo(i), "age.cls": b"1", "sex.cls": b"1"},
            CLS_2,
            "Labels that samples have: 'age.cls', 'sex.cls'.",
        ),
    ],
)
def test_what_a_label_should_be_is_said(tmp_path: Path, members: Members, description: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        index(tmp_path, members, description)
    assert message in str(error.value)


@pytest.mark.parametrize(("mode", "packer"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_packed_tar_is_refused_in_words(tmp_path: Path, mode: str, packer: str) -> None:
    with pytest.raises(UserError, match=rf"a.tar.gz: .* it is packed by {packer}\. .*\nUnpack it first"):
        index(tmp_path, of_text(lambda i: "1"), CLS_2, mode, "a.tar.gz")


def test_manifests_that_say_nothing_new_stay_as_they_were() -> None:
    assert ForeignSpec(labels="cls").model_dump() == {"labels": "cls"}
