"""Count the train samples of each class of a task."""

from collections.abc import Sequence

import numpy as np

from trainer.data.format.index import scalar_tasks
from trainer.data.format.specs import ClassificationSpec
from trainer.data.format.tables import chunks, load_index
from trainer.data.remote.folder import DataFolder


def class_counts(sources: Sequence[DataFolder], task: str) -> list[int]:
    """Return the number of labelled train samples of each class, in all sources that use the task's labels.

    Raises:
        UserError: the table of labels is damaged.
    """
    counts = []
    for data in sources:
        places = {spec.name: place for place, spec in enumerate(scalar_tasks(data.manifest.tasks))}
        for spec in data.tasks:
            if spec.name == task:
                assert isinstance(spec, ClassificationSpec)
                counts.append(_counts(data, places[task], len(spec.classes)))
    return list(map(int, np.sum(counts, axis=0)))


def _counts(data: DataFolder, place: int, num_classes: int) -> np.ndarray:
    counts_C = np.zeros(num_classes, np.int64)
    for _, labels_RT in chunks(load_index(data.path, data.manifest, "train")[1]):
        labels_R = labels_RT[:, place]
        counts_C += np.bincount(labels_R[labels_R >= 0].astype(np.int64), minlength=num_classes)
    return counts_C
