"""This rank's batches of a run."""

from collections.abc import Sequence

from models import Task
from trainer.config.schema import Experiment
from trainer.data.reading.loader import EvalLoader, RankOptions, TrainLoader
from trainer.data.reading.order import Cursor
from trainer.data.remote.folder import DataFolder
from trainer.runtime.collectives import Runtime
from trainer.training.prepare_data import Data


def rank_options(experiment: Experiment, runtime: Runtime) -> RankOptions:
    """Return how this rank reads its batches."""
    return RankOptions(
        rank=runtime.rank,
        world_size=runtime.world_size,
        workers=experiment.data.workers,
        pin_memory=runtime.device.type == "cuda",
        stopped_seconds=experiment.parallel.step_timeout_seconds,
    )


def open_batches(
    experiment: Experiment, data: Data, tasks: Sequence[Task], eval_split: str, runtime: Runtime, cursor: Cursor
) -> tuple[TrainLoader, EvalLoader]:
    """Open this rank's batches of the train split, from `cursor` on, and of the split that is evaluated.

    Raises:
        UserError: the data is faulty, or the batch does not fit it or the processes.
    """
    names, global_batch = [task.name for task in tasks], experiment.train.global_batch
    train_batches = TrainLoader(
        DataFolder(data.folder, data.manifest, data.copy),
        tasks=names,
        global_batch=global_batch,
        seed=experiment.seed,
        group_samples=experiment.data.shuffle_samples,
        augment=experiment.data.augment,
        cursor=cursor,
        eval_split=eval_split,
        options=rank_options(experiment, runtime),
    )
    return train_batches, open_eval_batches(experiment, data, names, eval_split, runtime)


def open_eval_batches(
    experiment: Experiment, data: Data, task_names: Sequence[str], split: str, runtime: Runtime
) -> EvalLoader:
    """Open this rank's batches of one pass over a split."""
    return EvalLoader(
        DataFolder(data.folder, data.manifest, data.copy),
        split=split,
        tasks=task_names,
        batch_size=experiment.train.global_batch // runtime.world_size,
        options=rank_options(experiment, runtime),
    )
