"""A run through the real command: what it leaves, how it goes on, that the number of processes does not matter."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from paretrain import __version__
from tests.support.command import ROOT, Command, environment
from tests.support.runs import checkpoint, numbers, started, wait_for_rank
from trainer.errors import EXIT_UNFINISHED
from trainer.observe.metrics import read_metrics


def test_two_processes_leave_a_whole_run(config: Path, run_dir: Path, paretrain: Command) -> None:
    done = paretrain("train", config, "--processes", 2)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    kinds = [(record["kind"], record["step"]) for record in numbers(run_dir)]
    assert [step for kind, step in kinds if kind == "train"] == [1, 2, 3, 4, 5, 6]
    assert [step for kind, step in kinds if kind == "eval"] == [3, 6]
    last = [record for record in numbers(run_dir) if record["kind"] == "train"][-1]
    assert sum(last["alpha"].values()) == pytest.approx(1)
    assert last["gap"] <= 1e-12 * last["min_norm"]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["samples"], summary["world_size"]) == (6, 240, 2)
    assert set(summary["final_errors"]) == {"left", "right"}
    provenance = json.loads((run_dir / "run.json").read_text())
    assert provenance["versions"]["torch"] == torch.__version__
    assert provenance["command"].startswith("paretrain train ")
    (start,) = map(json.loads, (run_dir / "starts.jsonl").read_text().splitlines())
    assert start == {"step": 0, "job": None, "restarts": None, **provenance}
    manifest = json.loads((run_dir / "checkpoints" / "step_00000006" / "manifest.json").read_text())
    commit = provenance["git"] and provenance["git"]["commit"]
    assert manifest["written_by"] == {"version": __version__, "commit": commit}
    heartbeat = json.loads((run_dir / "heartbeat.json").read_text())
    assert (heartbeat["state"], heartbeat["step"], heartbeat["checkpoint_step"]) == ("complete", 6, 6)
    clock = [record["seconds"] for record in read_metrics(run_dir / "metrics.jsonl")]
    assert clock == sorted(clock)
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "LATEST",
        "step_00000003",
        "step_00000006",
    ]


@pytest.mark.slow
def test_evaluation_counts_every_test_sample_once_on_any_number_of_processes(
    config: Path, run_dir: Path, paretrain: Command
) -> None:
    for processes in (1, 2, 4):
        name = f"on{processes}"
        no_dropout = ["model.encoder.options={dropout: 0.0}", "model.head.options={dropout: 0.0}"]
        done = paretrain("train", config, "--processes", processes, f"name={name}", *no_dropout)
        assert done.returncode == 0, done.stderr
    alone, two, four = (run_dir.with_name(f"on{processes}") for processes in (1, 2, 4))
    for other in (two, four):
        for expected, found in zip(numbers(alone), numbers(other), strict=True):
            if expected["kind"] == "eval":
                assert expected["samples"] == found["samples"] == 90
                assert found["errors"] == expected["errors"]
            if expected["kind"] == "train":
                assert found["alpha"] == pytest.approx(expected["alpha"], abs=1e-5)
                assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        for name, tensor in checkpoint(alone)[0].items():
            torch.testing.assert_close(checkpoint(other)[0][name], tensor, rtol=1e-4, atol=1e-6)
    evaluated = paretrain("eval", alone)
    assert evaluated.returncode == 0, evaluated.stderr
    final = json.loads((alone / "summary.json").read_text())["final_errors"]
    for task, error in final.items():
        assert re.search(rf"{task}.*{error:.2f}", evaluated.stdout), evaluated.stdout


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_goes_on_bit_for_bit(
    config: Path, run_dir: Path, paretrain: Command
) -> None:
    """Uninterrupted, and killed between two checkpoints: the same parameters, optimizer, random state and metrics.

    On four processes: with two, a sum over ranks has only one order.
    """
    length = ["train.steps=24", "checkpoint.every_steps=4", "train.eval_every_steps=8"]
    whole = paretrain("train", config, "--processes", 4, "name=whole", *length)
    assert whole.returncode == 0, whole.stderr

    arguments = ["train", config, "--processes", 4, *length]
    with started(*arguments) as process:
        victim = wait_for_rank(process, rank=1, until=run_dir / "checkpoints" / "LATEST")
        os.kill(victim, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert f"rank 1 (process {victim}) was ended by SIGKILL" in errors
    assert "Traceback" not in errors
    assert not (run_dir / "summary.json").exists(), "the run was over before it could be killed"

    again = paretrain(*arguments)
    assert again.returncode == 0, again.stderr
    assert "goes on after step" in again.stdout
    assert numbers(run_dir) == numbers(run_dir.with_name("whole"))
    for found, expected in zip(checkpoint(run_dir), checkpoint(run_dir.with_name("whole")), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_ctrl_c_saves_and_ends_and_a_second_one_ends_every_process_at_once(config: Path, run_dir: Path) -> None:
    length = ["train.steps=100000", "train.eval_every_steps=100000", "checkpoint.every_steps=100000"]
    with started("train", config, "--processes", 2, *length) as process:
        child = wait_for_rank(process, rank=1, until=run_dir / "metrics.jsonl")
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_UNFINISHED, errors
    assert "saves after this step" in errors
    step = int((run_dir / "checkpoints" / "LATEST").read_text().removeprefix("step_"))
    assert f"step {step}: asked to stop: saved" in said
    assert "not evaluated yet" in said
    assert not psutil.pid_exists(child)

    with started("train", config, "--processes", 2, *length) as process:
        lines = iter(process.stdout or ())
        while "goes on after step" not in next(lines):
            pass
        child = wait_for_rank(process, rank=1, until=run_dir / "metrics.jsonl")
        os.kill(child, signal.SIGSTOP)  # It cannot answer the first one.
        process.send_signal(signal.SIGINT)
        while "saves after this step" not in next(iter(process.stderr or ())):
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert f"the last checkpoint is step_{step:08d}" in errors
    assert "Traceback" not in errors
    assert not psutil.pid_exists(child)


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_with_one_message(config: Path, paretrain: Command) -> None:
    encoder = "model.encoder={name: tests.support.faulty.NanOnRank1}"
    done = paretrain("train", config, "--processes", 2, encoder, limit_seconds=60)
    assert done.returncode == 2
    message = "stopped at step 3: not finite: loss and gradient of tasks 'left', 'right' on rank 1"
    assert message in done.stderr
    assert done.stderr.count("paretrain: error") == 1
    assert "Traceback" not in done.stderr


def accelerate_launch(options: list[str], config: Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options]
    return subprocess.run(
        [*launcher, "-m", "trainer.train", str(config), "parallel.processes=2"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


LAUNCHES = {
    "a single process where two were asked for": ["--cpu", "--num_processes", "2"],
    "three processes where two were asked for": [
        "--config_file",
        "launch/accelerate/processes.yaml",
        "--num_processes",
        "3",
    ],
}


@pytest.mark.parametrize("options", LAUNCHES.values(), ids=LAUNCHES)
def test_another_number_of_processes_than_asked_for_is_refused(options: list[str], config: Path, run_dir: Path) -> None:
    done = accelerate_launch(options, config)
    assert done.returncode != 0
    assert "2 processes were asked for (parallel.processes)" in done.stderr
    assert not run_dir.exists()


@pytest.mark.slow
def test_accelerate_launch_trains_as_the_command_does(config: Path, run_dir: Path) -> None:
    done = accelerate_launch(["--config_file", "launch/accelerate/processes.yaml", "--num_processes", "2"], config)
    assert done.returncode == 0, done.stderr
    assert json.loads((run_dir / "summary.json").read_text())["world_size"] == 2
