"""Run folders as a study finds them: of any configuration, with metrics that the caller decides, and untrained."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.grid import Point
from trainer.config.file import to_yaml
from trainer.config.schema import Experiment
from trainer.observe.metrics import MetricsLog, errors_so_far, metrics_so_far, read_metrics, tested

Quality = Callable[[Experiment, str], float]
"""Accuracy that a run reaches on a split, the same for both tasks of the digits but for 0.1."""


def trains(quality: Quality, calls: list[list[str]]) -> Callable[[Path, Sequence[Point]], int]:
    """Return what a study calls to train: it writes the folders, and keeps the names of the runs of each call."""

    def train(base: Path, points: Sequence[Point]) -> int:
        calls.append([point.experiment.name for point in points])
        for point in points:
            _write(point.experiment, quality)
        return 0

    return train


def _write(experiment: Experiment, quality: Quality) -> None:
    folder = experiment.run_dir
    if folder.exists():
        return
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(experiment))
    tasks = experiment.data.tasks or ("left", "right")
    log = MetricsLog(folder / "metrics.jsonl", resume_step=None)
    steps = experiment.train.steps
    for kind, split in (("eval", "val"), ("test", "test")):
        values = {task: quality(experiment, split) - 0.1 * (task == "right") for task in tasks}
        log.write(
            {
                "kind": kind,
                "step": steps,
                "split": split,
                "errors": {task: 100 * (1 - value) for task, value in values.items()},
                "metrics": {task: {"accuracy": value, "log_loss": 1 - value} for task, value in values.items()},
                "deciding": dict.fromkeys(tasks, "accuracy"),
                "losses": {},
                "samples": 9,
                "seconds": 0.1,
            }
        )
    log.close()
    records = read_metrics(folder / "metrics.jsonl")
    costs = {"steps": steps, "wall_seconds": 2.0, "peak_memory_mib": 300.0, "tasks": list(tasks)}
    found = errors_so_far(records) | metrics_so_far(records) | tested(records)
    (folder / "summary.json").write_text(json.dumps(costs | found))
