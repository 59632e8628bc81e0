"""Check that a split has labels to learn from: count them, and find tasks whose labels are all the same.

Shapes: N samples of a split, M array members, T scalar tasks, R rows of a chunk.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.format.foreign import stored_extensions
from trainer.data.format.index import scalar_tasks
from trainer.data.format.manifest import Manifest
from trainer.data.format.masks import masks_of_one_class
from trainer.data.format.members import dense_tasks
from trainer.data.format.overlap import find_overlaps
from trainer.data.format.seen import find_labels, suggestion
from trainer.data.format.specs import (
    MOST_STDS,
    UNLABELLED,
    ClassificationSpec,
    ImageSpec,
    RegressionSpec,
    ScalarTaskSpec,
    SegmentationSpec,
    TaskSpec,
)
from trainer.data.format.tables import Table, chunks, load_index
from trainer.errors import UserError
from trainer.plain import listed

MAX_CLASSES = 5
"""Classes that a warning names."""

MAX_TASKS = 5
"""Tasks that an error names."""


@dataclass
class Coverage:
    """The labels of a task in one split.

    Attributes:
        count: samples that have a label.
        lowest: the smallest class index or value; infinity if there is none, and for dense tasks.
        highest: the largest; minus infinity if there is none, and for dense tasks.
    """

    count: int = 0
    lowest: float = math.inf
    highest: float = -math.inf


def coverage(tasks: Sequence[TaskSpec], index_NM: Table, labels_NT: Table) -> dict[str, Coverage]:
    """Count the labels of every task of the data.

    Args:
        tasks: all tasks of the manifest.
        index_NM: the index of a split.
        labels_NT: the labels table of the same split.
    """
    found = {task.name: Coverage() for task in tasks}
    for _, labels_RT in chunks(labels_NT):
        for column, task in enumerate(scalar_tasks(tasks)):
            labels_R = labels_RT[:, column]
            known_R = labels_R[labels_R >= 0 if isinstance(task, ClassificationSpec) else ~np.isnan(labels_R)]
            if known_R.size:
                seen = found[task.name]
                seen.count += known_R.size
                seen.lowest = min(seen.lowest, float(known_R.min()))
                seen.highest = max(seen.highest, float(known_R.max()))
    for _, rows_RM in chunks(index_NM):
        for column, dense in enumerate(dense_tasks(tasks), 1):
            found[dense.name].count += int(np.count_nonzero(rows_RM["bytes"][:, column]))
    return found


def check_trainable(
    folder: Path, manifest: Manifest, names: Sequence[str] | None, tables: tuple[Table, Table], key: str = "data.tasks"
) -> list[str]:
    """Refuse tasks without a label in the train split, or whose labels do not fit the manifest's mean and std.

    Args:
        folder: the data folder.
        manifest: its manifest.
        names: the tasks to train on; None means all.
        tables: index and labels table of the train split.
        key: of the configuration, which names the tasks.

    Returns:
        A warning for each task whose labels are all the same: it has nothing to learn.

    Raises:
        UserError: a task cannot be trained on; the message names it.
    """
    tasks = manifest.tasks if names is None else manifest.select_tasks(names)
    found = coverage(manifest.tasks, *tables)
    if absent := [task.name for task in tasks if not found[task.name].count]:
        raise UserError(
            f"{no_labels(folder, manifest, absent)}\n"
            f"There is nothing to learn. See: paretrain data check {folder}\n"
            f"Leave it out with {key}=[...], or make the data again."
        )
    for task in tasks:
        if isinstance(task, RegressionSpec):
            _check_scale(folder, task, found[task.name], key)
    return [*_constant(folder, tasks, found), *_constant_masks(folder, manifest, tasks, tables[0])]


def warnings(folder: Path, manifest: Manifest) -> list[str]:
    """Return warnings about tasks whose train labels are missing or all the same, and about images in two splits.

    Data without a train split gives no warnings: nothing is trained on it.
    """
    if "train" not in manifest.splits:
        return []
    index_NM, labels_NT = load_index(folder, manifest, "train")
    found = coverage(manifest.tasks, index_NM, labels_NT)
    absent = [name for name, seen in found.items() if not seen.count]
    missing = [no_labels(folder, manifest, absent)] if absent else []
    constant = [*_constant(folder, manifest.tasks, found), *_constant_masks(folder, manifest, manifest.tasks, index_NM)]
    absent_classes = _absent_classes(folder, manifest.tasks, labels_NT, found)
    return [*missing, *constant, *absent_classes, *_shared(folder, manifest)]


def _constant_masks(folder: Path, manifest: Manifest, tasks: Sequence[TaskSpec], index_NM: Table) -> Iterator[str]:
    names = {task.name: task.classes for task in tasks if isinstance(task, SegmentationSpec)}
    for task, (number, has_unlabelled) in masks_of_one_class(folder, manifest, list(names), index_NM).items():
        hint = f" {UNLABELLED} means no label; if it should be a class, write its number." if has_unlabelled else ""
        yield (
            f"{folder}: all masks of task {task!r} that were looked at have the class {names[task][number]!r} only: it "
            f"has nothing to learn.{hint}"
        )


def _shared(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Warn of images that are in the train split and in another one. Equal rows of features may well be by chance."""
    if not isinstance(manifest.input, ImageSpec):
        return
    for split, found in find_overlaps(folder, manifest).items():
        yield (
            f"{folder}: {found.count:,} of {manifest.num_samples(split):,} {split} images are byte for byte equal to a "
            f"train image, such as sample {found.example[0]} to train sample {found.example[1]}: errors on them are "
            "not those on new images."
        )


