"""What a run says of itself: numbers while it trains; at its end a summary and a report."""

import os
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import fmean
from typing import Any

import torch

from trainer.observe.advice import solved_task
from trainer.observe.metrics import MetricsLog, errors_so_far, faults_so_far, read_metrics
from trainer.observe.observers import Everybody, Nobody, Observers, writing_records
from trainer.observe.progress import Progress
from trainer.observe.records import Record
from trainer.observe.report.page import write_report
from trainer.observe.tracker import Tracker, open_tracker
from trainer.observe.units import MIOU, by_unit, with_unit, worst_task
from trainer.run_folder import LOG, METRICS, PREDICTIONS, REPORT, SUMMARY, write_summary
from trainer.training.run import Run

MUCH_WAITING_PERCENT = 10.0
"""Of a run's time spent waiting for data, from where on the closing words say what would help."""


@contextmanager
def observed(run: Run, resumed: bool, notes: Sequence[str] = ()) -> Iterator[Observers]:
    """Give the loop its observers, and leave the summary and the report when it ends well. Collective.

    Args:
        run: built.
        resumed: whether it goes on from a checkpoint.
        notes: what was found in the run's folder, for the log and the metrics.

    Raises:
        UserError: a log of an earlier part is damaged, or the tracker that was asked for cannot be had.
    """
    run_dir = run.experiment.run_dir
    with ExitStack() as stack:
        observers: Observers = Nobody()
        with run.runtime.raise_together():
            if run.runtime.is_main:
                metrics = MetricsLog(run_dir / METRICS, resume_step=run.step if resumed else None)
                stack.callback(metrics.close)
                progress = stack.enter_context(Progress(run_dir / LOG, run.experiment.train.steps, run.step))
                progress.note(_opening(run, resumed))
                tracker = _open_tracker(run, progress)
                stack.push(lambda kind, error, traceback: tracker.close(None) if kind else None)
                observers = Everybody(metrics, progress, tracker, run_dir / PREDICTIONS)
                for note in notes:
                    observers.note(run.step, note)
        yield observers
        peak_memory_mib = max(run.runtime.gather(_peak_memory_mib()))
        bad_samples = sum(run.runtime.gather(run.train_batches.bad_samples.total), Counter())
        if run.runtime.is_main:
            records = read_metrics(run_dir / METRICS)
            summary = _summary(run, records) | {
                "peak_memory_mib": peak_memory_mib,
                "bad_samples": dict(bad_samples),
                "damaged_checkpoints": run.damaged_checkpoints,
            }
            with writing_records():
                progress.note(_closing(run, summary))
                write_summary(run_dir, summary)
                tracker.close(summary)
                write_report([run_dir], run_dir / REPORT)
                for advice in (_slow_data(run, summary), _solved_task(run, records)):
                    if advice:
                        progress.note(advice)
                progress.note(f"report: {run_dir / REPORT}")


def say_complete(run: Run) -> None:
    """Tell that there is nothing left to do, and where the result stands; write the summary where it is missing."""
    if run.runtime.is_main:
        run_dir = run.experiment.run_dir
        if not (run_dir / SUMMARY).exists():  # the disk was full at the end, say
            write_summary(run_dir, _summary(run, read_metrics(run_dir / METRICS)))
        write_report([run_dir], run_dir / REPORT)
        print(
            f"{run.experiment.name} is complete at step {run.step}. To train on, raise train.steps; "
            f"to train anew, type name=ANOTHER_NAME\nreport: {run_dir / REPORT}"
        )


def _open_tracker(run: Run, progress: Progress) -> Tracker:
    experiment = run.experiment
    config = experiment.model_dump(mode="json")
    wandb = experiment.wandb
    return open_tracker(
        wandb.mode, wandb.project, experiment.name, experiment.run_dir, config, progress.note, group=wandb.group
    )


def _opening(run: Run, resumed: bool) -> str:
    experiment = run.experiment
    count = run.runtime.world_size
    return (
        f"{experiment.name}: {len(run.tasks)} tasks, {experiment.balance.weighting}, on {count} "
        f"process{'es' if count > 1 else ''}; {experiment.train.global_batch} samples a step, "
        f"{run.train_batches.steps_per_epoch} steps an epoch; "
        + (f"goes on after step {run.step}" if resumed else "starts")
        + _other_batch(run)
    )


