"""The best checkpoint by val is kept, tested and named; a run without patience left is complete, also after a kill."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.grid import Point
from launch.sweep import is_complete
from tests.support.command import Command, run_command
from tests.support.contrary import DIES_AT, contrary_config
from tests.support.pages import Page
from tests.support.runs import checkpoint, numbers
from trainer.cli import main
from trainer.commands.evaluated import evaluate_checkpoint
from trainer.config.file import load_config

CHOICE = {"select": {"metric": "loss", "over": "sum"}, "patience": 3}


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in numbers(run_dir) if record["kind"] == kind]


def test_the_test_split_is_evaluated_once_with_the_best_checkpoint_by_val(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run_dir = contrary_config(tmp_path, **CHOICE), tmp_path / "runs" / "run"
    assert main(["train", str(config)]) == 0
    said = capsys.readouterr().out
    evaluated = records(run_dir, "eval")
    assert {record["split"] for record in evaluated} == {"val"}
    losses = [record["losses"]["sum"] for record in evaluated]
    best = evaluated[losses.index(min(losses))]["step"]
    last = evaluated[-1]["step"]
    assert len(evaluated) - 1 - losses.index(min(losses)) == 3, "three evaluations after the best one"
    assert last < 20
    assert f"train.patience: the last 3 evaluations were no better than that of step {best}" in said

    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["selected"] == {"step": best, "rule": "best loss of sum on val"}
    assert (summary["steps"], summary["complete"], summary["test_step"]) == (last, True, best)
    assert is_complete(Point((), load_config(config))), "a sweep does not train it again"
    (tested,) = records(run_dir, "test")
    found = evaluate_checkpoint(run_dir, "test", "best", None).found
    assert summary["test_errors"] == tested["errors"] == found.errors
    assert found.losses == pytest.approx(tested["losses"])
    assert f"(step {best}, best loss of sum on val)" in said
    page = Page(run_dir / "report.html")
    assert f"test error at step {best}" in page.text
    assert f"step {best}best loss of sum on val" in page.text
    assert evaluate_checkpoint(run_dir, "test", None, None).found.losses != found.losses

    saved = {path.name for path in (run_dir / "checkpoints").glob("step_*")}
    assert f"step_{best:08d}" in saved
    assert main(["export", str(run_dir), "--step", "best", "--out", str(tmp_path / "best.safetensors")]) == 0
    assert f"step_{best:08d}" in capsys.readouterr().out

    assert main(["train", str(config)]) == 0
    assert "To train on, raise train.patience" in capsys.readouterr().out
    assert len(records(run_dir, "test")) == 1, "once"


@pytest.mark.slow
def test_a_killed_run_chooses_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    config, runs = contrary_config(tmp_path, **CHOICE), tmp_path / "runs"
    assert main(["train", str(config), "name=whole"]) == 0
    # One forward before the first step; the steps after the last checkpoint are made twice.
    end = records(runs / "whole", "eval")[-1]["step"]
    killed = run_command("train", config, env_too={DIES_AT: str(end)})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert main(["train", str(config)]) == 0
    assert numbers(runs / "run") == numbers(runs / "whole")
    for found, expected in zip(checkpoint(runs / "run"), checkpoint(runs / "whole"), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "strategy", ["ddp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fsdp2", "zero3"))]
)
def test_two_processes_end_at_the_same_step_as_one_also_after_a_kill(
    strategy: str, tmp_path: Path, paretrain: Command
) -> None:
    config, runs = contrary_config(tmp_path, **CHOICE), tmp_path / "runs"
    assert main(["train", str(config), "name=alone"]) == 0
    arguments = ["train", config, "--processes", 2, f"parallel.strategy={strategy}"]
    if strategy != "ddp":
        end = records(runs / "alone", "eval")[-1]["step"]
        assert paretrain(*arguments, env_too={DIES_AT: str(end)}).returncode != 0
    done = paretrain(*arguments)
    assert done.returncode == 0, done.stderr
    alone, two = (json.loads((runs / name / "summary.json").read_text()) for name in ("alone", "run"))
    for key in ("selected", "steps", "test_errors"):
        assert two[key] == pytest.approx(alone[key]) if key == "test_errors" else two[key] == alone[key]


def test_without_a_val_split_nothing_is_chosen_by_the_test_split_unless_asked(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "train.select={}"]) == 2
    assert "type train.eval_split=test" in capsys.readouterr().err
