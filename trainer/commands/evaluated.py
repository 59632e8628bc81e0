"""Evaluate a checkpoint on any number of processes, for the commands that print or write what was found."""

import os
from dataclasses import dataclass
from pathlib import Path

from models import Task
from trainer.commands.trained import open_trained
from trainer.data.format.specs import TaskSpec
from trainer.data.reading.batch import RankOptions
from trainer.data.reading.eval_loader import EvalLoader
from trainer.data.reading.images import to_input
from trainer.runtime.engines.averaging import has_averages
from trainer.training.evaluate import Evaluation, evaluate
from trainer.training.prepare_data import Data
from trainer.training.restore import read_state
from trainer.training.tasks import deciding_metrics, metric_names


@dataclass(frozen=True)
class Evaluated:
    """A checkpoint's evaluation on one split.

    Attributes:
        found: the same on every rank, but for `predicted`.
        tasks: of the run.
        metric_names: task name -> its metrics.
        deciding: task name -> the metric by which it is compared.
        data: the run's, with the split verified.
        split: its name.
        step: of the checkpoint.
        averaged: whether its weights are averages over steps.
        is_main: whether this is rank 0, which prints and writes.
    """

    found: Evaluation
    tasks: list[Task]
    metric_names: dict[str, list[str]]
    deciding: dict[str, str]
    data: Data
    split: str
    step: int
    averaged: bool
    is_main: bool

    @property
    def specs(self) -> list[TaskSpec]:
        """The tasks, as the data describe them."""
        return list(self.data.spec.select_tasks([task.name for task in self.tasks]))


def evaluate_checkpoint(run_dir: Path, split: str, step: int | str | None, processes: int | None) -> Evaluated:
    """Evaluate a checkpoint. Every one of the processes calls it.

    Args:
        run_dir: folder of the run.
        split: split of the run's data.
        step: step of the checkpoint; "best": the one that train.select has chosen; None: the last one.
        processes: how many there are; None: as many as a launcher has started, or one.

    Raises:
        UserError: there is no such run, checkpoint or split, or it is damaged; the same on every rank.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    with open_trained(run_dir, split, step, processes=processes or launched) as run:
        experiment, runtime, tasks = run.experiment, run.runtime, list(run.tasks)
        names = metric_names(tasks, experiment.tasks)
        evaluated_step = read_state(run.snapshot).step
        found = evaluate(
            run.network,
            {
                source.name: EvalLoader(
                    source,
                    split=split,
                    tasks=run.specs,
                    # The batch that the run itself evaluates on each process: it fits into memory.
                    batch_size=experiment.train.global_batch // experiment.parallel.processes,
                    options=RankOptions(rank=runtime.rank, world_size=runtime.world_size),
                )
                for source in run.data.sources
            },
            tasks,
            names,
            lambda source, inputs: to_input(inputs, run.data.input_of(source), runtime.device),
            runtime,
        )
        averaged = has_averages(run.snapshot.optimizer)
        deciding = deciding_metrics(tasks, experiment.tasks)
        return Evaluated(found, tasks, names, deciding, run.data, split, evaluated_step, averaged, runtime.is_main)
