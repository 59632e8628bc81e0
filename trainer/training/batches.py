"""This rank's batches of a run."""

from collections.abc import Mapping, Sequence

from trainer.config.schema import Experiment
from trainer.data.format.specs import TaskSpec
from trainer.data.reading.batch import RankOptions
from trainer.data.reading.eval_loader import EvalLoader
from trainer.data.reading.loader import TrainLoader
from trainer.data.reading.order import Cursor
from trainer.data.reading.shares import samples_per_step
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
    experiment: Experiment,
    data: Data,
    tasks: Sequence[TaskSpec],
    eval_split: str,
    runtime: Runtime,
    cursors: Mapping[str, Cursor],
) -> tuple[TrainLoader, dict[str, EvalLoader]]:
    """Open this rank's batches of the train split, from `cursors` on, and of each source's split that is evaluated.

    Raises:
        UserError: the data is faulty, or the batch does not fit it or the processes.
    """
    train_batches = TrainLoader(
        data.sources,
        samples_per_step=samples_per_step(
            experiment.data, data.sources, experiment.train.global_batch, runtime.world_size
        ),
        tasks=tasks,
        seed=experiment.seed,
        group_samples=experiment.data.shuffle_samples,
        augment=experiment.data.augment,
        cursors=cursors,
        eval_split=eval_split,
        options=rank_options(experiment, runtime),
    )
    return train_batches, open_eval_batches(experiment, data, tasks, eval_split, runtime)


def open_eval_batches(
    experiment: Experiment, data: Data, tasks: Sequence[TaskSpec], split: str, runtime: Runtime
) -> dict[str, EvalLoader]:
    """Open this rank's batches of one pass over a split of each source, by its name."""
    return {
        source.name: EvalLoader(
            source,
            split=split,
            tasks=tasks,
            batch_size=experiment.train.global_batch // runtime.world_size,
            options=rank_options(experiment, runtime),
        )
        for source in data.sources
    }
