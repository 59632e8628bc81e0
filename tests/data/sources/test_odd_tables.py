"""Cells and headers as people and programs write them: the right value, or a sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.data.format.manifest import Manifest
from trainer.data.sources.table import write_table
from trainer.data.sources.tables.options import SplitBy, TableColumns
from trainer.errors import UserError

Row = Callable[[int], str]


def write(folder: Path, row: Row, header: str = "x,y", **options) -> Manifest:
    """Write a data folder of 60 rows, made of their numbers."""
    rows = [row(number) for number in range(60)]
    (folder / "t.csv").write_bytes("\n".join([header, *rows, ""]).encode())
    return write_table(folder / "t.csv", folder / "data", TableColumns(**{"targets": ["y"]} | options))


def labelled(*labels: str, x: str = "{}") -> Row:
    """Return rows with these labels in turn."""
    return lambda number: f"{x.format(number)},{labels[number % len(labels)]}"


@pytest.mark.parametrize(
    ("row", "classes"),
    [
        (labelled('"say ""no"""', "yes"), ('say "no"', "yes")),
        (labelled("  New York", "Rome\xa0"), ("New York", "Rome")),
        (labelled("9007199254740993", "9007199254740992"), ("9007199254740992", "9007199254740993")),
        (labelled("1.0", "02"), ("1", "2")),
        (labelled("yes", "no", x="\uff11{}"), ("no", "yes")),  # a full-width digit is a digit
    ],
)
def test_labels_are_what_is_written(tmp_path: Path, row: Row, classes: tuple[str, ...]) -> None:
    assert write(tmp_path, row).tasks[0].classes == classes  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (labelled("a", "b", x="{} %"), "without separators of thousands or units: '0 %' is read as a text"),
        (labelled("a", "b", x='"1,{:03}"'), "'1,000' is read as a text"),
        (labelled("a", "b", x="\u2212{}"), "without separators of thousands or units"),
        (labelled("a", "b", x="1_{:03}"), "feature 'x' should be a finite number of at most 1e+30, found '1_000'"),
        (labelled("a", "b", x="0x{}"), "found '0x0'"),
        (labelled("a", "b", x="10000000000000000{:03}"), "around 1e+19, where float32 keeps steps of 1.09951e+12."),
        (lambda number: f"1,{number}%", "column 'y' has numbers that cannot be read, such as '0%' in line 2"),
        (labelled("True", "1", "False", "0"), "column 'y' has whole numbers, and cells that are none: 'True'"),
    ],
)
def test_what_is_no_number_is_refused(tmp_path: Path, row: Row, said: str) -> None:
    with pytest.raises(UserError) as error:
        write(tmp_path, row)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (labelled("Cat", "cat"), "column 'y' has values that are almost the same: 'Cat', 'cat'"),
        (labelled("e\u0301", "\xe9"), r"almost the same: 'e\u0301', '\xe9'"),
        (labelled("a", "b", x="170000{:02}00"), "around 1.7e+09, where float32 keeps steps of 128."),
    ],
)
def test_what_is_perhaps_meant_otherwise_is_said(
    tmp_path: Path, row: Row, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, row)
    assert said in capsys.readouterr().out


def test_a_comma_at_the_end_of_each_line_makes_no_feature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(tmp_path, lambda number: f"{number},{number % 2},", "x,y,").input.names == ("x",)
    assert "left out, as pandas' index or without a name: Unnamed: 2" in capsys.readouterr().out
    (tmp_path / "b").mkdir()
    assert write(
        tmp_path / "b", labelled("a", "b", x="{0},{0}"), "Unnamed: 0,x,y", ignore=["Unnamed*"]
    ).input.names == ("x",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"x": 1, "y": 2}]', "is JSON. Save the table as CSV"),
        ("<!DOCTYPE html><p>Not found, sorry</p>", "is HTML. Save the table as CSV"),
        ("x,y\n1,0.5\n", "the hash that chooses the split of each row puts none into 'train'"),
        ("x,y\n\n\n", "has a header, but no rows"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=said):
        write_table(tmp_path / "t.csv", tmp_path / "data", TableColumns(["y"]))


def test_classes_without_a_train_sample_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "".join(f"{i},{'abc'[i % 3]},{['train', 'train', 'test'][i % 3]}\n" for i in range(9))
    (tmp_path / "t.csv").write_text(f"x,y,part\n{rows}")
    write_table(tmp_path / "t.csv", tmp_path / "data", TableColumns(["y"], split=SplitBy("part")))
    assert "1 of 3 classes of task 'y' have no sample in the train split: 'c'." in caplog.text
