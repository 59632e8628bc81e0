"""`paretrain sweep`: train the runs of a grid on this machine, one or several at a time. Complete runs are kept."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.grid import Point
from paretrain_command import safe_path
from trainer.config.machine import refuse_flood
from trainer.config.resume import differences
from trainer.errors import EXIT_UNFINISHED, UserError
from trainer.observe.compare import print_comparison
from trainer.observe.read_run import read_run
from trainer.observe.report.tables import duration
from trainer.run_folder import read_config
from trainer.run_path import CONFIG
from trainer.runtime.launcher import LAUNCHER

POLL_SECONDS = 0.2


def sweep(config: Path, points: Sequence[Point], parallel: int) -> int:
    """Train or resume every run that is not complete, and print a table of all.

    Args:
        config: the YAML file.
        points: the runs, from `launch.grid.points`.
        parallel: runs at a time. With more than one, the output of each goes to `RUN.txt` beside its folder.

    Returns:
        The exit code: 0 if all are complete, EXIT_UNFINISHED if some were asked to end and were saved.

    Raises:
        UserError: a run failed. The others were trained nevertheless.
    """
    ended = train_missing("sweep", config, points, parallel)
    unfinished = [point for point, _ in ended]
    done = [point.experiment.run_dir for point in points if point not in unfinished]
    if done:
        print_comparison([read_run(run_dir) for run_dir in done])
    return exit_code_of(ended, len(points))


def train_missing(command: str, config: Path, points: Sequence[Point], parallel: int) -> list[tuple[Point, int]]:
    """Train or resume every run that is not complete.

    Args:
        command: that does it, for its lines of output.
        config: the YAML file.
        points: the runs.
        parallel: runs at a time.

    Returns:
        The runs that ended before their last step, and their exit codes.

    Raises:
        UserError: so many runs at a time would flood the machine.
    """
    if parallel < 1:
        raise UserError(f"--parallel {parallel}: expected 1 or more runs at a time")
    for point in points:
        refuse_flood(point.experiment.parallel, point.experiment.data.workers, min(parallel, len(points)))
    missing = [point for point in points if not is_complete(point)]
    print(f"{command}: {len(points)} runs, {len(points) - len(missing)} of them complete", flush=True)
    return _train(command, config, missing, parallel)


def exit_code_of(ended: Sequence[tuple[Point, int]], num_runs: int) -> int:
    """Return the exit code of a command after `train_missing`: 0, or EXIT_UNFINISHED if runs were asked to end.

    Raises:
        UserError: a run failed.
    """
    failed = [point for point, exit_code in ended if exit_code != EXIT_UNFINISHED]
    if failed:
        names = ", ".join(point.experiment.name for point in failed)
        raise UserError(
            f"{len(failed)} of {num_runs} runs failed: {names}. Fix what they report, and type the same command "
            "again: it trains the missing runs"
        )
    return EXIT_UNFINISHED if ended else 0


def is_complete(point: Point) -> bool:
    """Return whether a run of this very configuration has no step left to make."""
    experiment = point.experiment
    run_dir = experiment.run_dir
    if not (run_dir / CONFIG).exists() or differences(read_config(run_dir), experiment):
        return False  # `train` refuses the folder of another configuration.
    summary = read_run(run_dir).summary
    if summary is None:
        return False
    return summary["steps"] >= experiment.train.steps or summary.get("stopped_early", False)


def _train(command: str, config: Path, points: Sequence[Point], parallel: int) -> list[tuple[Point, int]]:
    """Train the runs, each in its own processes, none of which outlives the command."""
    failed: list[tuple[Point, int]] = []
    waiting = list(enumerate(points, start=1))
    running: dict[subprocess.Popen[bytes], tuple[int, Point, float]] = {}

    def say(number: int, point: Point, what: str) -> None:
        print(f"{command}: [{number}/{len(points)}] {point.experiment.name} {what}", flush=True)

    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                number, point = waiting.pop(0)
                say(number, point, f"starts; its output goes to {_log(point)}" if parallel > 1 else "starts")
                process = _start(config, point, _log(point) if parallel > 1 else None)
                running[process] = number, point, time.perf_counter()
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                number, point, started = running.pop(process)
                taken = duration(time.perf_counter() - started)
                if process.returncode == 0 and is_complete(point):
                    say(number, point, f"is done after {taken}")
                else:
                    say(
                        number, point, f"ended before its last step, with exit code {process.returncode}, after {taken}"
                    )
                    failed.append((point, process.returncode))
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed


def _start(config: Path, point: Point, log: Path | None) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "trainer", "train", str(config), *point.overrides]
    # With LAUNCHER, the run ends when the sweep does, however that ends.
    environment = os.environ | safe_path() | {LAUNCHER: str(os.getpid())}
    if log is None:
        return subprocess.Popen(command, env=environment)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)


def _log(point: Point) -> Path:
    run_dir = point.experiment.run_dir
    return run_dir.with_name(f"{run_dir.name}.txt")
