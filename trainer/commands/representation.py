"""What the heads of a run are given: the representation of its samples, and their labels as columns of numbers.

Shapes: B samples of a batch, N samples, D representation width, C columns of labels, P features.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import MultiTaskModel, Task
from models.levels import Z
from trainer.config.schema import Experiment
from trainer.config.sections.parallel import ParallelConfig
from trainer.data.format.manifest import Manifest
from trainer.data.format.specs import ClassificationSpec, RegressionSpec, TaskSpec
from trainer.data.reading.images import to_input
from trainer.data.reading.reader import SplitReader
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError
from trainer.run_folder import checkpoint_of, read_config
from trainer.runtime.checkpoints.reading import Snapshot, load
from trainer.runtime.collectives import Runtime
from trainer.runtime.distributed import joined
from trainer.runtime.engines.averaging import averaged_weights
from trainer.training.build import build_network, fill
from trainer.training.prepare_data import Data, open_split
from trainer.training.tasks import build_tasks

BATCH = 256


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
        return self.data.manifest.select_tasks([task.name for task in self.tasks])

    @torch.no_grad()
    def represented(self, split: str, ids_N: np.ndarray) -> Iterator[tuple[Z, dict[str, np.ndarray]]]:
        """Yield z as the heads are given it, and the targets, batch by batch, without augmentation.

        Raises:
            UserError: a sample cannot be used.
        """
        spec, device = self.data.manifest.input, self.runtime.device
        self.network.eval()
        for inputs, targets in read_samples(self.data, split, [task.name for task in self.tasks], ids_N):
            yield self.network.encoder(to_input(torch.from_numpy(inputs), spec, device)), targets


@contextmanager
def trained(
    run_dir: Path, split: str | None, step: int | None, tasks: Sequence[str] | None = None, processes: int = 1
) -> Iterator[Trained]:
    """Open a run's checkpoint of `step` (None: the last one) and its data, of which `split` (None: all) is verified.

    Collective.

    Args:
        run_dir: the run's folder.
        split: which part of the data is going to be read.
        step: of the checkpoint.
        tasks: of the run; None: all. Where they are given, the network has the heads of all tasks still.
        processes: that take part.

    Raises:
        UserError: no such run, checkpoint, split or task, or a damaged one.
    """
    experiment = read_config(run_dir)
    path = checkpoint_of(run_dir, step)
    with joined(ParallelConfig(processes=processes, device=experiment.parallel.device)) as runtime:
        data = open_split(experiment.data, split, runtime)
        every_task = build_tasks(data.manifest, experiment.data.tasks, experiment.tasks, data.folder)
        network = build_network(experiment, data.manifest, every_task)
        snapshot = load(path, runtime)
        fill(network, averaged_weights(snapshot.model, snapshot.optimizer), path, experiment.data.path)
        network.to(runtime.device)
        chosen = every_task if tasks is None else build_tasks(data.manifest, tasks, experiment.tasks, data.folder)
        yield Trained(experiment, runtime, data, chosen, network, snapshot)


def as_vectors(z: Z) -> np.ndarray:
    """Return a representation as vectors (B x D) of float64: a spatial one is averaged over its cells.

    Raises:
        UserError: it consists of several tensors.
    """
    if not isinstance(z, Tensor):
        raise UserError(f"the encoder returns {len(z)} tensors; expected one, as this command fits heads to one z")
    vectors_BD: np.ndarray = (z.flatten(2).mean(dim=2) if z.dim() > 2 else z).double().cpu().numpy()
    return vectors_BD


def read_samples(
    data: Data, split: str, tasks: Sequence[str], ids_N: np.ndarray
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yield inputs and targets of some samples of a split, in batches.

    Raises:
        UserError: a sample cannot be used.
    """
    reader = SplitReader(DataFolder(data.folder, data.manifest, data.copy), split, tasks)
    try:
        for ids_B in np.array_split(ids_N, max(1, -(-len(ids_N) // BATCH))):
            if not len(ids_B):
                continue  # a rank may have no sample
            buffers = reader.buffers(len(ids_B))
            found = reader.read_into(buffers, ids_B)
            if found.bad:
                raise UserError(
                    f"Bad {found.bad[0].message}.\nFind all of them with: paretrain data check {data.folder}"
                )
            yield buffers[0], reader.targets(ids_B, buffers, ())
    finally:
        reader.close()


def label_columns(specs: Sequence[TaskSpec]) -> list[str]:
    """Name the columns of `label_values`: one for a number or for two classes, else one for each class.

    Raises:
        UserError: a task has targets for every pixel.
    """
    names: list[str] = []
    for spec in specs:
        if isinstance(spec, ClassificationSpec):
            names += [spec.name] if len(spec.classes) == 2 else [f"{spec.name} = {name}" for name in spec.classes]
        elif isinstance(spec, RegressionSpec):
            names.append(spec.name)
        else:
            raise UserError(
                f"task {spec.name!r} has targets for every pixel; expected tasks with one label a sample. Leave it out"
            )
    return names


def label_values(specs: Sequence[TaskSpec], targets: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the labels (B x C) as numbers, NaN where one is missing: a standardised number, or 1 for a class and 0."""
    columns = []
    for spec in specs:
        target_B = targets[spec.name]
        if isinstance(spec, ClassificationSpec):
            classes = [1] if len(spec.classes) == 2 else range(len(spec.classes))
            columns += [np.where(target_B < 0, np.nan, target_B == one) for one in classes]
        else:
            columns.append(target_B)
    return np.stack(columns, axis=1).astype(float)


def some_samples(manifest: Manifest, split: str, most: int, seed: int) -> np.ndarray:
    """Return the ids of all samples of a split, or of so many random ones."""
    count = manifest.num_samples(split)
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])
