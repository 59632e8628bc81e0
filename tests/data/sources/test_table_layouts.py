"""Tables as other programs write them: separators, encodings, comments before the header, columns of splits."""

import gzip
from pathlib import Path

import pytest

from trainer.cli import main
from trainer.data.format.manifest import Manifest, read_manifest
from trainer.data.sources.table import write_table
from trainer.data.sources.tables.options import SplitBy, TableColumns
from trainer.data.sources.tables.table_file import TableFile
from trainer.errors import UserError

TABLE = "x,name,y\n1.5,Köln,2.5\n2,Ulm,3.5\n"
CELLS = [["1.5", "Köln", "2.5"], ["2", "Ulm", "3.5"]]


def read(path: Path, content: bytes) -> tuple[list[str], list[list[str]]]:
    path.write_bytes(content)
    file = TableFile(path)
    return file.columns, [row.cells for row in file]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", TABLE, None),
        ("t.csv", TABLE.replace(",", ";"), "t.csv: its cells are separated by semicolons"),
        ("t.txt", TABLE.replace(",", "\t"), "t.txt: its cells are separated by tabs"),
        ("t.csv", TABLE.replace(",", "|"), "separated by vertical bars"),
        ("t.csv", "\ufeff" + TABLE.replace(",", ";"), "separated by semicolons"),
        ("t.csv", "sep=;\r\n" + TABLE.replace(",", ";"), "its first line names the separator: ';'"),
        ("t.tsv", TABLE, "separated by commas"),
        ("t.csv", "# made by hand, on a Monday; twice\n" + TABLE, "its first line, which begins with #, is left out"),
        ("t.csv", "#\n# units: kg\n\n" + TABLE, "its first 3 lines, which begin with #, are left out"),
        ("t.csv", "# x\ty\n" + TABLE.replace(",", ";"), "separated by semicolons"),
    ],
)
def test_the_header_says_how_a_table_is_written(
    tmp_path: Path, name: str, content: str, said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(tmp_path / name, content.encode()) == (["x", "name", "y"], CELLS)
    out = capsys.readouterr().out
    assert (said in out and out.count(said) == 1) if said else not out


def test_what_the_usual_separator_explains_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    assert read(path, b"#id,a;b,c|d\n1,2;3,4|5\n") == (["#id", "a;b", "c|d"], [["1", "2;3", "4|5"]])
    assert read(path, b'"a,b";c\n"1,5";2\n') == (["a,b", "c"], [["1,5", "2"]])
    assert read(path, b"price, EUR;size;n\n1;2;3\n") == (["price, EUR", "size", "n"], [["1", "2", "3"]])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_with_its_mark_is_read(tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = TABLE.replace(",", "\t")
    content = text.encode(encoding) if encoding == "utf-16" else ("\ufeff" + text).encode(encoding)
    for name, data in (("t.txt", content), ("t.csv.gz", gzip.compress(content))):
        assert read(tmp_path / name, data) == (["x", "name", "y"], CELLS)
        assert f"{name}: it is read as UTF-16, as its first bytes say" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", TABLE.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        ("t.csv", TABLE.encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
        ("a b.csv", TABLE.encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8 '"),
        ("t.csv.gz", gzip.compress(TABLE.encode("latin-1")), "t.csv.gz | iconv -f WINDOWS-1252 -t UTF-8 > utf8-t.csv"),
        ("t.arff", "@relation Köln\n".encode("latin-1"), "iconv -f WINDOWS-1252"),
        ("t.csv", gzip.compress(TABLE.encode()), "Give it a name that ends in .csv.gz"),
        ("t.csv", b"PK\x03\x04 and so on", "Save the table as CSV"),
        ("t.csv", TABLE.replace(",", "  ").encode(), "separated by commas, semicolons or tabs, found 'x  name  y'"),
        ("t.csv", b"a;b|c\n1;2|3\n", "are the cells separated by semicolons or vertical bars?"),
        ("t.csv", b"# note\na;b\n1;2;3\n", "t.csv:3: expected 2 cells, as the header has, found 3"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_type(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path / name, content)
    assert said in str(error.value)


def test_decimal_commas_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x;y\n1,5;a\n2,5;b\n")
    with pytest.raises(UserError, match="without separators of thousands or units: '1,5' is read as a text"):
        write_table(tmp_path / "t.csv", tmp_path / "data", TableColumns(["y"]))


def table(folder: Path, splits: str, name: str = "fold") -> Path:
    (folder / "t.csv").write_text(
        f"x,z,{name},y\n" + "".join(f"{i},b,{split},{'ab'[i % 2]}\n" for i, split in enumerate(splits.split()))
    )
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("asked", "name", "splits"),
    [("split", "fold", "0 0 1 1"), ("split", "Kind of row", "Train Train Test Test"), ("split", "SPLIT", "a a b b")],
)
def test_a_likely_column_of_splits_is_named(tmp_path: Path, asked: str, name: str, splits: str) -> None:
    with pytest.raises(UserError, match=f"Does {name!r} name the split of each row"):
        write_table(table(tmp_path, splits, name), tmp_path / "data", TableColumns(["y"], split=SplitBy(asked)))


def test_a_column_with_names_of_splits_is_proposed_whatever_it_is_called(tmp_path: Path) -> None:
    path = table(tmp_path, "Training Training Validation Testing")
    with pytest.raises(UserError, match="add --split fold Testing=test,Training=train,Validation=val; else"):
        write_table(path, tmp_path / "data", TableColumns(["y"], categories=["*"]))
    with pytest.raises(UserError, match="such as: --split COLUMN Training=train,Validation=val,Testing=test"):
        write_table(path, tmp_path / "data", TableColumns(["y"], categories=["*"], split=SplitBy("fold")))


def test_absent_splits_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(splits: str, names: dict[str, str]) -> Manifest:
        path = table(tmp_path, splits)
        pairs = ",".join(f"{cell}={split}" for cell, split in names.items())
        command = ["data", "table", "--csv", str(path), "--targets", "y", "--ignore", "z", "--split", "fold", pairs]
        assert main([*command, "--out", str(tmp_path / splits)]) == 0
        return read_manifest(tmp_path / splits)

    assert "test" not in write("0 0 1 1", {"0": "train", "1": "val"}).splits
    assert "no row is in the split 'test'; the splits of the rows: train, val" in capsys.readouterr().out
    write("0 0 2 2", {"0": "train", "1": "val", "2": "test"})
    assert "no row is in the split 'val'" in capsys.readouterr().out
    write("0 0 1 2", {"0": "train", "1": "val", "2": "test"})
    assert "no row is in" not in capsys.readouterr().out


def test_names_of_splits_that_are_not_read_are_said_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(splits: str) -> Manifest:
        path = table(tmp_path, splits)
        options = {"targets": ["y"], "split": SplitBy("fold"), "categories": ["z"]}
        return write_table(path, tmp_path / splits, TableColumns(**options))

    write("train train Test validation")
    said = capsys.readouterr().out
    assert "training reads the splits train, val, test, and not 'Test', 'validation'." in said
    assert "type: --split COLUMN train=train,Test=test,validation=val" in said
    with pytest.raises(
        UserError, match=r"found 'hold/out'\.\nSay what the cells mean, such as: --split COLUMN train=train"
    ):
        write("train train hold/out")
    write("train train test val fold5")
    assert "training reads" not in capsys.readouterr().out, "other names are the user's own"


@pytest.mark.parametrize(
    ("categories", "ignore", "said"),
    [(["y"], [], "names 'y', which is no feature: it is a target"), (["z"], ["z"], "'z', which is no feature: it is")],
)
def test_categories_that_are_no_features_are_refused(
    tmp_path: Path, categories: list[str], ignore: list[str], said: str
) -> None:
    path = table(tmp_path, "train train test test")
    with pytest.raises(UserError, match=said):
        write_table(
            path, tmp_path / "data", TableColumns(["y"], split=SplitBy("fold"), categories=categories, ignore=ignore)
        )
