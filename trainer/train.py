"""Train one run: build -> fit -> close. What `accelerate launch -m trainer.train CONFIG [a.b=c ...]` runs."""

import resource
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from trainer.config import Experiment, load_config
from trainer.data.manifest import Manifest, read_manifest
from trainer.data.shards import verify_shards
from trainer.errors import UserError, run_command
from trainer.loop import fit
from trainer.observe.metrics import MetricsLog, errors_so_far, read_metrics
from trainer.observe.observers import Everybody, Nobody, Observers
from trainer.observe.progress import Progress
from trainer.observe.report import write_report
from trainer.observe.tracker import open_tracker
from trainer.run import Run, build_run
from trainer.run_dir import LOG, METRICS, REPORT, claim, write_summary
from trainer.runtime.checkpoint import load
from trainer.runtime.setup import Runtime, joined


def train(experiment: Experiment) -> None:
    """Run `experiment` from its last checkpoint, or from its start, to its end. Every rank calls it.

    Raises:
        UserError: something that the user can mend; the same on every rank.
        RankError: the same, where this rank alone knows of it.
    """
    with joined(experiment.parallel) as runtime:
        manifest = open_data(experiment, runtime)
        with runtime.together():
            found = claim(experiment) if runtime.is_main else None
        checkpoint = runtime.from_main(found)
        run = build_run(experiment, manifest, runtime, load(checkpoint, runtime) if checkpoint else None)
        with _observers(run, resumed=checkpoint is not None) as observers:
            fit(run, observers)


def open_data(experiment: Experiment, runtime: Runtime) -> Manifest:
    """Read the manifest and hold every shard against it, each rank its share. Collective.

    Raises:
        UserError: the folder, a shard or a task is not what it should be.
    """
    config = experiment.data
    with runtime.together():
        manifest = read_manifest(config.path)
        if config.tasks is not None:
            manifest.select_tasks(config.tasks)
        checksum = config.verify == "checksum"
        verify_shards(config.path, manifest, checksum=checksum, rank=runtime.rank, world_size=runtime.world_size)
    return manifest


@contextmanager
def _observers(run: Run, resumed: bool) -> Iterator[Observers]:
    """The observers of this rank, closed with the run's summary and report."""
    experiment, run_dir = run.experiment, run.experiment.run_dir
    with ExitStack() as stack:
        observers: Observers = Nobody()
        with run.runtime.together():
            if run.runtime.is_main:
                metrics = MetricsLog(run_dir / METRICS, resume_step=run.step if resumed else None)
                stack.callback(metrics.close)
                progress = stack.enter_context(Progress(run_dir / LOG, experiment.train.steps, run.step))
                tracker = open_tracker(
                    experiment.wandb.mode,
                    experiment.wandb.project,
                    experiment.name,
                    run_dir,
                    experiment.model_dump(mode="json"),
                    progress.note,
                )
                observers = Everybody(metrics, progress, tracker)
                progress.note(_opening(run, resumed))
        yield observers
        peak_memory_mib = max(run.runtime.gather(_peak_memory_mib()))
        if run.runtime.is_main:
            summary = _summary(run, peak_memory_mib)
            write_summary(run_dir, summary)
            tracker.close(summary)
            write_report([run_dir], run_dir / REPORT)
            progress.note(f"report: {run_dir / REPORT}")


def _opening(run: Run, resumed: bool) -> str:
    experiment = run.experiment
    total = experiment.train.steps
    start = f"goes on at step {run.step} of {total}" if resumed else f"starts, {total} steps"
    if run.step == total:
        start = f"is complete at step {total}; to train on, raise train.steps; to train anew, type name=ANOTHER_NAME"
    return (
        f"{experiment.name}: {len(run.tasks)} tasks on {run.runtime.world_size} process(es), "
        f"{experiment.balance.weighting}, {experiment.train.global_batch} samples a step, "
        f"{run.train_batches.steps_per_epoch} steps an epoch; {start}"
    )


def _summary(run: Run, peak_memory_mib: float) -> dict[str, Any]:
    records = read_metrics(run.experiment.run_dir / METRICS)
    trained = [record for record in records if record["kind"] == "train"]
    samples = run.step * run.experiment.train.global_batch
    return {
        "tasks": run.task_names,
        "weighting": run.experiment.balance.weighting,
        **errors_so_far(records),
        "steps": run.step,
        "samples": samples,
        "wall_seconds": trained[-1]["seconds"],
        "samples_per_second": samples / trained[-1]["seconds"],
        "data_wait_percent": sum(record["data_wait_percent"] for record in trained) / len(trained),
        "world_size": run.runtime.world_size,
        "peak_memory_mib": peak_memory_mib,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
    }


def _peak_memory_mib() -> float:
    """Of this process: on the GPU where there is one, else resident on the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Read the command line."""
    if len(sys.argv) < 2:
        raise UserError("expected a configuration: python -m trainer.train configs/digits.yaml [a.b=c ...]")
    train(load_config(Path(sys.argv[1]), sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(run_command(main))
