"""NaN in a run: it stops and says how to go on, or goes on and tells what it left out."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.runs import saved
from trainer.cli import main
from trainer.observe.metrics import read_metrics

FAULTY = [
    "model.head={name: tests.support.faulty.NanOfEverySecondTask}",
    "model.encoder={name: tests.support.faulty.Normalised}",
    "checkpoint={every_steps: 1, keep: 9}",
]


def parameters(run_dir: Path, step: int) -> dict[str, Tensor]:
    """The model of a checkpoint, running statistics included."""
    return saved(run_dir / "checkpoints" / f"step_{step:08d}", "model")


def test_a_broken_task_is_left_out_and_a_broken_encoder_skips_the_step(
    config: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), *FAULTY, "balance.on_nonfinite=drop_task"]) == 0
    faults = [record for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] == "fault"]
    assert [(fault["step"], fault["action"]) for fault in faults] == [(2, "drop_task"), (5, "skip_step")]
    assert (faults[0]["losses"], faults[0]["gradients"]) == (["right"], ["right"])
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["broken"] == {"right": {"loss": 1, "gradient": 1}}
    assert summary["skipped_steps"] == 1
    shown = capsys.readouterr().out
    assert "step 2: not finite: loss and gradient of task 'right' on rank 0: left out of this step" in shown
    assert "step 5: not finite: the parameters' gradient, though every task's at z is: step skipped" in shown
    assert "not finite (summary.json): tasks at times 1, steps skipped 1" in shown
    report = (run_dir / "report.html").read_text()
    assert "2 steps<small>1 of them skipped" in report
    before, after = parameters(run_dir, 1), parameters(run_dir, 2)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "encoder.norm.weight" in moved
    assert "encoder.norm.running_mean" not in moved
    assert all(value.isfinite().all() for value in after.values())
    assert "heads.0.weight" in moved
    before, after = parameters(run_dir, 4), parameters(run_dir, 5)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_run_that_stopped_goes_on_when_told_to_skip(
    config: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), *FAULTY]) == 2
    said = capsys.readouterr().err
    assert "stopped at step 2: not finite: loss and gradient of task 'right' on rank 0" in said
    assert "add balance.on_nonfinite=skip_step" in said
    # The modules' own count of forwards starts anew: what was step 2 is step 3 now.
    assert main(["train", str(config), *FAULTY, "balance.on_nonfinite=skip_step"]) == 0
    torch.testing.assert_close(parameters(run_dir, 3), parameters(run_dir, 2), rtol=0, atol=0)
    assert json.loads((run_dir / "summary.json").read_text())["skipped_steps"] == 2
    assert "goes on after step 1" in capsys.readouterr().out
