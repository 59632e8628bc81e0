"""The inputs and labels of a run's heads: the representation of its samples, and their labels as columns of numbers.

Shapes: B samples of a batch, N samples, D representation width, C columns of labels, P features.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from models.levels import Z
from trainer.commands.trained import Trained
from trainer.data.format.manifest import Manifest
from trainer.data.format.specs import ClassificationSpec, RegressionSpec, TaskSpec
from trainer.data.reading.images import to_input
from trainer.data.reading.reader import SplitReader
from trainer.errors import UserError
from trainer.training.prepare_data import Data

BATCH = 256


@torch.no_grad()
def represented(run: Trained, split: str, ids_N: np.ndarray) -> Iterator[tuple[Z, dict[str, np.ndarray]]]:
    """Yield z as the heads are given it, and the targets, batch by batch, without augmentation.

    Raises:
        UserError: a sample cannot be used.
    """
    spec, device = run.data.spec.input, run.runtime.device
    run.network.eval()
    for inputs, targets in read_samples(run.data, split, [task.name for task in run.tasks], ids_N):
        yield run.network.encoder(to_input(torch.from_numpy(inputs), spec, device)), targets


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
    source = data.only
    reader = SplitReader(source, split, source.manifest.select_tasks(tasks))
    try:
        for ids_B in np.array_split(ids_N, max(1, -(-len(ids_N) // BATCH))):
            if not len(ids_B):
                continue  # a rank may have no sample
            buffers = reader.buffers(len(ids_B))
            found = reader.read_into(buffers, ids_B)
            if found.bad:
                raise UserError(
                    f"Bad {found.bad[0].message}.\nFind all of them with: paretrain data check {source.path}"
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
