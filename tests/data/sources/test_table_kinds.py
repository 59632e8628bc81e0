"""Targets whose cells are hardly classes: what is refused, and that what the message proposes works."""

from pathlib import Path

import pytest

from trainer.cli import main
from trainer.data.format.manifest import Manifest, read_manifest
from trainer.data.format.specs import ClassificationSpec, RegressionSpec
from trainer.data.sources.table import write_table
from trainer.data.sources.tables.options import SplitBy, TableColumns
from trainer.errors import UserError


def write(folder: Path, cells: list[str], **options) -> Manifest:
    """Write a data folder of a table with a feature x and a target y of these cells."""
    (folder / "t.csv").write_text("x,y,part\n" + "".join(f'{i},"{cell}",train\n' for i, cell in enumerate(cells)))
    return write_table(
        folder / "t.csv", folder / "data", TableColumns(**{"targets": ["y"], "split": SplitBy("part")} | options)
    )


@pytest.mark.parametrize(
    "form",
    [
        "2024-01-{:02}",
        "{:02}.01.2024",
        "1/{}/24",
        "2024/01/{:02} 10:00:00",
        "2024-01-{:02}T10:00:00Z",
        "{} Jan 2024",
        "January {}, 2024",
        "{:02}-Jan-24",
        "{:02}:30",
        "{:02}:30:00.5",
    ],
)
def test_dates_are_no_classes(tmp_path: Path, form: str) -> None:
    cells = [form.format(day) for day in range(1, 13)] * 3
    with pytest.raises(UserError) as error:
        write(tmp_path, cells)
    assert f"has 12 different dates or times, such as {form.format(1)!r} in line 2" in str(error.value)
    assert "--ignore y" in str(error.value)
    assert len(write(tmp_path, cells, kinds={"y": "classification"}).tasks[0].classes) == 12


@pytest.mark.parametrize(
    "cells",
    [
        ["2022-01-01", "2023-01-01"] * 3,  # two waves of a study
        [f"town {i}" for i in range(60)] * 2,
        [f"animal {i}" for i in range(10)],  # few rows to try something
        ["v1", "v2", "v3", "1.5"],
        ["1", "2", "A", "B", "C"],
        ["True", "False"],
        ["5more", "4 doors", "2 doors"],
    ],
)
def test_names_of_classes_are_classes(tmp_path: Path, cells: list[str]) -> None:
    assert write(tmp_path, cells).tasks[0] == ClassificationSpec(name="y", classes=tuple(sorted(set(cells))))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([f"guest {i} was happy" for i in range(60)], "60 different texts in 60 labelled rows, such as 'guest 0 was"),
        ([*(f"guest {i}" for i in range(60)), *["guest 0"] * 20], "60 different texts in 80 labelled rows"),
        ([str(i) for i in range(40)], "40 different whole numbers that count up from 0, in 40 labelled rows"),
    ],
)
def test_a_class_for_each_row_is_refused(tmp_path: Path, cells: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        write(tmp_path, cells)
    assert said in str(error.value)
    assert "--ignore y" in str(error.value)
    assert "--kinds y=classification" in str(error.value)
    assert len(write(tmp_path, cells, kinds={"y": "classification"}).tasks[0].classes) == len(set(cells))


@pytest.mark.parametrize("options", [{}, {"kinds": {"y": "regression"}}])
def test_words_among_numbers_are_named(tmp_path: Path, options: dict) -> None:
    cells = ["1", "7", "unknown", "30", "90", "200", "1000", "?", "unknown", "4000"]
    with pytest.raises(UserError) as error:
        write(tmp_path, cells, **options)
    assert "'unknown', '?'; if missing values are meant, add --missing 'y=unknown,y=?'" in str(error.value)
    assert "add --kinds y=classification" in str(error.value)
    command = ["data", "table", "--csv", f"{tmp_path}/t.csv", "--targets", "y", "--split", "part"]
    assert main([*command, "--out", f"{tmp_path}/data", "--missing", "y=unknown,y=?"]) == 0
    manifest = read_manifest(tmp_path / "data")
    assert manifest.made_by["missing"] == ["y=unknown", "y=?"]
    assert isinstance(manifest.tasks[0], RegressionSpec)
    assert manifest.tasks[0].mean == pytest.approx(sum(int(cell) for cell in cells if cell.isdigit()) / 7)


def test_words_among_numbers_of_features_are_named(tmp_path: Path) -> None:
    rows = [("1.5", "30", "a"), ("?", "40", "b"), ("2.5", "n/k", "a"), ("3.5", "50", "b")]
    (tmp_path / "t.csv").write_text("x,age,y\n" + "".join(",".join(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        write_table(tmp_path / "t.csv", tmp_path / "data", TableColumns(["y"], split=SplitBy()))
    assert "If '?' in 'x' are missing values, add --missing 'x=?'" in str(error.value)
    assert "add --missing age=n/k" in str(error.value)
    with pytest.raises(UserError, match="has no column 'agf'; did you mean 'age'"):
        write_table(tmp_path / "t.csv", tmp_path / "data", TableColumns(["y"], missing=[("agf", "?")]))
