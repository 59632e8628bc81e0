"""A run's model as it was trained, opened from a checkpoint, for the commands that look at it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models import MultiTaskModel, Task
from trainer.config.schema import Experiment
from trainer.config.sections.parallel import ParallelConfig
from trainer.data.format.specs import TaskSpec
from trainer.run_folder import checkpoint_of, read_config
from trainer.runtime.checkpoints.reading import Snapshot, load
from trainer.runtime.collectives import Runtime
from trainer.runtime.distributed import joined
from trainer.runtime.engines.averaging import averaged_weights
from trainer.training.network.build import build_network, fill
from trainer.training.prepare_data import Data, open_split
from trainer.training.tasks import build_tasks


@dataclass(frozen=True)
class Trained:
    """A run's model as it was trained, averaged weights where it has some, and its data; whole on every process."""

    experiment: Experiment
    runtime: Runtime
    data: Data
    tasks: Sequence[Task]
    network: MultiTaskModel
    snapshot: Snapshot

    @property
    def specs(self) -> Sequence[TaskSpec]:
        """The tasks, as the data describe them."""
        return self.data.spec.select_tasks([task.name for task in self.tasks])


@contextmanager
def open_trained(
    run_dir: Path, split: str | None, step: int | str | None, tasks: Sequence[str] | None = None, processes: int = 1
) -> Iterator[Trained]:
    """Open a run's checkpoint and its data, of which `split` (None: all) is verified.

    Collective.

    Args:
        run_dir: the run's folder.
        split: which part of the data is going to be read.
        step: of the checkpoint; "best": the one that train.select has chosen; None: the last one.
        tasks: of the run; None: all. Where they are given, the network has the heads of all tasks still.
        processes: that take part.

    Raises:
        UserError: no such run, checkpoint, split or task, or a damaged one.
    """
    experiment = read_config(run_dir)
    path = checkpoint_of(run_dir, step)
    with joined(ParallelConfig(processes=processes, device=experiment.parallel.device)) as runtime:
        data = open_split(experiment.data, split, runtime)
        every_task = build_tasks(data.spec, experiment.data.tasks, experiment.tasks, data.sources)
        network = build_network(experiment, data.spec, every_task)
        snapshot = load(path, runtime)
        fill(network, averaged_weights(snapshot.model, snapshot.optimizer), path, experiment.data.places)
        network.to(runtime.device)
        chosen = every_task if tasks is None else build_tasks(data.spec, tasks, experiment.tasks, data.sources)
        yield Trained(experiment, runtime, data, chosen, network, snapshot)
