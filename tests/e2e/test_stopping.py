"""A run that is asked to stop: saved by all ranks at one step, over without an error, and it goes on bit for bit."""

import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.support.command import Command
from tests.support.runs import checkpoint, numbers, started, wait_for_rank
from trainer.cli import main
from trainer.errors import EXIT_UNFINISHED

LENGTH = ["--processes", 2, "train.eval_every_steps=50", "checkpoint.every_steps=50"]


@pytest.mark.slow
def test_a_run_that_is_stopped_twice_ends_as_one_that_was_not(config: Path, run_dir: Path, paretrain: Command) -> None:
    # A signal that one rank alone hears: the machine is wanted, and the batch script is to bring the run back.
    with started("train", config, *LENGTH, "train.steps=100000") as process:
        os.kill(wait_for_rank(process, rank=1, until=run_dir / "metrics.jsonl"), signal.SIGUSR1)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_UNFINISHED, errors
    assert "asked to make room: saved; type the same command to resume" in said
    marker = json.loads((run_dir / "requeue").read_text())
    assert marker["started_at_step"] == 0
    first = f"step_{marker['step']:08d}"
    assert (run_dir / "checkpoints" / "LATEST").read_text() == first
    (run_dir / "requeue").unlink()

    # A file: somebody wants it to stop.
    with started("train", config, *LENGTH, "train.steps=100000") as process:
        process_lines = iter(process.stdout or ())
        while "goes on after step" not in next(process_lines):
            pass
        (run_dir / "stop").touch()
        said, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_UNFINISHED, errors
    assert "asked to stop: saved; type the same command to resume" in said
    second = (run_dir / "checkpoints" / "LATEST").read_text()
    assert second > first
    assert not (run_dir / "stop").exists()
    assert not (run_dir / "requeue").exists()

    length = [*LENGTH, f"train.steps={int(second.removeprefix('step_')) + 5}"]
    for name in ("run", "whole"):
        done = paretrain("train", config, *length, f"name={name}")
        assert done.returncode == 0, done.stderr
    without_notes = [record for record in numbers(run_dir) if record["kind"] != "note"]
    assert without_notes == numbers(run_dir.with_name("whole"))
    for found, expected in zip(checkpoint(run_dir), checkpoint(run_dir.with_name("whole")), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_two_jobs_do_not_train_in_one_folder(config: Path, run_dir: Path, paretrain: Command) -> None:
    run_dir.mkdir(parents=True)
    with (run_dir / ".lock").open("w") as lock:
        lock.write("process 17 on another\n")
        lock.flush()
        fcntl.lockf(lock, fcntl.LOCK_EX)
        done = paretrain("train", config)
    assert done.returncode == 2
    assert f"{run_dir} is being trained already, by process 17 on another. Wait for it, or end it" in done.stderr
    assert not (run_dir / "config.yaml").exists()


def test_when_time_is_up_a_run_saves_and_ends_and_save_saves_and_goes_on(
    config: Path, run_dir: Path, paretrain: Command
) -> None:
    done = paretrain("train", config, "train.max_hours=1e-9")
    assert done.returncode == EXIT_UNFINISHED, done.stderr
    assert "train.max_hours have passed: saved; type the same command to resume" in done.stdout
    assert json.loads((run_dir / "requeue").read_text()) == {"step": 1, "started_at_step": 0}
    (run_dir / "save").touch()
    done = paretrain("train", config, "train.steps=3", "checkpoint.keep=9")
    assert done.returncode == 0, done.stderr
    saved = sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))
    assert saved == ["step_00000001", "step_00000002", "step_00000003"]
    assert not (run_dir / "save").exists()


def test_a_run_whose_machine_is_wanted_is_saved_and_draws_no_report(
    config: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PARETRAIN_JOB_ID", "7")
    run_dir.mkdir(parents=True)
    (run_dir / "stop.7").touch()
    assert main(["train", str(config)]) == EXIT_UNFINISHED
    assert f"Type: paretrain report {run_dir}\n" in capsys.readouterr().out
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 1
    assert json.loads((run_dir / "requeue").read_text()) == {"step": 1, "started_at_step": 0}
    assert (run_dir / "checkpoints" / "LATEST").read_text() == "step_00000001"
    assert not (run_dir / "report.html").exists()
    assert main(["report", str(run_dir)]) == 0
    assert (run_dir / "report.html").exists()


def test_a_run_that_was_stopped_before_it_began_stands_still(config: Path, run_dir: Path, paretrain: Command) -> None:
    run_dir.mkdir(parents=True)
    (run_dir / "stop").touch()
    done = paretrain("train", config)
    assert done.returncode == 2
    assert f"To go on, remove it: rm {run_dir / 'stop'}" in done.stderr
