"""Cut a rank's batch: into the micro-batches of one step, and into the samples of groups of tasks.

Shapes: B samples on this rank, G groups of tasks.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models import Task
from models.tasks import labelled_samples, without_labels
from trainer.data.reading.batch import Batch

FEWEST = 2
"""Samples of a forward, where the batch has them."""


def micro_batches(batch: Batch, num_parts: int) -> list[Batch]:
    """Split a batch, in its order."""
    tensors = batch.inputs, batch.sample_ids_B, *batch.targets.values()
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


def samples_of_groups(batch: Batch, tasks: Sequence[Task], group_of: Sequence[int]) -> list[Batch]:
    """Return the samples that have labels of each group.

    Every rank runs every forward, and BatchNorm needs two samples: others, without labels, make up for missing ones.
    """
    parts = []
    for labelled_B in labelled_by_group(batch, tasks, group_of).cpu():
        mine = labelled_B.nonzero().flatten()
        others = (~labelled_B).nonzero().flatten()[: max(FEWEST - len(mine), 0)]
        rows = torch.cat([mine, others])
        targets = {}
        for name, target in batch.targets.items():
            targets[name] = target[rows]
            targets[name][len(mine) :] = without_labels(targets[name][len(mine) :])
        parts.append(replace(batch, inputs=batch.inputs[rows], sample_ids_B=batch.sample_ids_B[rows], targets=targets))
    return parts
