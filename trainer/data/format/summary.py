"""Say in one line a task what became of a data set's labels, and warn where there is nothing to learn."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer.data.format.coverage import Coverage, coverage, warnings
from trainer.data.format.manifest import Manifest
from trainer.data.format.specs import ClassificationSpec, RegressionSpec, SegmentationSpec, TaskSpec
from trainer.data.format.tables import load_index
from trainer.plain import one_line, shortened
from trainer.terminal import Terminal

logger = logging.getLogger(__name__)

MAX_CLASSES_LETTERS = 60


def summarise(folder: Path, manifest: Manifest, reasons: Mapping[str, str]) -> None:
    """Print a line for each task of a new data folder, as `task_lines`, and warn of tasks that cannot be learnt."""
    terminal = Terminal(soft_wrap=True)
    for line in task_lines(folder, manifest, reasons):
        terminal.print(line)
    for warning in warnings(folder, manifest):
        logger.warning("%s", warning)


def task_lines(folder: Path, manifest: Manifest, reasons: Mapping[str, str]) -> Iterator[str]:
    """Yield a line a task: its kind, its classes or range, its labelled samples, and why it has that kind.

    Args:
        folder: the data folder.
        manifest: its manifest.
        reasons: task -> what was decided about it and why, for the tasks about which the converter had to decide.
    """
    found = {split: coverage(manifest.tasks, *load_index(folder, manifest, split)) for split in manifest.splits}
    for task in manifest.tasks:
        seen = {split: tasks[task.name] for split, tasks in found.items()}
        labelled = ", ".join(f"{seen[split].count:,} of {manifest.num_samples(split):,} {split}" for split in seen)
        reason = f" ({reasons[task.name]})" if task.name in reasons else ""
        yield one_line(f"task {task.name}: {_content(task, list(seen.values()))}; labelled: {labelled}{reason}")


def _content(task: TaskSpec, seen: list[Coverage]) -> str:
    if isinstance(task, ClassificationSpec | SegmentationSpec):
        return f"{task.kind}, {len(task.classes)} classes: {shortened(', '.join(task.classes), MAX_CLASSES_LETTERS)}"
    unit = f" {task.unit}" if task.unit else ""
    if isinstance(task, RegressionSpec) and any(one.count for one in seen):
        lowest, highest = min(one.lowest for one in seen), max(one.highest for one in seen)
        return f"{task.kind} from {lowest:g} to {highest:g}{unit}"
    return f"{task.kind}{' in' + unit if unit else ''}"
