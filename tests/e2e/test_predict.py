"""Predictions of a run as a table, and the metrics of `eval` against scikit-learn's on that table."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import sklearn.metrics as reference
import yaml

from tests.support.command import Command
from trainer.cli import main
from trainer.data.format.decode import encode
from trainer.data.format.manifest import read_manifest
from trainer.data.sources.image_folder import write_image_folder
from trainer.data.sources.table import write_table
from trainer.data.sources.tables.options import Columns, TableColumns

ROWS = 120


def trained(folder: Path) -> Path:
    """Train a run on the data in a folder, and return the run's folder."""
    values = {
        "name": "run",
        "output": str(folder / "runs"),
        "data": {"path": str(folder / "data")},
        "model": {"encoder": {"name": "mlp", "options": {"hidden": [8]}}},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "train": {"steps": 4, "global_batch": 16, "eval_every_steps": 4},
        "checkpoint": {"every_steps": 4},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(folder / "config.yaml")]) == 0
    return folder / "runs" / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table: an imbalanced task with missing labels, one of three classes, and a number."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (ROWS, 3))
    toxic = (x[:, 0] + rng.normal(0, 1, ROWS) > 0.8).astype(int)
    colour = np.array(["blue", "green", "red"])[np.clip(np.round(x[:, 1] + 1), 0, 2).astype(int)]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "toxic", "colour", "weight"])
        for row in range(ROWS):
            label = "" if row % 4 == 0 else toxic[row]
            writer.writerow([*x[row].round(3), label, colour[row], f"{x[row].sum() * 7 + 50.25:.2f}"])
    write_table(
        folder / "table.csv", folder / "data", TableColumns(["toxic", "colour", "weight"], units={"weight": "kg"})
    )
    return trained(folder)


@pytest.fixture(scope="module")
def table(run: Path) -> dict[str, np.ndarray]:
    """The test split's predictions; a missing label is NaN."""
    out = run / "test.parquet"
    assert main(["predict", str(run), "--out", str(out)]) == 0
    read = pyarrow.parquet.read_table(out)
    about = json.loads(read.schema.metadata[b"paretrain"])
    assert about == {
        "split": "test",
        "step": 4,
        "classes": {"toxic": ["0", "1"], "colour": ["blue", "green", "red"], "weight": []},
    }
    return {name: read[name].to_numpy() for name in read.column_names}


@pytest.mark.parametrize("processes", [1, 3])
def test_metrics_are_those_of_scikit_learn_on_the_predictions(
    processes: int, run: Path, table: dict[str, np.ndarray], paretrain: Command
) -> None:
    done = paretrain("eval", run, "--json", "--processes", processes)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["metrics"]["test"]
    known = ~np.isnan(table["toxic"])
    y, p = table["toxic"][known].astype(int), table["toxic.p1"][known]
    assert 0 < len(y) < len(known)
    assert found["toxic"]["auroc"] == pytest.approx(reference.roc_auc_score(y, p), abs=1e-6)
    assert found["toxic"]["f1"] == pytest.approx(reference.f1_score(y, p > 0.5), abs=1e-6)
    probabilities = np.stack([table[f"colour.p{one}"] for one in range(3)], axis=1)
    f1 = reference.f1_score(table["colour"], probabilities.argmax(axis=1), average="macro")
    assert found["colour"]["f1_macro"] == pytest.approx(f1, abs=1e-6)
    r2 = reference.r2_score(table["weight"], table["weight.predicted"])
    assert found["weight"]["r2"] == pytest.approx(r2, abs=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    for task, metrics in summary["metrics"]["test"].items():
        assert found[task] == pytest.approx(metrics, abs=1e-6)


def test_labels_are_those_of_the_data(run: Path, table: dict[str, np.ndarray]) -> None:
    assert table["sample"].tolist() == list(range(len(table["sample"])))
    assert {round(value * 100) / 100 for value in table["weight"].tolist()} == set(table["weight"].round(12).tolist())
    out = run / "test.csv"
    assert main(["predict", str(run), "--out", str(out)]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(table)
    with (run.parents[1] / "table.csv").open() as file:
        of_user = list(csv.DictReader(file))
    for row in rows:
        assert float(row["weight"]) == pytest.approx(float(of_user[int(row["sample.name"])]["weight"]))
    assert table["sample.name"].tolist() == [row["sample.name"] for row in rows]
    for name, values in table.items():
        if name == "sample.name":
            continue
        assert [np.nan if row[name] == "" else float(row[name]) for row in rows] == pytest.approx(values, nan_ok=True)
    assert main(["predict", str(run), "--out", str(out)]) == 2, "nothing is overwritten"


def test_each_image_is_named_by_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = {f"ü {number}.png": "ab"[number % 2] for number in range(40)}
    for name in labels:
        (tmp_path / name).write_bytes(encode(rng.integers(0, 256, (8, 8, 1), np.uint8), "png"))
    (tmp_path / "labels.csv").write_text("file,kind\n" + "".join(f"{name},{kind}\n" for name, kind in labels.items()))
    write_image_folder(tmp_path, tmp_path / "labels.csv", tmp_path / "data", Columns())
    run = trained(tmp_path)
    out = tmp_path / "test.csv"
    assert main(["predict", str(run), "--out", str(out)]) == 0
    with out.open() as file:
        found = {row["sample.name"]: "ab"[int(row["kind"])] for row in csv.DictReader(file)}
    assert found.items() <= labels.items()
    assert len(found) == read_manifest(tmp_path / "data").num_samples("test")


def test_intervals_enclose_the_metric(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--json", "--bootstrap", "40"]) == 0
    found = json.loads(capsys.readouterr().out)
    low, high = found["intervals"]["test"]["toxic"]["auroc"]
    assert 0 <= low < found["metrics"]["test"]["toxic"]["auroc"] < high <= 1


def test_a_run_against_itself_has_not_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--baseline", str(run)]) == 0
    said = capsys.readouterr().out
    assert "Δm +0.00 %" in said
    assert "auroc" in said
    assert main(["eval", str(run), "--split", "train", "--baseline", str(run)]) == 2
    assert "no metrics of the split 'train'" in capsys.readouterr().err
