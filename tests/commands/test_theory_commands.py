"""The commands that say what combining tasks wins, in this process."""

import csv
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from paretrain.theory.coupling import penalty_grid
from trainer.cli import main
from trainer.commands.eval import evaluate_run
from trainer.data.sources.digits import write_digits
from trainer.data.sources.table import write_table


@pytest.fixture(autouse=True)
def coarse_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer penalties: each takes a fixed point of its own."""
    module = sys.modules["paretrain.theory.coupling.couple"]
    monkeypatch.setattr(module, "penalty_grid", partial(penalty_grid, 0.1, 10, per_decade=1))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two alike numbers, one of them often missing, and two classes, from 6 features."""
    folder = tmp_path_factory.mktemp("table")
    generator = np.random.default_rng(0)
    features = generator.standard_normal((90, 6))
    common = features @ generator.standard_normal(6)
    with (folder / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"f{i}" for i in range(6)), "<b>", "often missing", "sign"])
        for row, value in zip(features, common, strict=True):
            second = "" if generator.random() < 0.4 else round(value + generator.standard_normal(), 3)
            sign = "up" if value + generator.standard_normal() > 0 else "down"
            writer.writerow([*row.round(3), round(value + generator.standard_normal(), 3), second, sign])
    write_table(folder / "t.csv", folder / "data", targets=["<b>", "often missing", "sign"])
    return folder / "data"


def test_a_table_gets_its_advice(table, tmp_path, capsys):
    out = tmp_path / "advice.html"

    assert main(["couple", str(table), "--samples", "40", "--out", str(out)]) == 0

    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "advice.json").read_text())
    page = out.read_text()
    assert found["tasks"] == ["<b>", "often missing", "sign"]
    assert found["design"] == "some rows shared"
    assert found["samples"] == 40 < found["predicted_for_samples"]
    assert found["ratio_T"][0] == pytest.approx(6 / found["predicted_for_samples"])
    assert found["sentence"] in shown
    assert "theory of independent rows" in shown
    assert "theory of independent rows" in page
    assert page.count("<svg") == 1
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_tasks_with_all_labels_share_their_rows(table, tmp_path, capsys):
    arguments = ["couple", str(table), "--tasks", "<b>", "sign", "--samples", "40", "--out", str(tmp_path / "a.html")]

    assert main(arguments) == 0

    assert "theory of shared rows" in capsys.readouterr().out


def test_images_and_other_folders_are_refused(tmp_path, capsys):
    write_digits(tmp_path / "digits", train_samples=40, test_samples=10)

    assert main(["couple", str(tmp_path / "digits")]) == 2
    assert "holds images" in capsys.readouterr().err
    assert main(["couple", str(tmp_path)]) == 2
    assert "neither a run's folder" in capsys.readouterr().err


def test_an_unknown_study_names_those_that_there_are(capsys):
    assert main(["study", "double-decent"]) == 2

    error = capsys.readouterr().err
    assert "did you mean 'double-descent'" in error


@pytest.fixture(scope="module")
def run_dir(table: Path) -> Path:
    """A run of a few steps only: its encoder is nearly random, and its heads are far from their best."""
    values = {
        "name": "run",
        "output": str(table.parent / "runs"),
        "data": {"path": str(table), "workers": 0},
        "model": {"encoder": {"name": "mlp", "options": {"hidden": [16]}}, "head": {"name": "mlp"}},
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "train": {"steps": 3, "global_batch": 16, "eval_every_steps": 3},
        "checkpoint": {"every_steps": 3},
        "wandb": {"mode": "off"},
    }
    config = table.parent / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    assert main(["train", str(config)]) == 0
    return table.parent / "runs" / "run"


@pytest.mark.processes  # a run asks git which commit it is of
def test_refitted_heads_are_a_run_of_their_own(run_dir, tmp_path, capsys):
    out = tmp_path / "again"

    assert main(["refit", str(run_dir), "--out", str(out)]) == 0

    shown = capsys.readouterr().out
    found = json.loads((out / "refit.json").read_text())
    assert next(iter(found["candidates"])) == "each alone"
    assert "coupled by theory" in found["candidates"]
    assert [task["task"] for task in found["tasks"]] == ["<b>", "often missing", "sign"]
    assert all(task["after"] < task["before"] for task in found["tasks"])
    assert "WORSE" not in shown
    assert found["mean_change"] < -2 * found["mean_change_error"] < 0
    before, after = evaluate_run(run_dir, "test", None), evaluate_run(out, "test", None)
    assert after.errors["<b>"] < before.errors["<b>"]
    assert after.losses["sign"] < before.losses["sign"]
    assert main(["export", str(out), "--out", str(tmp_path / "model.safetensors")]) == 0
    assert main(["refit", str(run_dir), "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.processes
def test_a_runs_representation_gets_its_advice(run_dir, tmp_path, capsys):
    assert main(["couple", str(run_dir), "--samples", "40", "--tasks", "<b>", "sign"]) == 0

    assert "representation" in (run_dir / "couple.html").read_text()
    assert json.loads((run_dir / "couple.json").read_text())["design"] == "shared rows"
