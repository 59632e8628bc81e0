"""CSV files: what becomes of every cell, and what is refused, with its line."""

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support.loaders import eval_loader
from trainer.data.format.manifest import Manifest
from trainer.data.format.specs import MISSING, ClassificationSpec, FeaturesSpec, RegressionSpec
from trainer.data.format.verify import verify_shards
from trainer.data.sources.table import write_table
from trainer.data.sources.tables.options import SplitBy, TableColumns
from trainer.data.sources.tables.table_file import TableFile
from trainer.errors import UserError

HEADER = ("id", "height", "age", "town", "rooms", "price", "part")
ROWS = (
    # id, height, age, town, rooms, price, split
    ("a", "1.5", "30", "Ulm", "1", "1000.5", "train"),
    ("b", "2.5", "", "Bonn", "02", "", "train"),
    ("c", "NaN", "50", "Ulm", "3.0", "3000", "train"),
    ("d", "100", "99", "", "10", "7", "test"),
    ("e", "0", "0", "Köln", "", "9", "test"),
)


def table(folder: Path, rows: Sequence[Sequence[str]] = ROWS, header: Sequence[str] = HEADER) -> Path:
    path = folder / "houses.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write(folder: Path, **options) -> Manifest:
    standard = {"targets": ["town", "rooms", "price"], "ignore": ["id"], "split": SplitBy("part")}
    return write_table(table(folder), folder / "data", TableColumns(**standard | options))


