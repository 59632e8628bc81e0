"""A run whose processes are killed: it comes back by itself, and nothing of it shows in the end."""

import random
import re
import subprocess
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from tests.support.command import ROOT, Command, command_line, environment
from tests.support.runs import checkpoint, numbers

NUM_KILLS = 50
SECONDS_TO_END = 15
"""How long processes may outlive their killed launcher."""


@contextmanager
def spoken_to(log: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """The real command, running, what it says in a file; it is gone at the end of the block."""
    with log.open("ab") as stream:
        command = command_line(*arguments)
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=stream, stderr=stream)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=60)


def ranks_of(launcher: subprocess.Popen[bytes]) -> dict[int, psutil.Process]:
    """The processes that train now, by their rank."""
    found = {}
    for process in psutil.Process(launcher.pid).children():
        try:
            if "RANK" in (variables := process.environ()):
                found[int(variables["RANK"])] = process
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


def training_ranks(
    launcher: subprocess.Popen[bytes], run_dir: Path, gone: Set[psutil.Process]
) -> dict[int, psutil.Process] | None:
    """Both ranks of the next start, as soon as it logs; None: the launcher has ended."""
    metrics = run_dir / "metrics.jsonl"
    while launcher.poll() is None:
        ranks = ranks_of(launcher)
        are_new = len(ranks) == 2 and not gone & set(ranks.values())
        if are_new and metrics.exists() and metrics.stat().st_mtime > ranks[0].create_time():
            return ranks
        time.sleep(0.01)
    return None


def end_of(processes: Set[psutil.Process]) -> None:
    """Wait for the end of processes whose launcher was killed; none may be left."""
    _, left = psutil.wait_procs(processes, timeout=SECONDS_TO_END)
    for process in left:
        process.kill()
    assert not left, f"{len(left)} processes train on {SECONDS_TO_END} s after their launcher was killed"


def is_saving(run_dir: Path) -> bool:
    """Whether a checkpoint is under way."""
    return any(not re.fullmatch(r"step_\d{8}|LATEST", path.name) for path in (run_dir / "checkpoints").iterdir())


def steps_saved(run_dir: Path) -> int:
    """The step of the last checkpoint; 0 where there is none."""
    latest = run_dir / "checkpoints" / "LATEST"
    return int(latest.read_text().removeprefix("step_")) if latest.exists() else 0


def test_a_killed_run_comes_back_by_itself(config: Path, run_dir: Path, tmp_path: Path) -> None:
    length = ("train.steps=20", "train.eval_every_steps=20", "checkpoint.every_steps=2")
    slow = "model.encoder.name=tests.support.slow.SlowLeNet"
    with spoken_to(tmp_path / "log", "train", config, "--max-restarts", 1, *length, slow) as launcher:
        while not (run_dir / "checkpoints" / "LATEST").exists():
            assert launcher.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        ranks_of(launcher)[0].kill()
        assert launcher.wait(timeout=120) == 0
    said = (tmp_path / "log").read_text()
    assert "rank 0 (process" in said
    assert "was ended by SIGKILL" in said
    assert re.search(r"starts again from step_000000\d\d, 1 of 1 times", said)
    assert [record["step"] for record in numbers(run_dir) if record["kind"] == "train"] == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_fifty_kills_at_random_moments_leave_no_trace(
    config: Path, run_dir: Path, paretrain: Command, tmp_path: Path
) -> None:
    """Every third kill is the launcher's, whose ranks then end by themselves; the others are one of the ranks'."""
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    often = ("train.log_every_steps=5", "train.eval_every_steps=500", "checkpoint.every_steps=3")
    command = ("train", config, "--processes", 2, "optimizer.learning_rate=0.01", *often)
    log, kills, num_commands = tmp_path / "log", [], 0
    gone: set[psutil.Process] = set()
    while len(kills) < NUM_KILLS:
        num_commands += 1
        # More than one command is needed: none follows a killed launcher, nor a start killed before it had saved.
        with spoken_to(log, *command, "train.steps=100000", "--max-restarts", NUM_KILLS) as launcher:
            while len(kills) < NUM_KILLS and (ranks := training_ranks(launcher, run_dir, gone)):
                gone |= set(ranks.values())
                rank = draw.randrange(2)
                time.sleep(draw.uniform(0, 1))
                while len(kills) % 2 and not is_saving(run_dir) and ranks[rank].is_running():
                    time.sleep(0.001)  # Every second one is killed as soon as a checkpoint is under way.
                is_launcher = len(kills) % 3 == 2
                kills.append(("launcher" if is_launcher else rank, steps_saved(run_dir), is_saving(run_dir)))
                if is_launcher:
                    family = set(psutil.Process(launcher.pid).children(recursive=True))
                    launcher.kill()
                    launcher.wait()
                    end_of(family)
                else:
                    ranks[rank].kill()
    print(f"seed {seed}; {num_commands} commands; (killed, steps saved, in a save): {kills}")
    assert sum(in_save for _, _, in_save in kills) >= NUM_KILLS // 4
    num_steps = steps_saved(run_dir) + 20
    for name in ("run", "whole"):
        done = paretrain(*command, f"train.steps={num_steps}", f"name={name}", limit_seconds=600)
        assert done.returncode == 0, done.stderr
    whole = run_dir.with_name("whole")
    found, expected = ([record for record in numbers(of) if record["kind"] != "note"] for of in (run_dir, whole))
    # A run that is asked to stop also logs its last step.
    logged = {(record["kind"], record["step"]) for record in expected}
    assert [record for record in found if (record["kind"], record["step"]) in logged] == expected
    for part, part_of_whole in zip(checkpoint(run_dir), checkpoint(whole), strict=True):
        torch.testing.assert_close(part, part_of_whole, rtol=0, atol=0)
