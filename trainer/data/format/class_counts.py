"""Count the train samples of each class of a task."""

from pathlib import Path

import numpy as np

from trainer.data.format.index import scalar_tasks
from trainer.data.format.manifest import Manifest
from trainer.data.format.specs import ClassificationSpec
from trainer.data.format.tables import chunks, load_index


def class_counts(folder: Path, manifest: Manifest, task: str) -> list[int]:
    """Return the number of labelled train samples of each class.

    Raises:
        UserError: the table of labels is damaged.
    """
    places = {spec.name: place for place, spec in enumerate(scalar_tasks(manifest.tasks))}
    (spec,) = manifest.select_tasks([task])
    assert isinstance(spec, ClassificationSpec)
    counts_C = np.zeros(len(spec.classes), np.int64)
    for _, labels_RT in chunks(load_index(folder, manifest, "train")[1]):
        labels_R = labels_RT[:, places[task]]
        counts_C += np.bincount(labels_R[labels_R >= 0].astype(np.int64), minlength=len(counts_C))
    return list(map(int, counts_C))
