"""Cut a rank's batch: into the micro-batches of one step, and into the samples of groups of tasks.

Shapes: B samples on this rank, G groups of tasks, I input shapes.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

import torch
from torch import Tensor

from models import Task
from models.tasks import labelled_samples, without_labels
from trainer.data.reading.batch import Batch, joined

FEWEST = 2
"""Samples of a forward, where the batch has them."""


def micro_batches(batch: Batch, num_parts: int) -> list[Batch]:
    """Split a batch, in its order; inputs of several shapes are split each, so that all parts have all of them."""
    of_shapes = [_split(part, num_parts) for part in batch.by_shape()]
    return [joined(parts) for parts in zip(*of_shapes, strict=True)]


def _split(batch: Batch, num_parts: int) -> list[Batch]:
    tensors = batch.only_inputs, batch.sample_ids_B, *batch.targets.values()
    parts = zip(*(tensor.tensor_split(num_parts) for tensor in tensors), strict=True)
    return [
        replace(batch, inputs=inputs, sample_ids_B=ids_B, targets=dict(zip(batch.targets, targets, strict=True)))
        for inputs, ids_B, *targets in parts
    ]


def labelled_by_group(batch: Batch, tasks: Sequence[Task], group_of: Sequence[int]) -> Tensor:
    """Return which samples have a label of a task of each group: bool, (G, B)."""
    labelled_TB = torch.stack([labelled_samples(batch.targets[task.name]) for task in tasks])
    groups = range(max(group_of) + 1)
    members = [[task for task, its_group in enumerate(group_of) if its_group == group] for group in groups]
    return torch.stack([labelled_TB[of_group].any(dim=0) for of_group in members])


def samples_of_groups(batch: Batch, tasks: Sequence[Task], group_of: Sequence[int], has_GI: Tensor) -> list[Batch]:
    """Return the samples that have labels of each group.

    Every rank runs every forward, and BatchNorm needs two samples: others, without labels, make up for missing ones.

    Args:
        batch: of this rank.
        tasks: in the order of `group_of`.
        group_of: the index of each task's group.
        has_GI: whether any rank has samples of the group with inputs of each shape. Inputs that have none are left out;
            where that would leave nothing, those of the first shape stay.
    """
    parts = [(part, labelled_by_group(part, tasks, group_of).cpu()) for part in batch.by_shape()]
    found = []
    for group, has_I in enumerate(has_GI.tolist()):
        chosen = list(compress(parts, has_I)) or parts[:1]
        found.append(joined([_rows(part, labelled_GB[group]) for part, labelled_GB in chosen]))
    return found


def _rows(batch: Batch, wanted_B: Tensor) -> Batch:
    """Return some samples, and others without their labels where they are fewer than `FEWEST`."""
    mine = wanted_B.nonzero().flatten()
    others = (~wanted_B).nonzero().flatten()[: max(FEWEST - len(mine), 0)]
    rows = torch.cat([mine, others])
    targets = {}
    for name, target in batch.targets.items():
        targets[name] = target[rows]
        targets[name][len(mine) :] = without_labels(targets[name][len(mine) :])
    return replace(batch, inputs=batch.only_inputs[rows], sample_ids_B=batch.sample_ids_B[rows], targets=targets)