def read(folder: Path, split: str, tasks: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    loader = eval_loader(folder, split=split, tasks=tasks, batch_size=100)
    (batch,) = loader
    loader.close()
    real = batch.sample_ids_B >= 0
    return batch.inputs[real].numpy(), {name: target[real].numpy() for name, target in batch.targets.items()}


def test_every_cell_becomes_what_it_is(tmp_path: Path) -> None:
    manifest = write(tmp_path, units={"price": "EUR"})
    verify_shards(tmp_path / "data", manifest, checksum=True)
    # Statistics are those of the train split, and an empty cell counts for nothing.
    assert manifest.input == FeaturesSpec(names=("height", "age"), mean=(2.0, 40.0), std=(0.5, 10.0))
    price = RegressionSpec(name="price", unit="EUR", mean=2000.25, std=999.75)
    assert manifest.tasks == (
        ClassificationSpec(name="town", classes=("Bonn", "Köln", "Ulm")),
        ClassificationSpec(name="rooms", classes=("1", "2", "3", "10")),
        price,
    )
    rows, targets = read(tmp_path / "data", "train", ["price", "town", "rooms"])
    np.testing.assert_array_equal(rows, np.array([[1.5, 30], [2.5, np.nan], [np.nan, 50]], np.float32))
    np.testing.assert_allclose(targets["price"], [-1, math.nan, 1], rtol=1e-6)
    assert targets["town"].tolist() == [2, 0, 2]
    assert targets["rooms"].tolist() == [0, 1, 2]
    rows, targets = read(tmp_path / "data", "test", ["town", "rooms"])
    np.testing.assert_array_equal(rows, [[100, 99], [0, 0]])
    assert targets["town"].tolist() == [MISSING, 1]
    assert targets["rooms"].tolist() == [3, MISSING]


def test_a_kind_can_be_said(tmp_path: Path) -> None:
    manifest = write(tmp_path, kinds={"rooms": "regression", "price": "classification"})
    rooms = manifest.tasks[1]
    assert isinstance(rooms, RegressionSpec)
    assert (rooms.unit, rooms.mean, rooms.std) == (None, 2.0, pytest.approx(math.sqrt(2 / 3)))
    assert manifest.tasks[2] == ClassificationSpec(name="price", classes=("1000.5", "3000", "7", "9"))


def test_hundreds_of_targets_by_a_pattern(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5, 3, (50, 203)).round(3)
    header = ["x", *(f"y{t}" for t in range(200)), "z", "w"]
    path = table(tmp_path, values.astype(str).tolist(), header)
    manifest = write_table(path, tmp_path / "data", TableColumns(["y*"], ignore=["z"]))
    assert [task.name for task in manifest.tasks] == header[1:201]
    assert manifest.input.names == ("x", "w")
    assert sum(manifest.num_samples(split) for split in manifest.splits) == 50
    names = [f"y{t}" for t in range(200)]
    found = {}
    for split in ("train", "test"):
        rows, targets = read(tmp_path / "data", split, names)
        for slot, row in enumerate(rows):
            found[float(row[0])] = [float(targets[name][slot]) for name in names]
    stats = [(task.mean, task.std) for task in manifest.tasks]
    for row in values:
        expected = [(value - mean) / std for value, (mean, std) in zip(row[1:201], stats, strict=True)]
        np.testing.assert_allclose(found[float(np.float32(row[0]))], expected, rtol=1e-5, atol=1e-6)


def test_statistics_over_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.sources.tables.columns.CHUNK_ROWS", 7)
    values = np.random.default_rng(1).normal(1e6, 2, (60, 2))
    path = table(tmp_path, [[*map(repr, row), "train"] for row in values.tolist()], ["x", "y", "part"])
    manifest = write_table(path, tmp_path / "data", TableColumns(["y"], split=SplitBy("part")))
    assert (manifest.input.mean[0], manifest.input.std[0]) == pytest.approx((values[:, 0].mean(), values[:, 0].std()))
    assert (manifest.tasks[0].mean, manifest.tasks[0].std) == pytest.approx((values[:, 1].mean(), values[:, 1].std()))


def test_the_split_is_a_hash_of_the_row_alone(tmp_path: Path) -> None:
    rows = [[str(n), str(n % 7)] for n in range(2000)]
    splits = {}
    for order in (rows, rows[::-1]):
        file = TableFile(table(tmp_path, order, ["x", "y"]))
        splits[order[0][0]] = {row.cells[0]: file.split(row) for row in file}
    assert splits["0"] == splits["1999"]
    share = list(splits["0"].values()).count("test") / len(rows)
    assert 0.16 < share < 0.24


def test_a_file_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_bytes('\ufeffx,"a, b",part\r\n1.5,"two\nlines", train\r\n\r\n2.5,Ö,train\r\n'.encode())
    file = TableFile(path, SplitBy("part"))
    assert file.columns == ["x", "a, b", "part"]
    assert [(row.line, row.cells) for row in file] == [(3, ["1.5", "two\nlines", "train"]), (5, ["2.5", "Ö", "train"])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["prize"]}, "houses.csv has no column 'prize'; did you mean 'price'?"),
        ({"targets": ["q*"]}, "has no column 'q*'."),
        ({"split": SplitBy("prat")}, "has no column 'prat'; did you mean 'part'?"),
        ({"targets": ["price", "id"]}, "found in both: ['id']"),
        ({"targets": ["price", "part"]}, "found in both: ['part']"),
        (
            {"ignore": []},
            "houses.csv:2: feature 'id' should be a finite number of at most 1e+30, found 'a'.\nLeave the column out",
        ),
        ({"kinds": {"rooms": "dense"}}, "--kinds rooms=dense: expected one of classification, regression"),
        ({"kinds": {"rum": "regression"}}, "--kinds names 'rum', which is not a target."),
        (
            {"kinds": {"town": "regression"}},
            "column 'town', line 2: expected a finite number",
        ),
        ({"units": {"age": "years"}}, "--units names 'age', which is not a target."),
        ({"units": {"town": "km"}}, "column 'town' is a classification: its error is a percentage, not in km"),
        ({"targets": ["*"], "ignore": []}, "no column is left to predict * from"),
        ({"targets": ["height", "age", "town", "rooms", "price"]}, "no column is left to predict height, age, town"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        write(tmp_path, **options)
    assert message in str(error.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.csv is empty"),
        (b"\r\n\r\n", "t.csv is empty"),
        (b"x,y,x\n1,2,3\n", "t.csv:1: expected a different name for each column, found several times or empty: ['x']"),
        (b"x,,y\n1,2,3\n", "found several times or empty: ['']"),
        (b"x,y\n", "t.csv has a header, but no rows"),
        (b"x,y\n1,2\n3\n", "t.csv:3: expected 2 cells, as the header has, found 1"),
        (b"x,y\n1,2\n3,4,5\n", "t.csv:3: expected 2 cells, as the header has, found 3"),
        (b"x,y\n1,2\n\xff\xfe,3\n", "not CSV in UTF-8"),
        (b'x,y\n1,"2\n', "t.csv:2: not CSV: unexpected end of data"),
        (b"x,y\n1,0.5\n2,inf\n", "column 'y', line 3: expected a finite number of at most 1e+30, found 'inf'"),
        (b"x,y\n1,0.5\n2,1e200\n", "column 'y', line 3: expected a finite number of at most 1e+30, found '1e200'"),
        (b"x,y\n1e200,0\n2,1\n", "t.csv:2: feature 'x' should be a finite number of at most 1e+30, found '1e200'"),
        (b"x,y\n1,0.5\n2,NAN\n", "column 'y', line 3: expected a finite number of at most 1e+30, found 'NAN'"),
        (
            b"x,y\n1,0.5\n2,1.5\n3,cheap\n",
            "column 'y', line 4: expected a finite number",
        ),
        (b"x,y\n1,7\n2,7\n", "column 'y': a classification needs two classes or more, found ['7']"),
        (b"x,y\n1,\n2,\n", "column 'y': a classification needs two classes or more, found no value at all"),
        (
            b"x,y\n" + b"".join(b"1,%d\n" % n for n in range(101)),
            "101 different whole numbers that count up from 0",
        ),
        (
            b"x,y\n" + b"".join(b"1,t%d\n" % n for n in range(101)),
            "101 different texts in 101 labelled rows, such as 't0' in line 2",
        ),
        (
            b"x,y\n" + b"".join(b'1,"%d,%03d"\n' % (n, n) for n in range(1, 8)),
            "numbers that cannot be read, such as '1,001' in line 2",
        ),
        (b"x,y\n" + b"".join(b"1,$%d.50\n" % n for n in range(7)), "such as '$0.50' in line 2"),
        (b"x,y\n" + b"".join(b"1,%d %%\n" % n for n in range(7)), "such as '0 %' in line 2"),
    ],
)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TableFile, "split", lambda file, row: "train")
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        write_table(path, tmp_path / "data", TableColumns(["y"]))
    assert message in str(error.value)


