"""The end of a run: its summary, its last lines, and its report."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from trainer.data.format.specs import ImageSpec
from trainer.files import replace
from trainer.observe.advice import solved_task
from trainer.observe.metrics import errors_so_far, faults_so_far, metrics_so_far, read_metrics, tested
from trainer.observe.observers import Observers, writing_records
from trainer.observe.records import Record
from trainer.observe.report.page import write_report
from trainer.observe.result import result_of
from trainer.observe.units import MIOU, by_unit, with_unit, worst_task
from trainer.run_folder import METRICS, REPORT, SUMMARY
from trainer.runtime.stopping import Request
from trainer.training.cost import peak_memory_mib
from trainer.training.run import Run
from trainer.training.selection import is_patience_over
from trainer.training.state import SelectionState

MUCH_WAITING_PERCENT = 10.0
"""From this share of time spent waiting for data on, the last lines say what would help."""
HURRIED = (Request.YIELD, Request.LEAVE)
"""After these requests the process may be killed within seconds, and a report takes several."""


def finish(run: Run, observers: Observers, request: Request) -> None:
    """Write the summary and the report of a run that has ended well, and say what it reached. Collective.

    Args:
        run: as the loop left it.
        observers: still open.
        request: that ended it. After one of `HURRIED` there is no report.

    Raises:
        RankError: a file cannot be written; the other ranks cannot know.
    """
    peak_mib = max(run.runtime.gather(peak_memory_mib()))
    mine = sum((stream.bad_samples.total for stream in run.train_batches.streams), Counter())
    bad_samples = sum(run.runtime.gather(mine), Counter())
    if not run.runtime.is_main:
        return
    run_dir = run.experiment.run_dir
    with writing_records():
        records = read_metrics(run_dir / METRICS)
        summary = _summary(run, records) | {
            "peak_memory_mib": peak_mib,
            "bad_samples": dict(bad_samples),
            "damaged_checkpoints": run.damaged_checkpoints,
        }
        observers.say(_last_line(run, summary))
        _write_summary(run, summary)
        observers.finish(summary)
        if request in HURRIED:
            observers.say(f"no report was drawn, as the process is to end at once. Type: paretrain report {run_dir}")
            return
        write_report([run_dir], run_dir / REPORT)
        for advice in (_slow_data(run, summary), _solved_task(run, records)):
            if advice:
                observers.say(advice)
        observers.say(f"report: {run_dir / REPORT}")


def say_complete(run: Run) -> None:
    """Say that the run has made all its steps, and where its report is; write the summary if it is missing."""
    if run.runtime.is_main:
        run_dir = run.experiment.run_dir
        if not (run_dir / SUMMARY).exists():  # The disk may have been full at the end.
            _write_summary(run, _summary(run, read_metrics(run_dir / METRICS)))
        write_report([run_dir], run_dir / REPORT)
        key = "train.steps" if run.step >= run.experiment.train.steps else "train.patience"
        print(
            f"{run.experiment.name} is complete at step {run.step}. To train on, raise {key} (--allow-change {key}); "
            f"to train anew, type name=ANOTHER_NAME\nreport: {run_dir / REPORT}"
        )


def _write_summary(run: Run, summary: Mapping[str, Any]) -> None:
    replace(run.experiment.run_dir / SUMMARY, f"{json.dumps(summary, indent=1)}\n".encode())


def _last_line(run: Run, summary: dict[str, Any]) -> str:
    return (
        f"{run.experiment.name}: {summary['steps']:,} steps in {summary['wall_seconds']:.0f} s, "
        f"{summary['samples_per_second']:,.0f} samples/s, {summary['data_wait_percent']:.1f} % waiting for data; "
        + _reached(summary)
        + _faults(summary)
        + _bad_samples(summary)
        + (f"; {run.damaged_checkpoints} damaged checkpoints skipped" if run.damaged_checkpoints else "")
    )


def _reached(summary: dict[str, Any]) -> str:
    """Say what the run has reached: on which split, and at which step, if that is not the last one."""
    result = result_of(summary)
    if result.step is None:
        return "not evaluated yet"
    errors = {task: error for task, error in result.errors.items() if error is not None}
    groups = {
        unit: _errors({task: errors[task] for task in tasks}, unit)
        for unit, tasks in by_unit(errors, summary["units"]).items()
    }
    score = groups.pop(MIOU, None)
    said = [f"{result.split} error: {'; '.join(groups.values())}"] if groups else []
    said += [f"{result.split} score: {score}"] if score else []
    chosen = summary["selected"]
    where = f", {chosen['rule']}" if chosen and chosen["step"] == result.step else ", not of the last step"
    return ("; ".join(said) or f"{result.split} error: no labels") + (
        f" (step {result.step:,}{where})" if chosen or result.step != summary["steps"] else ""
    )


def _errors(errors: dict[str, float], unit: str) -> str:
    worst = worst_task(errors, unit)
    if len(errors) == 1:
        return f"{worst} {with_unit(errors[worst], unit)}"
    return f"worst task {worst} {with_unit(errors[worst], unit)}, mean {with_unit(fmean(errors.values()), unit)}"


def _faults(summary: dict[str, Any]) -> str:
    """Say how often something was not finite; nothing for a sound run."""
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
    """Say what would help a training that has waited much for its data; nothing if it has not."""
    percent, config = summary["data_wait_percent"], run.experiment
    if percent < MUCH_WAITING_PERCENT:
        return ""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    busy, cores = processes * (config.parallel.threads + config.data.workers), len(os.sched_getaffinity(0))
    if run.train_batches.cache_use["misses"]:
        way = "shards were not in the cache when they were needed; their server, or the network, is too slow"
    elif busy + processes <= cores:
        way = f"{busy} of {cores} cores are in use; add data.workers={config.data.workers + 1}"
    else:
        way = f"all {cores} cores are in use"
        if isinstance(run.data.spec.input, ImageSpec):
            way += "; images that are stored at the size they are trained at decode faster"
    return f"the training has waited for data {percent:.0f} % of the time: {way}"


def _summary(run: Run, records: list[Record]) -> dict[str, Any]:
    # A run that was stopped while it waited for data may have logged no step.
    logged: list[Any] = [record for record in records if record["kind"] == "train"]
    trained = logged or [run.throughput.read()]
    return {
        "tasks": run.task_names,
        "weighting": run.experiment.balance.weighting,
        **errors_so_far(records),
        **metrics_so_far(records),
        **_chosen(run.selection, records),
        **(tested(records) if run.is_complete else {}),
        "complete": run.is_complete,
        "stopped_early": is_patience_over(run.selection, run.experiment.train.patience),
        **faults_so_far(records),
        "steps": run.step,
        "samples": run.samples,
        "wall_seconds": trained[-1]["seconds"],
        "samples_per_second": fmean(record["samples_per_second"] for record in trained),
        "data_wait_percent": fmean(record["data_wait_percent"] for record in trained),
        "world_size": run.runtime.world_size,
        "parameters": sum(run.description.num_parameters.values()),
    }


def _chosen(selection: SelectionState | None, records: list[Record]) -> dict[str, Any]:
    """Return the evaluation that train.select has chosen, in place of the one of the lowest mean error."""
    if selection is None or selection.step is None:
        return {"selected": None}
    found = {"selected": {"step": selection.step, "rule": selection.rule}}
    evaluated = [record for record in records if record["kind"] == "eval" and record["step"] == selection.step]
    return found | ({"best_errors": evaluated[-1]["errors"], "best_step": selection.step} if evaluated else {})
