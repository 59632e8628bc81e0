"""What a launcher returns, where a run listens, and what is left when the launcher is killed."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.command import ROOT, Command, command_line, environment
from tests.support.runs import started, wait_for_rank
from trainer.cli import main
from trainer.errors import EXIT_UNFINISHED
from trainer.observe.metrics import read_metrics

ENDLESS = ["--processes", 2, "train.steps=100000", "train.eval_every_steps=100000", "checkpoint.every_steps=100000"]
TIME_IS_UP = "train.max_hours=1e-9"


def notes(run_dir: Path) -> list[str]:
    """What the run has remarked."""
    return [record["text"] for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] == "note"]


def test_ranks_listen_on_loopback_alone_and_save_and_end_when_their_launcher_is_killed(
    config: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with started("train", config, *ENDLESS) as launcher:
        wait_for_rank(launcher, rank=1, until=run_dir / "metrics.jsonl")
        children = psutil.Process(launcher.pid).children(recursive=True)
        listening = [
            found.laddr.ip
            for process in (psutil.Process(launcher.pid), *children)
            for found in process.net_connections("inet")
            if found.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == {"127.0.0.1"}
        assert len(listening) > 2, "the launcher and each rank"
        launcher.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
    assert notes(run_dir)[-1] == "the launcher is gone: saved; type the same command to resume"
    assert (run_dir / "checkpoints" / "LATEST").exists()
    assert json.loads((run_dir / "requeue").read_text())["step"] > 0
    assert not list((tmp_path / "tmp").glob("torchelastic_*"))


def test_a_launcher_that_is_terminated_says_that_the_run_was_saved(config: Path, run_dir: Path) -> None:
    with started("train", config, *ENDLESS) as launcher:
        wait_for_rank(launcher, rank=1, until=run_dir / "metrics.jsonl")
        launcher.terminate()
        _, errors = launcher.communicate(timeout=90)
    assert launcher.returncode == EXIT_UNFINISHED, errors
    assert "error" not in errors
    assert notes(run_dir) == ["asked to make room: saved; type the same command to resume"]


def test_node_entry_returns_what_the_ranks_do_and_does_not_start_again(config: Path, run_dir: Path) -> None:
    done = subprocess.run(
        [ROOT / "launch" / "node" / "entry.sh", config, TIME_IS_UP],
        cwd=ROOT,
        env=environment() | {"PYTHON": sys.executable, "PROCESSES_PER_NODE": "2", "MAX_RESTARTS": "3"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == EXIT_UNFINISHED, done.stderr
    assert "error" not in done.stderr
    assert notes(run_dir) == ["train.max_hours have passed: saved; type the same command to resume"]


def test_paretrain_train_is_a_rank_where_a_launcher_has_started_it(config: Path, run_dir: Path) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--no_python"]
    options = ["--config_file", ROOT / "launch" / "accelerate" / "processes.yaml"]
    done = subprocess.run(
        [*launcher, *options, *command_line("train", config, "parallel.processes=2", "train.steps=3")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("on 2 processes; ") == 1
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 3


def test_a_rank_cannot_restart_its_run(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert main(["train", str(config), "--max-restarts", "1"]) == 2
    assert "only that one can start it again" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_of_runs_that_were_saved_is_unfinished(config: Path, paretrain: Command) -> None:
    done = paretrain("sweep", config, "--grid", "seed=1", TIME_IS_UP)
    assert done.returncode == EXIT_UNFINISHED, done.stderr
    assert f"run-seed-1 ended before its last step, with exit code {EXIT_UNFINISHED}" in done.stdout