def _constant(folder: Path, tasks: Sequence[TaskSpec], found: dict[str, Coverage]) -> Iterator[str]:
    for task in tasks:
        seen = found[task.name]
        if isinstance(task, ScalarTaskSpec) and seen.count and seen.lowest == seen.highest:
            label = seen.lowest if isinstance(task, RegressionSpec) else repr(task.classes[int(seen.lowest)])
            yield f"{folder}: all labels of task {task.name!r} in the train split are {label}: it has nothing to learn."


def _absent_classes(
    folder: Path, tasks: Sequence[TaskSpec], labels_NT: Table, found: dict[str, Coverage]
) -> Iterator[str]:
    """Warn of classes that no train sample has, in tasks of which two classes or more are there."""
    there: dict[int, np.ndarray] = {}
    scalars = scalar_tasks(tasks)
    for column, task in enumerate(scalars):
        if isinstance(task, ClassificationSpec) and found[task.name].lowest < found[task.name].highest:
            there[column] = np.zeros(len(task.classes), np.bool_)
    for _, labels_RT in chunks(labels_NT):
        for column, there_C in there.items():
            labels_R = labels_RT[:, column]
            there_C[labels_R[labels_R >= 0].astype(np.int64)] = True
    for column, there_C in there.items():
        task = scalars[column]
        assert isinstance(task, ClassificationSpec)
        if absent := [name for name, is_there in zip(task.classes, there_C, strict=True) if not is_there]:
            shown = ", ".join(map(repr, absent[:MAX_CLASSES])) + (", ..." if len(absent) > MAX_CLASSES else "")
            yield (
                f"{folder}: {len(absent):,} of {len(task.classes):,} classes of task {task.name!r} have no sample in "
                f"the train split: {shown}."
            )


def _check_scale(folder: Path, task: RegressionSpec, seen: Coverage, key: str) -> None:
    """Refuse a mean and a std that make the labels too large or too small for float32."""
    furthest = max(abs(seen.lowest - task.mean), abs(seen.highest - task.mean)) / task.std
    spread = (seen.highest - seen.lowest) / task.std
    if furthest > MOST_STDS or 0 < spread < 1 / MOST_STDS:
        raise UserError(
            f"{folder}: the labels of task {task.name!r} in the train split range from {seen.lowest:g} to "
            f"{seen.highest:g}, which does not fit the manifest's mean {task.mean:g} and std {task.std:g}.\n"
            f"Make the data again, or leave the task out with {key}=[...]."
        )


def no_labels(folder: Path, manifest: Manifest, absent: Sequence[str], shards: Path | None = None) -> str:
    """Say that no train sample has a label of these tasks, what was perhaps meant, and which labels there are.

    Args:
        folder: the data folder, for the message.
        manifest: its manifest.
        absent: names of the tasks.
        shards: the folder in which the shards are now; None: the data folder.
    """
    arrays = stored_extensions(manifest.input, manifest.tasks, manifest.foreign)
    seen = find_labels(shards or folder, manifest.split("train"), manifest.foreign, arrays)
    tasks = f"task{'s' if len(absent) > 1 else ''} {listed(list(map(repr, absent)), MAX_TASKS)}"
    return f"{folder}: no sample of the train split has a label of {tasks}.{suggestion(absent[0], seen)}"
