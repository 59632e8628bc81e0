"""Some samples of a split as one picture, with their labels and dense targets: to be looked at.

Shapes: B samples, H rows, W columns.
"""

from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.format.manifest import Manifest
from trainer.data.format.members import UNLABELLED, dense_tasks
from trainer.data.format.specs import (
    ClassificationSpec,
    DenseRegressionSpec,
    ImageSpec,
    RegressionSpec,
    SegmentationSpec,
    TaskSpec,
)
from trainer.data.reading.reader import SplitReader

NUM_SAMPLES = 32
NUM_WITH_MAPS = 8
"""Samples on a sheet with dense targets, which stand beside each image."""

MAX_LABELS = 6
"""Labels under an image."""

COLUMNS = 8
TILE_INCHES = 1.6
TITLE: dict[str, Any] = {"fontsize": 6, "loc": "left", "parse_math": False}
"""A class with a $ in its name is no formula."""


def draw_contact_sheet(folder: Path, manifest: Manifest, split: str, out: Path) -> None:
    """Draws samples, evenly taken from all of a split.

    Raises:
        UserError: a shard that cannot be read.
    """
    from matplotlib.figure import Figure

    assert isinstance(manifest.input, ImageSpec), "a row of numbers is no picture"
    dense = dense_tasks(manifest.tasks)
    count = min(manifest.num_samples(split), NUM_WITH_MAPS if dense else NUM_SAMPLES)
    sample_ids_B = np.linspace(0, manifest.num_samples(split) - 1, count).astype(int)
    reader = SplitReader(folder, manifest, split, [task.name for task in manifest.tasks])
    buffers = reader.buffers(count)
    bad = reader.read_into(buffers, sample_ids_B).bad
    targets = reader.targets(sample_ids_B, buffers, bad)
    reader.close()
    faulty = {sample.slot for sample in bad}
    width = 1 + len(dense)
    columns = width if dense else min(COLUMNS, count)
    rows = -(-count * width // columns)
    scalars = [task for task in manifest.tasks if isinstance(task, ClassificationSpec | RegressionSpec)][:MAX_LABELS]
    height_inches = TILE_INCHES * manifest.input.height / manifest.input.width + 0.13 * (1 + len(scalars))
    figure = Figure(figsize=(columns * TILE_INCHES, rows * height_inches), layout="constrained")
    tiles = figure.subplots(rows, columns, squeeze=False).ravel()
    for tile in tiles:
        tile.axis("off")
    for slot in range(count):
        image, *maps = tiles[slot * width : (slot + 1) * width]
        image.imshow(buffers[0][slot].squeeze(), cmap="gray", vmin=0, vmax=255)
        title = f"{sample_ids_B[slot]}{' cannot be used' if slot in faulty else ''}"
        lines = [_label(task, targets[task.name][slot].item()) for task in scalars]
        image.set_title("\n".join([title, *lines]), **TITLE)
        for tile, task in zip(maps, dense, strict=True):
            _draw_map(tile, task, targets[task.name][slot])
    figure.savefig(out, dpi=120)


def _label(task: TaskSpec, value: float) -> str:
    if isinstance(task, ClassificationSpec):
        return f"{task.name}: {task.classes[int(value)] if value >= 0 else '-'}"
    assert isinstance(task, RegressionSpec)
    unit = f" {task.unit}" if task.unit else ""
    return f"{task.name}: {'-' if np.isnan(value) else f'{value * task.std + task.mean:.4g}{unit}'}"


def _draw_map(tile: Any, task: SegmentationSpec | DenseRegressionSpec, map_: np.ndarray) -> None:
    """Classes in colours of their own; of numbers the size, in all channels together. What has no label stays blank."""
    if isinstance(task, SegmentationSpec):
        shown_HW = np.ma.masked_equal(map_, UNLABELLED)
        tile.imshow(shown_HW, cmap="tab20", vmin=0, vmax=max(len(task.classes) - 1, 1), interpolation="nearest")
    else:
        tile.imshow(np.linalg.norm(map_ * task.std + task.mean, axis=-1), cmap="viridis")
    unit = f" ({task.unit})" if isinstance(task, DenseRegressionSpec) and task.unit else ""
    tile.set_title(f"{task.name}{unit}", **TITLE)
