"""Tables in every format, as other programs write them: what is read, what is decided, and what is left out."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.io import arff

from tests.support.loaders import eval_loader
from trainer.cli import main
from trainer.data.format.manifest import Manifest, read_manifest
from trainer.data.format.specs import ClassificationSpec, RegressionSpec
from trainer.data.format.words import MISSING_WORDS
from trainer.data.sources.table import write_table
from trainer.data.sources.tables.options import SplitBy, TableColumns
from trainer.data.sources.tables.table_file import TableFile
from trainer.errors import UserError

ROWS = "x,part,y\n1.5,train,a\n2.5,train,b\n,train,a\n4.5,test,b\n"


def write(folder: Path, content: str, **options) -> Manifest:
    (folder / "t.csv").write_text(content)
    return write_table(
        folder / "t.csv", folder / "data", TableColumns(**{"targets": ["y*"], "split": SplitBy("part")} | options)
    )


def features(folder: Path, split: str = "train") -> np.ndarray:
    manifest = read_manifest(folder)
    loader = eval_loader(folder, split=split, tasks=[manifest.tasks[0].name], batch_size=manifest.num_samples(split))
    (batch,) = loader
    loader.close()
    return batch.inputs.numpy()


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".arff"])
def test_every_format_gives_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    text = ROWS.replace(",", "\t") if ".tsv" in suffix else ROWS
    if suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        columns = {"x": [1.5, 2.5, None, 4.5], "part": ["train"] * 3 + ["test"], "y": ["a", "b", "a", "b"]}
        columns["__index_level_0__"] = [7, 8, 9, 10]
        pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)
    elif suffix == ".arff":
        head = "% by hand\n@RELATION t\n@attribute x numeric\n@attribute 'part' {train, test}\n@attribute y {b, a}\n"
        path.write_text(head + "@DATA\n1.5,train,a\n2.5,train,b\n?, 'train', a\n{0 4.5, 1 test}\n")
    else:
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
    command = ["data", "table", "--csv", str(path), "--targets", "y", "--split", "part"]
    assert main([*command, "--out", str(tmp_path / "data")]) == 0
    manifest = read_manifest(tmp_path / "data")
    assert manifest.name == "t"
    assert manifest.tasks == (ClassificationSpec(name="y", classes=("a", "b")),)
    assert (manifest.input.names, manifest.input.mean, manifest.input.std) == (("x",), (2.0,), (0.5,))
    np.testing.assert_array_equal(features(tmp_path / "data"), np.array([[1.5], [2.5], [np.nan]], np.float32))
    np.testing.assert_array_equal(features(tmp_path / "data", "test"), [[4.5]])


def test_arff_as_scipy_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "t.arff"
    path.write_text(
        "@relation r\n\n@attribute a REAL\n@attribute 'b c' {x,yz}\n@attribute d integer\n@data\n"
        "1e3,x,-2\n% nothing\n?,yz,7\n"
    )
    expected, meta = arff.loadarff(path)
    file = TableFile(path)
    assert file.columns == meta.names()
    for row, wanted in zip(file, expected, strict=True):
        assert float(row.cells[0] or "nan") == pytest.approx(wanted[0], nan_ok=True)
        assert (row.cells[1], float(row.cells[2])) == (wanted[1].decode(), wanted[2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv.gz", b"x,y\n1,a\n", "cannot be read: Not a gzipped file"),
        ("t.csv.gz", gzip.compress(b"x,y\n" * 99)[:-9], "It is damaged"),
        ("t.arff", b"x,y\n1,a\n", "t.arff:1: expected @relation, @attribute or @data"),
        ("t.arff", b"@relation r\n@attribute x numeric\n", "it has no @data"),
        ("t.arff", b"@attribute x numeric\n@attribute y {a,b}\n@data\n{7 1}\n", "a number below 2, found '7 1'"),
        ("t.parquet", b"x,y\n1,a\n", "cannot be read as Parquet"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name == "t.parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        write_table(tmp_path / name, tmp_path / "data", TableColumns(["y"]))
    assert message in str(error.value)


def test_prices_are_no_classes_and_all_decisions_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{i},train,{100 + 7 * i},{i % 4},{1 + 2 * (i % 3)},{i / 4},{'ab'[i % 2]}\n" for i in range(60)]
    manifest = write(tmp_path, "x,part,y_price,y_code,y_gaps,y_real,y_text\n" + "".join(rows))
    assert [task.kind[:5] for task in manifest.tasks] == ["regre", "class", "class", "regre", "class"]
    said = capsys.readouterr().out
    assert "y_price: regression from 100 to 513; labelled: 60 of 60 train (60 different whole numbers with gaps" in said
    assert "y_code: classification, 4 classes: 0, 1, 2, 3; labelled: 60 of 60 train (4 different whole num" in said
    assert "add --kinds y_gaps=regression" in said
    assert "y_real: regression from 0 to 14.75; labelled: 60 of 60 train (numbers that are not whole)" in said
    assert "(texts)" in said


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1], "classification"),
        ([-1, 0, 1], "classification"),
        ([3, 4, 5, 6, 7, 8, 9], "classification"),
        ([*range(1, 60)] * 2, "classification"),
        (range(1950, 1990), "regression"),
        ([1, 2, 3, 10], "classification"),
        ([1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 22], "regression"),
    ],
)
def test_which_whole_numbers_are_classes(tmp_path: Path, values: Sequence[int], kind: str) -> None:
    rows = "".join(f"{i},train,{value}\n" for i, value in enumerate(values))
    assert write(tmp_path, f"x,part,y\n{rows}").tasks[0].kind == kind


def test_kinds_and_units_take_patterns(tmp_path: Path) -> None:
    content = "x,part,y1,y2,y3\n1,train,1,2,a\n2,train,2,5,b\n"
    manifest = write(
        tmp_path, content, kinds={"*": "regression", "y3": "classification"}, units={"*": "EUR", "y2": "m"}
    )
    assert [getattr(task, "unit", task.kind) for task in manifest.tasks] == ["EUR", "m", "classification"]


def test_ignore_subtracts_from_patterns(tmp_path: Path) -> None:
    content = "x,part,y1,y2,z\n1,train,1,2,a\n2,train,2,5,b\n"
    manifest = write(tmp_path, content, targets=["y*", "z"], ignore=["y2"])
    assert [task.name for task in manifest.tasks] == ["y1", "z"]
    assert manifest.input.names == ("x",)


def test_all_but_the_features_are_targets(tmp_path: Path) -> None:
    content = "x1,x2,part,y,z\n1,3,train,1,2\n2,4,train,2,5\n"
    manifest = write(tmp_path, content, targets=["*"], features=["x*"])
    assert [task.name for task in manifest.tasks] == ["y", "z"]
    assert manifest.input.names == ("x1", "x2")
    with pytest.raises(UserError, match=r"targets and features to be different, found in both: \['x1'\]"):
        write(tmp_path, content, targets=["x1", "y"], features=["x*"])
    with pytest.raises(UserError, match="--targets 'x\\*' matches only columns of another role: 'x1' \\(features\\)"):
        write(tmp_path, content, targets=["x*"], features=["x*"])


def test_all_bad_columns_are_in_one_message(tmp_path: Path) -> None:
    content = "a,b,part,y1,y2\nt,u,train,1.5,7\nv,w,train,cheap,7\n"
    with pytest.raises(UserError) as error:
        write(tmp_path, content, targets=["y1", "y3", "q"])
    assert "no column 'y3'" in str(error.value)
    assert "no column 'q'" in str(error.value)
    with pytest.raises(UserError) as error:
        write(tmp_path, content, targets=["y2"], kinds={"y2": "regression"}, ignore=["y1"])
    assert "feature 'a'" in str(error.value)
    assert "--ignore a,b" in str(error.value)
    assert "--categories a,b" in str(error.value)
    with pytest.raises(UserError) as error:
        write(tmp_path, content, kinds={"y1": "regression"}, categories=["a", "b"])
    assert "column 'y1', line 3" in str(error.value)
    assert "column 'y2': a classification needs two classes" in str(error.value)


def test_drop_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = "x,e,part,y1,y2,y3,y4\n1,,train,0,,7,1.5\n2,,train,1,,7,2.5\n3,9,test,1,0,8,\n"
    with pytest.raises(UserError, match="column 'y2'"):
        write(tmp_path, content)
    manifest = write(tmp_path, content, drop_empty=True)
    assert [task.name for task in manifest.tasks] == ["y1", "y4"]
    assert manifest.input.names == ("x",)
    assert manifest.made_by["dropped"] == ["y2", "y3", "e"]
    assert "left out, with nothing to learn from: y2, y3, e" in capsys.readouterr().out
    with pytest.raises(UserError, match="no target has anything to learn"):
        write(tmp_path, content, targets=["y2", "y3"], drop_empty=True)


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_pandas_index_is_no_feature(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write(tmp_path, f"{name},x,part,y\n0,5,train,a\n1,6,train,b\n")
    assert manifest.input.names == ("x",)
    assert "left out, as pandas' index or without a name: Unnamed: 0" in capsys.readouterr().out


def test_the_index_does_not_decide_the_split(tmp_path: Path) -> None:
    rows = [f"{i},{i % 40}\n" for i in range(200)]
    (tmp_path / "t.csv").write_text(",x\n" + "".join(rows))
    file = TableFile(tmp_path / "t.csv")
    splits = {}
    for row in file:
        assert splits.setdefault(row.cells[1], file.split(row)) == file.split(row), "equal rows are in one split"


def test_pandas_words_for_missing(tmp_path: Path) -> None:
    rows = "".join(f"{word},train,{word},{word}\n" for word in sorted(MISSING_WORDS))
    manifest = write(tmp_path, f"x,part,y1,y2\n{rows}1,train,a,0.5\n3,train,b,1.5\n")
    assert manifest.tasks[0] == ClassificationSpec(name="y1", classes=("a", "b"))
    assert manifest.tasks[1] == RegressionSpec(name="y2", mean=1.0, std=0.5)
    assert manifest.input.mean == (2.0,)
    assert {"None", "N/A", "nan", "NULL", ""} <= MISSING_WORDS


def test_categories_become_a_feature_a_value(tmp_path: Path) -> None:
    content = (
        "town,x,zone,part,y\nUlm,1,3,train,0.5\nBonn,2,5,train,1.5\nUlm,3,3,train,1\n,4,3,train,2\nRom,5,,test,2\n"
    )
    with pytest.raises(UserError, match="--categories town"):
        write(tmp_path, content)
    manifest = write(tmp_path, content, categories=["*"])
    assert manifest.input.names == ("town=Bonn", "town=Ulm", "x", "zone"), "a pattern matches texts only"
    assert manifest.made_by["categories"] == ["town"]
    assert manifest.input.mean[:2] == pytest.approx((1 / 3, 2 / 3))
    assert manifest.input.std[:2] == pytest.approx((2**0.5 / 3,) * 2)
    rows = [[0, 1, 1, 3], [1, 0, 2, 5], [0, 1, 3, 3], [np.nan, np.nan, 4, 3]]
    np.testing.assert_array_equal(features(tmp_path / "data"), np.array(rows, np.float32))
    # A value that no train sample has is as good as none.
    np.testing.assert_array_equal(features(tmp_path / "data", "test"), [[np.nan, np.nan, 5, np.nan]])
    (tmp_path / "again").mkdir()
    assert write(tmp_path / "again", content, categories=["town", "zone"]).input.names[-2:] == ("zone=3", "zone=5")


def test_booleans_are_numbers_among_the_features_and_classes_among_the_targets(tmp_path: Path) -> None:
    manifest = write(tmp_path, "a,part,y\nTrue,train,True\nFALSE,train,False\ntrue,train,\n,train,True\n")
    assert manifest.tasks == (ClassificationSpec(name="y", classes=("False", "True")),)
    np.testing.assert_array_equal(features(tmp_path / "data"), np.array([[1], [0], [1], [np.nan]], np.float32))


def test_a_category_of_too_many_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.sources.tables.features.MAX_CATEGORIES", 3)
    content = "id,user,town,part,y\n" + "".join(f"n{i},u{i},t{i % 2},train,{i % 2}\n" for i in range(4))
    with pytest.raises(UserError, match=r"in categories: 'id', 'user'.*\n.*--ignore id,user"):
        write(tmp_path, content, categories=["id", "user", "town"])
    with pytest.raises(UserError, match=r"--categories town, or(.|\n)*categories: 'id', 'user'.*--id COLUMN"):
        write(tmp_path, content)


def test_a_split_by_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,part,y\n1,0,a\n2,0,b\n3,1,a\n4,2,b\n")
    command = ["data", "table", "--csv", f"{tmp_path}/t.csv", "--targets", "y", "--out", f"{tmp_path}/data", "--split"]
    assert main([*command, "part", "0=train,1=val,2=test"]) == 0
    manifest = read_manifest(tmp_path / "data")
    assert {split: manifest.num_samples(split) for split in manifest.splits} == {"train": 2, "test": 1, "val": 1}
    assert manifest.made_by["split_names"] == {"0": "train", "1": "val", "2": "test"}
    with pytest.raises(UserError, match=r"its splits: 0, 1, 2.\nSay what they mean, such as: --split COLUMN 0=train,"):
        write_table(tmp_path / "t.csv", tmp_path / "b", TableColumns(["y"], split=SplitBy("part")))
    with pytest.raises(UserError, match="column 'part' has '2', for which --split names no split: 0=train, 1=val"):
        write_table(
            tmp_path / "t.csv",
            tmp_path / "b",
            TableColumns(["y"], split=SplitBy("part", {"0": "train", "1": "val"})),
        )


@pytest.mark.long
def test_a_part_of_train_becomes_val(tmp_path: Path) -> None:
    rows = [f"{i},{'test' if i < 100 else 'train'}\n" for i in range(2000)]
    (tmp_path / "t.csv").write_text("x,part\n" + "".join(rows))
    for column in (None, "part"):
        before = [TableFile(tmp_path / "t.csv", SplitBy(column)).split(row) for row in TableFile(tmp_path / "t.csv")]
        file = TableFile(tmp_path / "t.csv", SplitBy(column, val_fraction=0.25))
        after = [file.split(row) for row in file]
        assert [split if split == "test" else "train" for split in after] == before
        assert 0.2 < after.count("val") / before.count("train") < 0.3
    (tmp_path / "u.csv").write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(80)))
    command = ["data", "table", "--csv", f"{tmp_path}/u.csv", "--targets", "y", "--val", "0.3"]
    assert main([*command, "--out", f"{tmp_path}/data"]) == 0
    assert list(read_manifest(tmp_path / "data").splits) == ["train", "test", "val"]
    with pytest.raises(SystemExit):
        main([*command[:-1], "1.5", "--out", f"{tmp_path}/b"])


def test_a_column_named_split_is_proposed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = "x,Split,y\n" + "".join(f"{i},{'train' if i else 'test'},{'ab'[i % 2]}\n" for i in range(30))
    with pytest.raises(UserError, match="add --split Split; else leave it out with --ignore Split"):
        write(tmp_path, content, split=SplitBy())
    write(tmp_path, content, split=SplitBy(), features=["x"])
    assert "column 'Split' is not used. If it names the split of each row, add --split Split" in capsys.readouterr().out


def test_targets_may_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,part,y,z,w\n1,train,a,0,1\n2,train,b,1,0\n")
    command = ["data", "table", "--csv", f"{tmp_path}/t.csv", "--out", f"{tmp_path}/data", "--split", "part"]
    assert (
        main([*command, "--targets", "y", "--targets", "z,w", "--kinds", "z=regression", "--kinds", "w=regression"])
        == 0
    )
    assert [task.kind[0] for task in read_manifest(tmp_path / "data").tasks] == ["c", "r", "r"]


def test_a_missing_label_costs_no_bytes(tmp_path: Path) -> None:
    names = [f"y{t}" for t in range(300)]
    rows = [f"1,train,{'0.5' if i else '1.5'}{',' * 299}\n" for i in range(2)]
    full = write(tmp_path, f"x,part,{','.join(names)}\n{rows[0]}{rows[1]}", drop_empty=True)
    assert len(full.tasks) == 1
    content = f"x,part,{','.join(names)}\n" + "".join(f"1,train{f',{i}.5' * 300}\n" for i in range(2))
    (tmp_path / "b").mkdir()
    sparse = write(tmp_path / "b", content + f"1,train,0.5{',' * 299}\n" * 50)
    dense = 2 * 300 * len('"y000": 0.5, ')
    assert sparse.splits["train"].shards[0].bytes < dense + 52 * 4 * 512 + 10_240
