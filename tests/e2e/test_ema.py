"""A run that keeps the average of its parameters: evaluations, `eval` and `export` take it, and say so."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from trainer.cli import main
from trainer.commands.eval import evaluate_run
from trainer.config.sections.parallel import ParallelConfig
from trainer.run_folder import checkpoint_of
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.distributed import joined


def test_evaluations_and_exports_are_of_the_average(
    config: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "optimizer.ema_decay=0.8"]) == 0
    assert "by averaged weights  in " in capsys.readouterr().out
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "eval"][-1]
    assert last["averaged"]
    assert "Errors are of averaged weights." in (run_dir / "report.html").read_text()
    found = evaluate_run(run_dir, "test", step=None)
    assert "averaged weights, test split" in " ".join(capsys.readouterr().out.split())
    assert found.losses == pytest.approx(last["losses"], rel=1e-5)
    assert found.errors == last["errors"]

    assert main(["export", str(run_dir), "--out", str(tmp_path / "model.safetensors")]) == 0
    assert "exponential moving average of the trained ones (decay 0.8 a step)" in (tmp_path / "model.md").read_text()
    with joined(ParallelConfig()) as runtime:
        snapshot = load(checkpoint_of(run_dir, None), runtime)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        for name, slots in snapshot.optimizer.items():
            assert torch.equal(file.get_tensor(name), slots["ema"]), name
            assert not torch.equal(file.get_tensor(name), snapshot.model[name]), name