def test_a_target_without_a_value_in_train(tmp_path: Path) -> None:
    rows = [("1", "", "train"), ("2", "3.5", "test")]
    with pytest.raises(UserError, match="column 'y' has no value in the train split"):
        write_table(
            table(tmp_path, rows, ("x", "y", "part")), tmp_path / "data", TableColumns(["y"], split=SplitBy("part"))
        )
    with pytest.raises(UserError, match="has no row of the split 'train'; its splits: test"):
        write_table(
            table(tmp_path, rows[1:], ("x", "y", "part")), tmp_path / "data", TableColumns(["y"], split=SplitBy("part"))
        )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x,y\n1,a\n2,b\n", None),
        (bytes(range(256)), "bad.csv:1: not CSV"),
        (b"x,y\x1b[31m\n1,a\n2,b\n", "bad.csv:1: a name has no line breaks and no control characters"),
        (b'x,"y\nz"\n1,a\n2,b\n', "bad.csv:1: a name has no line breaks and no control characters"),
        (b"x," + b"y" * 300 + b"\n1,a\n2,b\n", "bad.csv:1: a name has from 1 to 200 characters"),
        (b'x,y\n1,a\n2,"b\nc"\n', "column 'y' cannot be a task:\n  classes.1: Value error, a name has no line breaks"),
        (b"x,y\n1,a\n2," + b"b" * 300 + b"\n", "classes.1: Value error, a name has from 1 to 200 characters"),
        (b"x,[/y]\n1,<b>\n2,[red]\n", None),
        (b"x,y\n1e29,a\n-1e29,b\n1e29,a\n", None),
    ],
)
def test_names_and_garbage_are_refused_in_a_sentence(tmp_path: Path, content: bytes, said: str | None) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    if said is None:
        write_table(tmp_path / "bad.csv", tmp_path / "data", TableColumns(["*y*"]))
        return
    with pytest.raises(UserError) as error:
        write_table(tmp_path / "bad.csv", tmp_path / "data", TableColumns(["*y*"]))
    assert said in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(UserError, match=r"rows.csv is not a regular file"):
        write_table(tmp_path / "rows.csv", tmp_path / "data", TableColumns(["y"]))
