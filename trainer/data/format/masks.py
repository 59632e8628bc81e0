"""Look at some masks of a split: which classes they have."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.data.format.index import read_member
from trainer.data.format.manifest import Manifest
from trainer.data.format.members import BadMemberError, blank, decode_member, dense_tasks
from trainer.data.format.specs import UNLABELLED, SegmentationSpec
from trainer.data.format.tables import Table

MAX_MASKS = 100


def masks_of_one_class(
    folder: Path, manifest: Manifest, names: Sequence[str], index_NM: Table
) -> dict[str, tuple[int, bool]]:
    """Return task -> the only class of the train masks that were looked at, and whether they have unlabelled pixels.

    At most MAX_MASKS of each task, evenly spaced, are looked at; tasks with two classes or none are left out.

    Args:
        folder: the data folder; shards that it lacks are passed over.
        manifest: its manifest.
        names: the tasks, of segmentation.
        index_NM: index of the train split.
    """
    found = {}
    for member, task in enumerate(dense_tasks(manifest.tasks), 1):
        if isinstance(task, SegmentationSpec) and task.name in names:
            numbers = _numbers(folder, manifest, task, index_NM, member)
            if len(numbers - {UNLABELLED}) == 1:
                found[task.name] = min(numbers), UNLABELLED in numbers
    return found


def _numbers(folder: Path, manifest: Manifest, task: SegmentationSpec, index_NM: Table, member: int) -> set[int]:
    found: set[int] = set()
    slot = blank(task, 1, manifest.input)[0]
    for number in np.unique(np.linspace(0, len(index_NM) - 1, MAX_MASKS).astype(int)):
        entry = index_NM[np.array([number])][0, member]
        if not entry["bytes"]:
            continue
        try:
            decode_member(slot, read_member(folder, manifest.split("train"), entry), task)
        except (OSError, BadMemberError):
            continue  # reported where all samples are read
        found.update(np.unique(slot).tolist())
        if len(found - {UNLABELLED}) > 1:
            break
    return found
