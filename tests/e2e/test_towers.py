"""Small Towers through the real loop: trained, watched, kept, and asked by no evaluation."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.support.runs import saved
from trainer.cli import main
from trainer.commands.eval import evaluate_run
from trainer.config.file import load_config
from trainer.data.format.manifest import read_manifest
from trainer.training.network.build import build_network
from trainer.training.tasks import build_tasks


@pytest.mark.parametrize("space", ["representation", "parameters"])
def test_digits_train_with_towers_and_are_evaluated_without(
    config: Path, digits: Path, run_dir: Path, space: str
) -> None:
    overrides = ["model.tower={weight: 0.5}", f"balance.space={space}", "balance.monitor_every_steps=2"]
    assert main(["train", str(config), *overrides, "train.steps=4"]) == 0
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "monitor"] == [2, 4]
    # Ten classes at chance: ln 10 for the head, and half of that for its tower; the head alone at evaluation.
    first = next(record for record in records if record["kind"] == "train")
    last = [record for record in records if record["kind"] == "eval"][-1]
    for name in ("left", "right"):
        assert first["losses"][name] == pytest.approx(1.5 * math.log(10), rel=0.1)
        assert last["losses"][name] == pytest.approx(math.log(10), rel=0.1)
    assert evaluate_run(run_dir, "test", None).errors == pytest.approx(last["errors"])
    assert "Descent" in (run_dir / "report.html").read_text()

    experiment, manifest = load_config(config, overrides), read_manifest(digits)
    start = build_network(experiment, manifest, build_tasks(manifest, None, {})).state_dict()
    (checkpoint,) = (run_dir / "checkpoints").glob("step_00000004")
    end = saved(checkpoint, "model")
    for name in ("heads.main.first.weight_TCD", "heads.towers.first.weight_TCD"):
        assert not torch.equal(end[name], start[name]), name
