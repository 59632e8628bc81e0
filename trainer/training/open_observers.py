"""Open a run's observers: metrics.jsonl, the progress lines, the heartbeat and the tracker, on rank 0."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from trainer.observe.heartbeat import Heartbeat, Saved
from trainer.observe.metrics import MetricsLog
from trainer.observe.mlflow import MlflowTracker
from trainer.observe.observers import Everybody, Nobody, Observers
from trainer.observe.progress import Progress
from trainer.observe.tensorboard import TensorBoardTracker
from trainer.observe.tracker import Several, Tracker
from trainer.observe.wandb import open_wandb
from trainer.run_folder import LOG, METRICS, PREDICTIONS
from trainer.runtime.checkpoints.folder import CHECKPOINTS, read_pointer, step_of
from trainer.runtime.checkpoints.manifest import MANIFEST
from trainer.training.restore import Checkpoint
from trainer.training.run import Run


@contextmanager
def open_observers(run: Run, checkpoint: Checkpoint | None, notes: Sequence[str] = ()) -> Iterator[Observers]:
    """Open the observers for the block, and close them at its end, however it ends. Collective.

    Args:
        run: built and restored.
        checkpoint: that it goes on from; None for a new run.
        notes: about the run's folder, for the log and the metrics.

    Raises:
        UserError: a log of an earlier start is damaged, or the tracker cannot be opened; the same on every rank.
    """
    with ExitStack() as stack:
        observers: Observers = Nobody()
        with run.runtime.raise_together():
            if run.runtime.is_main:
                observers = stack.enter_context(_everybody(run, checkpoint, notes))
        yield observers


@contextmanager
def _everybody(run: Run, checkpoint: Checkpoint | None, notes: Sequence[str]) -> Iterator[Observers]:
    experiment, run_dir = run.experiment, run.experiment.run_dir
    with (
        closing(MetricsLog(run_dir / METRICS, resume_step=run.step if checkpoint else None)) as metrics,
        Progress(run_dir / LOG, experiment.train.steps, run.step) as progress,
        Heartbeat(
            run_dir, experiment.name, experiment.train.steps, run.step, lambda: _last_saved(run_dir / CHECKPOINTS)
        ) as heartbeat,
    ):
        progress.note(_first_line(run, checkpoint))
        tracker = Several(list(_trackers(run, progress.note)))
        try:
            observers = Everybody(
                metrics, progress, tracker, heartbeat, run_dir / PREDICTIONS, lambda: run.throughput.elapsed_seconds
            )
            for note in (*notes, *run.description.notes):
                observers.note(run.step, note)
            yield observers
        except BaseException:
            tracker.close(None)
            raise


def _trackers(run: Run, say: Callable[[str], None]) -> Iterator[Tracker]:
    experiment, run_dir = run.experiment, run.experiment.run_dir
    track, values = experiment.track, experiment.model_dump(mode="json")
    if track.tensorboard:
        yield TensorBoardTracker(run_dir, run.step, say)
    if track.mlflow:
        yield MlflowTracker(track.mlflow, experiment.wandb.project, experiment.name, run_dir, values, say)
    yield open_wandb(experiment.wandb, experiment.name, run_dir, values, say)


def _last_saved(checkpoints: Path) -> Saved | None:
    path, _ = read_pointer(checkpoints)
    if path is None or not (path / MANIFEST).is_file():
        return None
    return Saved(step_of(path), (path / MANIFEST).stat().st_mtime)


def _first_line(run: Run, checkpoint: Checkpoint | None) -> str:
    experiment, count = run.experiment, run.runtime.world_size
    return (
        f"{experiment.name}: {len(run.task_names)} tasks, {experiment.balance.words}, on {count} "
        f"process{'es' if count > 1 else ''}; {experiment.train.global_batch} samples a step, "
        f"{_epochs(run)}; "
        + (f"goes on after step {run.step}{_other_batch(run, checkpoint)}" if checkpoint else "starts")
    )


def _epochs(run: Run) -> str:
    streams = run.train_batches.streams
    if len(streams) == 1:
        return f"{streams[0].steps_per_epoch} steps an epoch"
    each = (f"{stream.data.name} {stream.samples_per_step} of {stream.num_samples:,}" for stream in streams)
    return f"of sources: {', '.join(each)}"


def _other_batch(run: Run, checkpoint: Checkpoint) -> str:
    before, streams = checkpoint.state.global_batch, run.train_batches.streams
    if before == run.experiment.train.global_batch:
        return ""
    places = (
        f"epoch {stream.cursor.epoch} {f'of {stream.data.name} ' if stream.data.name else ''}goes on at its sample "
        f"{stream.cursor.samples:,}"
        for stream in streams
    )
    return f", where a step had {before} samples; {', '.join(places)}, none lost or repeated"
