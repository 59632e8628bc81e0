"""Every kind of task through the real commands: images with targets for every pixel, and a table."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.rich_data import write_rich
from trainer.cli import main


def configuration(folder: Path, data: Path, encoder: dict) -> Path:
    values = {
        "name": data.name,
        "output": str(folder / "runs"),
        "data": {"path": str(data)},
        "model": {"encoder": encoder, "head": {"name": "linear"}},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "train": {"steps": 2, "global_batch": 6, "log_every_steps": 1, "eval_every_steps": 2},
        "checkpoint": {"every_steps": 2},
    }
    path = folder / f"{data.name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_classes_numbers_and_maps_are_trained_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rich(tmp_path / "rich")
    encoder = {"name": "resnet18", "options": {"stem": "cifar", "pool": None}}
    config = configuration(tmp_path, tmp_path / "rich", encoder)
    assert main(["train", str(config)]) == 0
    assert main(["eval", str(tmp_path / "runs" / "rich")]) == 0
    said = capsys.readouterr().out
    summary = json.loads((tmp_path / "runs" / "rich" / "summary.json").read_text())
    assert summary["units"] == {"parts": "% mIoU", "even": "%", "depth": "m", "weight": "kg"}
    assert all(error > 0 for error in summary["final_errors"].values())
    for unit in (" m", " kg", "%"):
        assert f"{unit} " in said
    assert "5 samples" in said
    page = (tmp_path / "runs" / "rich" / "report.html").read_text()
    for title in ("test mIoU (%)", "test error (%)", "test error (m)", "test error (kg)"):
        assert title in page


def test_a_table_of_many_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.training.summary.write_report", lambda run_dirs, out: None)  # the other test draws one
    rng = np.random.default_rng(0)
    features_BF = rng.normal(size=(60, 4))
    targets_BT = features_BF @ rng.normal(size=(4, 50))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*"abcd", *(f"y{t}" for t in range(50))])
        writer.writerows(np.hstack([features_BF, targets_BT]).round(4).tolist())
    command = ["data", "table", "--csv", tmp_path / "t.csv", "--targets", "y*", "--out", tmp_path / "table"]
    assert main([*map(str, command)]) == 0
    config = configuration(tmp_path, tmp_path / "table", {"name": "mlp", "options": {"hidden": [16]}})
    assert main(["train", str(config), "train.steps=60", "train.eval_every_steps=30", "checkpoint.every_steps=60"]) == 0
    lines = (tmp_path / "runs" / "table" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    first, last = (np.mean(list(r["errors"].values())) for r in records if r["kind"] == "eval")
    assert last < first < 1.5, "mean absolute errors in standard deviations, which fall"
    assert set(records[-1].get("units", {}).values()) <= {"σ"}
