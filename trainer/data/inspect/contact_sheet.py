"""Draw some samples of a split as one picture, with their labels and dense targets.

Shapes: B samples, H rows, W columns.
"""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.data.format.index import scalar_tasks
from trainer.data.format.manifest import Manifest
from trainer.data.format.members import dense_tasks
from trainer.data.format.specs import (
    UNLABELLED,
    ClassificationSpec,
    DenseRegressionSpec,
    ImageSpec,
    ScalarTaskSpec,
    SegmentationSpec,
)
from trainer.data.reading.reader import SplitReader
from trainer.data.remote.folder import DataFolder
from trainer.plain import one_line, shortened

NUM_SAMPLES = 32
NUM_WITH_MAPS = 8
"""Samples on a sheet if there are dense targets, which are drawn next to each image."""

SHEET_INCHES = 16.5
"""Width of the sheet."""
TILE_INCHES = 1.6
HEADING_INCHES = 0.2
TITLE_INCHES = 0.16
LINE_INCHES = 0.092
"""Line height of the labels, which are written to the right of the image, in columns of its height."""
LETTER_INCHES = 0.0455
MAX_LETTERS = 32
MAX_COLUMNS = 6
GAP_INCHES = 0.08
TEXT: dict[str, Any] = {"fontsize": 6, "parse_math": False}
"""`parse_math` would draw a class with a $ in its name as a formula."""


def draw_contact_sheet(data: DataFolder, split: str) -> bytes:
    """Draw evenly spaced samples of a split as a PNG.

    Raises:
        UserError: a shard cannot be read.
    """
    from matplotlib.figure import Figure

    manifest = data.manifest
    assert isinstance(manifest.input, ImageSpec), "only images can be drawn"
    dense, scalars = dense_tasks(manifest.tasks), scalar_tasks(manifest.tasks)
    count = min(manifest.num_samples(split), NUM_WITH_MAPS if dense else NUM_SAMPLES)
    sample_ids_B = np.linspace(0, manifest.num_samples(split) - 1, count).astype(int)
    reader = SplitReader(data, split, manifest.tasks)
    buffers = reader.buffers(count)
    bad = reader.read_into(buffers, sample_ids_B).bad
    targets = reader.targets(sample_ids_B, buffers, bad)
    reader.close()
    faulty = {sample.slot for sample in bad}

    tile_height = TILE_INCHES * manifest.input.height / manifest.input.width
    columns = _columns(scalars, max(int(tile_height / LINE_INCHES), 1))
    column_widths = [max(_letters(task) for task in column) * LETTER_INCHES for column in columns]
    width = (1 + len(dense)) * (TILE_INCHES + GAP_INCHES) + sum(column_widths) + GAP_INCHES
    height = TITLE_INCHES + tile_height + GAP_INCHES
    across = min(max(int(SHEET_INCHES / width), 1), count)
    sheet_width, sheet_height = across * width, HEADING_INCHES + -(-count // across) * height
    figure = Figure(figsize=(sheet_width, sheet_height))
    heading = _heading(manifest, split, count, len(scalars), sum(map(len, columns)))
    corner = GAP_INCHES / sheet_width, 1 - GAP_INCHES / sheet_height
    figure.text(*corner, heading, va="top", fontsize=9, parse_math=False)

    def tile_at(left: float, top: float) -> Any:
        bottom = 1 - (top + tile_height) / sheet_height
        tile = figure.add_axes((left / sheet_width, bottom, TILE_INCHES / sheet_width, tile_height / sheet_height))
        tile.axis("off")
        return tile

    for slot in range(count):
        left, top = slot % across * width + GAP_INCHES, HEADING_INCHES + slot // across * height + TITLE_INCHES
        image = tile_at(left, top)
        image.imshow(buffers[0][slot].squeeze(), cmap="gray", vmin=0, vmax=255, aspect="auto")
        image.set_title(f"{sample_ids_B[slot]}{' cannot be used' if slot in faulty else ''}", loc="left", pad=2, **TEXT)
        for task in dense:
            left += TILE_INCHES + GAP_INCHES
            _draw_map(tile_at(left, top), task, targets[task.name][slot])
        left += TILE_INCHES + GAP_INCHES / 2
        for column, column_width in zip(columns, column_widths, strict=True):
            lines = [_label(task, targets[task.name][slot].item()) for task in column]
            position = left / sheet_width, 1 - top / sheet_height
            figure.text(*position, "\n".join(lines), va="top", linespacing=1.1, **TEXT)
            left += column_width
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box is drawn instead
        figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _columns(tasks: Sequence[ScalarTaskSpec], num_lines: int) -> list[Sequence[ScalarTaskSpec]]:
    return [tasks[begin : begin + num_lines] for begin in range(0, len(tasks), num_lines)][:MAX_COLUMNS]


def _heading(manifest: Manifest, split: str, count: int, num_tasks: int, num_shown: int) -> str:
    left_out = f", the labels of {num_shown} of {num_tasks} tasks" if num_shown < num_tasks else ""
    name = shortened(one_line(manifest.name), 2 * MAX_LETTERS)
    return f"{name}, {split}: {count} of {manifest.num_samples(split):,} samples{left_out}"


def _letters(task: ScalarTaskSpec) -> int:
    """Return the length of the longest label of a task."""
    values = range(-1, len(task.classes)) if isinstance(task, ClassificationSpec) else (task.mean, -1234.5)
    return 1 + max(len(_label(task, value)) for value in values)


def _label(task: ScalarTaskSpec, value: float) -> str:
    if isinstance(task, ClassificationSpec):
        text = f"{task.name}: {task.classes[int(value)] if value >= 0 else '-'}"
    else:
        unit = f" {task.unit}" if task.unit else ""
        text = f"{task.name}: {'-' if np.isnan(value) else f'{value * task.std + task.mean:.4g}{unit}'}"
    return shortened(one_line(text), MAX_LETTERS)


def _draw_map(tile: Any, task: SegmentationSpec | DenseRegressionSpec, map_: np.ndarray) -> None:
    """Draw each class in its own colour, or the norm of the values over channels. Pixels without a label stay blank."""
    if isinstance(task, SegmentationSpec):
        shown_HW = np.ma.masked_equal(map_, UNLABELLED)
        colours = {"cmap": "tab20", "vmin": 0, "vmax": max(len(task.classes) - 1, 1), "interpolation": "nearest"}
        tile.imshow(shown_HW, aspect="auto", **colours)
    else:
        tile.imshow(np.linalg.norm(map_ * task.std + task.mean, axis=-1), cmap="viridis", aspect="auto")
    unit = f" ({task.unit})" if isinstance(task, DenseRegressionSpec) and task.unit else ""
    tile.set_title(shortened(one_line(f"{task.name}{unit}"), MAX_LETTERS), loc="left", pad=2, **TEXT)
