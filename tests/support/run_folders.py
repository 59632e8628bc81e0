"""Run folders as a training leaves them, small and made of plain arithmetic."""

import json
from collections.abc import Sequence
from pathlib import Path

from trainer.observe.metrics import MetricsLog, errors_so_far, read_metrics


def write_run(
    folder: Path,
    tasks: Sequence[str],
    *,
    steps: int = 40,
    scale: float = 1.0,
    evals: bool = True,
    finished: bool = True,
) -> Path:
    """A run whose task number t has `scale * (t + 1)` percent error in the end; an unfinished one has no summary."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"name: {folder.name}\ntrain:\n  steps: {steps}\n", encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"command": "accelerate launch & <more>", "world_size": 2}))
    log = MetricsLog(folder / "metrics.jsonl", resume_step=None)
    for step in range(1, steps + 1):
        log.write(_train(step, tasks))
        if step % 10 == 0:
            gram = [[1.0 if row == column else -0.5 for column in range(len(tasks))] for row in range(len(tasks))]
            log.write({"kind": "gram", "step": step, "gram": gram})
        if evals and step % 20 == 0:
            errors = {task: scale * (index + 1) * steps / step for index, task in enumerate(tasks)}
            log.write({"kind": "eval", "step": step, "errors": errors, "losses": {}, "samples": 10, "seconds": 0.1})
    log.write({"kind": "note", "step": steps, "text": "continues after <kill>"})
    log.close()
    if finished:
        found = errors_so_far(read_metrics(folder / "metrics.jsonl"))
        costs = {"steps": steps, "wall_seconds": 134.0, "samples_per_second": 1000.0 / scale, "data_wait_percent": 2.0}
        (folder / "summary.json").write_text(
            json.dumps({"tasks": list(tasks), "world_size": 2, "weighting": "min_norm", **costs, **found})
        )
    return folder


def _train(step: int, tasks: Sequence[str]) -> dict:
    return {
        "kind": "train",
        "step": step,
        "epoch": 0,
        "samples": 10 * step,
        "seconds": 0.5 * step,
        "samples_per_second": 20.0,
        "data_wait_percent": 1.0,
        "learning_rate": 0.1,
        "losses": {task: (index + 1) / step if step != 3 else None for index, task in enumerate(tasks)},
        "alpha": dict.fromkeys(tasks, 1 / len(tasks)),
        "min_norm": 1 / step,
        "gap": 0.0 if step % 2 else 1e-17,
        "gradient_norm": None,
    }
