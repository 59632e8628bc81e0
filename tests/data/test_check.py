"""`paretrain data check`: the table, the picture, and what it finds."""

from pathlib import Path

import cv2
import pytest

from tests.support import tiny_data as tiny
from tests.support.rich_data import write_rich, write_table
from tests.support.tiny_data import picture, spec
from trainer.cli import main
from trainer.data.format.decode import encode
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ClassificationSpec

Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no cell breaks."""
    monkeypatch.setenv("COLUMNS", "200")


def rows(said: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]


@pytest.mark.long
def test_labels_are_counted_and_samples_drawn(tmp_path: Path, capsys: Said) -> None:
    write_rich(tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert rows(said)[:4] == [
        ["train", "parts", "segmentation", "12", "-", "one per pixel"],
        ["train", "even", "classification", "12", "-", "no 50.0%, yes 50.0%"],
        ["train", "depth", "dense_regression", "8", "4", "one per pixel"],
        ["train", "weight", "regression", "9", "3", "3 ± 1.683 kg, from 0.5 to 5.5"],
    ]
    assert "match the manifest; every sample can be used" in said
    sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))
    assert sheet is not None
    assert sheet.std() > 10


def test_the_picture_says_how_many_labels_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [ClassificationSpec(name=f"t{t}", classes=("no", "yes")) for t in range(40)]
    image = spec(height=3, width=16)
    sample = Sample(encode(picture(0, image), "npy"), {})
    write_shards(tmp_path, name="many", made_by={}, inputs=image, tasks=tasks, splits={"train": [sample] * 3})
    texts: list[str] = []
    monkeypatch.setattr("matplotlib.figure.Figure.text", lambda figure, x, y, text, **_: texts.append(text))
    assert main(["data", "check", str(tmp_path)]) == 0
    shown = sum(text.count("t") for text in texts[1:]) // 3
    assert 0 < shown < 40
    assert texts[0] == f"many, train: 3 of 3 samples, the labels of {shown} of 40 tasks"


def test_tables_have_no_picture(tmp_path: Path, capsys: Said) -> None:
    write_table(tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 0
    assert rows(capsys.readouterr().out)[1] == ["train", "t1", "regression", "10", "2", "5.3 ± 3.579 cm, from 0 to 11"]
    assert not (tmp_path / "contact_sheet.png").exists()


def test_images_that_cannot_be_decoded_are_named(tmp_path: Path, capsys: Said) -> None:
    image = spec("png", height=16, width=16)
    png = encode(picture(0, image), "png")
    samples = [Sample(png, {"digit": 1}), Sample(png[: len(png) // 2], {"digit": 1})]
    write_shards(tmp_path, name="x", made_by={}, inputs=image, tasks=tiny.TASKS, splits={"train": samples})
    assert main(["data", "check", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "Bad sample 1 (" in said
    assert "1 of its samples cannot be used" in said
    assert rows(said) == [
        ["train", "even", "classification", "0", "2", "none"],
        ["train", "digit", "classification", "2", "-", "1 100.0%, 0 0.0%, 2 0.0%, 3 0.0% and 6 more"],
    ]


def test_names_are_no_markup_and_no_formulas(tmp_path: Path, capsys: Said) -> None:
    """Neither those of rich and matplotlib: their own would end in a traceback."""
    image, name, classes = spec("png", height=8, width=8), "[/b] $\\frac$", ("[red]", "[/x]")
    samples = [Sample(encode(picture(number, image), "png"), {name: number}) for number in (0, 1)]
    task = ClassificationSpec(name=name, classes=classes)
    write_shards(tmp_path / "[/o]", name=name, made_by={}, inputs=image, tasks=[task], splits={"train": samples})
    assert main(["data", "check", str(tmp_path / "[/o]")]) == 0
    said = capsys.readouterr().out
    assert rows(said) == [["train", name, "classification", "2", "-", "[red] 50.0%, [/x] 50.0%"]]
    assert "[/o]: 1 shards" in said


@pytest.mark.long
def test_a_place_where_no_picture_can_be_written(tmp_path: Path, capsys: Said) -> None:
    write_rich(tmp_path, train=2, test=1)
    (tmp_path / "contact_sheet.png").mkdir()
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "is intact, but its contact sheet cannot be written: " in capsys.readouterr().err


def test_damage_is_an_error(tmp_path: Path, capsys: Said) -> None:
    write_rich(tmp_path)
    (tmp_path / "train-000001.tar").write_bytes(b"")
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "train-000001.tar: expected" in capsys.readouterr().err
