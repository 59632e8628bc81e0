"""What a run says of itself: numbers while it trains; at its end a summary and a report."""

import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import fmean
from typing import Any

import torch

from trainer.observe.metrics import MetricsLog, errors_so_far, read_metrics
from trainer.observe.observers import Everybody, Nobody, Observers
from trainer.observe.progress import Progress
from trainer.observe.report import write_report
from trainer.observe.tracker import Tracker, open_tracker
from trainer.run import Run
from trainer.run_dir import LOG, METRICS, REPORT, write_summary


@contextmanager
def observed(run: Run, resumed: bool) -> Iterator[Observers]:
    """Give the loop its observers, and leave the summary and the report when it ends well. Collective.

    Raises:
        UserError: a log of an earlier part is damaged, or the tracker that was asked for cannot be had.
    """
    run_dir = run.experiment.run_dir
    with ExitStack() as stack:
        observers: Observers = Nobody()
        with run.runtime.together():
            if run.runtime.is_main:
                metrics = MetricsLog(run_dir / METRICS, resume_step=run.step if resumed else None)
                stack.callback(metrics.close)
                progress = stack.enter_context(Progress(run_dir / LOG, run.experiment.train.steps, run.step))
                progress.note(_opening(run, resumed))
                tracker = _open_tracker(run, progress)
                stack.push(lambda kind, error, traceback: tracker.close(None) if kind else None)
                observers = Everybody(metrics, progress, tracker)
        yield observers
        peak_memory_mib = max(run.runtime.gather(_peak_memory_mib()))
        bad_samples = sum(run.runtime.gather(run.train_batches.bad_samples), Counter())
        if run.runtime.is_main:
            summary = _summary(run) | {"peak_memory_mib": peak_memory_mib, "bad_samples": dict(bad_samples)}
            write_summary(run_dir, summary)
            tracker.close(summary)
            write_report([run_dir], run_dir / REPORT)
            progress.note(_closing(run, summary))
            progress.note(f"report: {run_dir / REPORT}")


def say_complete(run: Run) -> None:
    """Tell that there is nothing left to do, and where the result stands."""
    if run.runtime.is_main:
        run_dir = run.experiment.run_dir
        write_report([run_dir], run_dir / REPORT)
        print(
            f"{run.experiment.name} is complete at step {run.step}. To train on, raise train.steps; "
            f"to train anew, type name=ANOTHER_NAME\nreport: {run_dir / REPORT}"
        )


def _open_tracker(run: Run, progress: Progress) -> Tracker:
    experiment = run.experiment
    config = experiment.model_dump(mode="json")
    wandb = experiment.wandb
    return open_tracker(wandb.mode, wandb.project, experiment.name, experiment.run_dir, config, progress.note)


def _opening(run: Run, resumed: bool) -> str:
    experiment = run.experiment
    count = run.runtime.world_size
    return (
        f"{experiment.name}: {len(run.tasks)} tasks, {experiment.balance.weighting}, on {count} "
        f"process{'es' if count > 1 else ''}; {experiment.train.global_batch} samples a step, "
        f"{run.train_batches.steps_per_epoch} steps an epoch; "
        + (f"goes on after step {run.step}" if resumed else "starts")
    )


def _closing(run: Run, summary: dict[str, Any]) -> str:
    errors = {task: error for task, error in summary["final_errors"].items() if error is not None}
    worst = max(errors, key=errors.__getitem__, default=None)
    said = f"worst task {worst} {errors[worst]:.2f} %, mean {fmean(errors.values()):.2f} %" if worst else "no labels"
    return (
        f"{run.experiment.name}: {summary['steps']:,} steps in {summary['wall_seconds']:.0f} s, "
        f"{summary['samples_per_second']:,.0f} samples/s, {summary['data_wait_percent']:.1f} % waiting for data; "
        f"test error: {said}"
    )


def _summary(run: Run) -> dict[str, Any]:
    records = read_metrics(run.experiment.run_dir / METRICS)
    trained = [record for record in records if record["kind"] == "train"]
    return {
        "tasks": run.task_names,
        "weighting": run.experiment.balance.weighting,
        **errors_so_far(records),
        "steps": run.step,
        "samples": run.step * run.experiment.train.global_batch,
        "wall_seconds": trained[-1]["seconds"],
        "samples_per_second": fmean(record["samples_per_second"] for record in trained),
        "data_wait_percent": fmean(record["data_wait_percent"] for record in trained),
        "world_size": run.runtime.world_size,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
    }


def _peak_memory_mib() -> float:
    """Of this process: on the GPU where there is one, else resident on the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