def _other_batch(run: Run) -> str:
    before, cursor = run.batch_before, run.train_batches.cursor
    if before in (None, run.experiment.train.global_batch):
        return ""
    return (
        f", where a step had {before} samples; epoch {cursor.epoch} goes on at its sample {cursor.samples:,}, "
        "none lost or repeated"
    )


def _closing(run: Run, summary: dict[str, Any]) -> str:
    errors = {task: error for task, error in summary["final_errors"].items() if error is not None}
    groups = {
        unit: _errors({task: errors[task] for task in tasks}, unit)
        for unit, tasks in by_unit(errors, summary["units"]).items()
    }
    score = groups.pop(MIOU, None)
    said = [f"test error: {'; '.join(groups.values())}"] if groups else []
    said += [f"test score: {score}"] if score else []
    return (
        f"{run.experiment.name}: {summary['steps']:,} steps in {summary['wall_seconds']:.0f} s, "
        f"{summary['samples_per_second']:,.0f} samples/s, {summary['data_wait_percent']:.1f} % waiting for data; "
        + ("; ".join(said) or "test error: no labels")
        + _faults(summary)
        + _bad_samples(summary)
        + (f"; {run.damaged_checkpoints} damaged checkpoints passed over" if run.damaged_checkpoints else "")
    )


def _errors(errors: dict[str, float], unit: str) -> str:
    worst = worst_task(errors, unit)
    if len(errors) == 1:
        return f"{worst} {with_unit(errors[worst], unit)}"
    return f"worst task {worst} {with_unit(errors[worst], unit)}, mean {with_unit(fmean(errors.values()), unit)}"


def _faults(summary: dict[str, Any]) -> str:
    """Say how often something was not finite; nothing of a sound run."""
    num_broken, num_skipped = len(summary["broken"]), summary["skipped_steps"]
    num_overflows = summary["overflow_steps"]
    overflows = f"; steps skipped for an overflow of float16 {num_overflows:,}" if num_overflows else ""
    if not num_broken and not num_skipped:
        return overflows
    return f"; not finite (summary.json): tasks at times {num_broken:,}, steps skipped {num_skipped:,}{overflows}"


def _bad_samples(summary: dict[str, Any]) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in summary["bad_samples"].items())
    return f"; bad samples: {reasons}" if reasons else ""


def _solved_task(run: Run, records: list[Record]) -> str | None:
    balance = run.experiment.balance
    if balance.weighting != "min_norm" or balance.normalise != "none" or balance.preference:
        return None
    return solved_task(records)


def _slow_data(run: Run, summary: dict[str, Any]) -> str:
    """Say what would help when the training has waited much for its data; nothing where it has not."""
    percent, config = summary["data_wait_percent"], run.experiment
    if percent < MUCH_WAITING_PERCENT:
        return ""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    busy, cores = processes * (config.parallel.threads + config.data.workers), len(os.sched_getaffinity(0))
    if run.train_batches.cache_use["misses"]:
        way = "shards were not in the cache when they were wanted; their server, or the way there, is too slow"
    elif busy + processes <= cores:
        way = f"{busy} of {cores} cores are in use; add data.workers={config.data.workers + 1}"
    else:
        way = f"all {cores} cores are in use; images that are stored at the size they are trained at decode faster"
    return f"the training has waited for data {percent:.0f} % of the time: {way}"


def _summary(run: Run, records: list[Record]) -> dict[str, Any]:
    # A run that was stopped while it waited for data may have logged no step.
    logged: list[Any] = [record for record in records if record["kind"] == "train"]
    trained = logged or [run.throughput.read()]
    return {
        "tasks": run.task_names,
        "weighting": run.experiment.balance.weighting,
        **errors_so_far(records),
        **faults_so_far(records),
        "steps": run.step,
        "samples": run.samples,
        "wall_seconds": trained[-1]["seconds"],
        "samples_per_second": fmean(record["samples_per_second"] for record in trained),
        "data_wait_percent": fmean(record["data_wait_percent"] for record in trained),
        "world_size": run.runtime.world_size,
        "parameters": sum(run.num_parameters.values()),
    }


def _peak_memory_mib() -> float:
    """Of this process: on the GPU where there is one, else resident on the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
