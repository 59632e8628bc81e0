"""`paretrain data check`: verify every byte of a data folder, count its labels, and draw some samples.

Shapes: N samples of a split, R rows of a chunk, M members, T scalar tasks, H rows, W columns, C channels.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from trainer.data.format.coverage import warnings
from trainer.data.format.index import scalar_tasks
from trainer.data.format.manifest import Manifest, read_manifest
from trainer.data.format.members import dense_tasks
from trainer.data.format.names import load_names
from trainer.data.format.specs import ClassificationSpec, ImageSpec, ScalarTaskSpec
from trainer.data.format.tables import chunks, load_index
from trainer.data.format.verify import verify_shards
from trainer.data.inspect.contact_sheet import draw_contact_sheet
from trainer.data.reading.reader import BadSample, SplitReader
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError
from trainer.files import replace
from trainer.plain import printable
from trainer.terminal import Terminal

SHEET_NAME = "contact_sheet.png"

MAX_CLASSES_SHOWN = 4
MAX_BAD_SHOWN = 10
BATCH_SIZE = 64


def check_folder(folder: Path) -> int:
    """Verify a folder, print how its samples are labelled, and draw some of them into SHEET_NAME.

    Returns:
        The exit code: 1 if there are samples that cannot be used.

    Raises:
        UserError: the first fault found.
    """
    manifest = read_manifest(folder)
    data = DataFolder(folder, manifest)
    console = Terminal(soft_wrap=True)
    with console.status(Text(printable(f"verifying the shards of {folder}"))):
        verify_shards(folder, manifest, checksum=True)
        for split in manifest.splits:
            load_names(folder, manifest, split)
    bad = [sample for split in manifest.splits for sample in _bad_samples(data, split)]
    console.print(_table(folder, manifest))
    for warning in warnings(folder, manifest):
        console.print(f"Warning: {warning}")
    for sample in bad[:MAX_BAD_SHOWN]:
        console.print(f"Bad {sample.message}")
    if isinstance(manifest.input, ImageSpec):
        split = "train" if "train" in manifest.splits else next(iter(manifest.splits))
        picture = draw_contact_sheet(data, split)
        try:
            replace(folder / SHEET_NAME, picture)
        except UserError as error:
            raise UserError(f"{folder} is intact, but its contact sheet cannot be written: {error}") from None
        console.print(f"some samples of {split}: {folder / SHEET_NAME}")
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    num_bytes = sum(file.bytes for split in manifest.splits.values() for file in split.files)
    console.print(
        f"{folder}: {num_shards:,} shards, {num_bytes / 2**20:,.1f} MiB, match the manifest; "
        + (f"{len(bad):,} of its samples cannot be used" if bad else "every sample can be used")
    )
    return 1 if bad else 0


def _bad_samples(data: DataFolder, split: str) -> Iterator[BadSample]:
    """Decode every sample of a split, and yield the bad ones."""
    num_samples = data.manifest.num_samples(split)
    reader = SplitReader(data, split, data.manifest.tasks)
    buffers = reader.buffers(BATCH_SIZE)
    starts = range(0, num_samples, BATCH_SIZE)
    for start in track(starts, f"decoding {split}", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        sample_ids_B = np.arange(start, min(start + BATCH_SIZE, num_samples))
        yield from reader.read_into([buffer[: len(sample_ids_B)] for buffer in buffers], sample_ids_B).bad
    reader.close()


def _table(folder: Path, manifest: Manifest) -> Table:
    table = Table(title=f"{manifest.name}: {_input(manifest)}")
    for column in ("split", "task", "kind", "labelled", "missing", "labels"):
        table.add_column(column, justify="right" if column in ("labelled", "missing") else "left")
    for split in manifest.splits:
        for name, kind, missing, labels in _rows(folder, manifest, split):
            labelled = manifest.num_samples(split) - missing
            table.add_row(split, name, kind, f"{labelled:,}", f"{missing:,}" if missing else "-", labels)
        table.add_section()
    return table


def _rows(folder: Path, manifest: Manifest, split: str) -> Iterator[tuple[str, str, int, str]]:
    """Yield name, kind, number of samples without a label, and a summary of the labels, for every task."""
    index_NM, labels_NT = load_index(folder, manifest, split)
    scalars = {task.name: column for column, task in enumerate(scalar_tasks(manifest.tasks))}
    members = {task.name: 1 + column for column, task in enumerate(dense_tasks(manifest.tasks))}
    for task in manifest.tasks:
        if isinstance(task, ScalarTaskSpec):
            labels_N = np.concatenate([rows_RT[:, scalars[task.name]] for _, rows_RT in chunks(labels_NT)])
            known_N = labels_N[labels_N >= 0 if isinstance(task, ClassificationSpec) else ~np.isnan(labels_N)]
            yield task.name, task.kind, len(labels_N) - len(known_N), _labels(task, known_N)
        else:
            sizes = (rows_RM["bytes"][:, members[task.name]] for _, rows_RM in chunks(index_NM))
            missing = sum(int((size_R == 0).sum()) for size_R in sizes)
            yield task.name, task.kind, missing, "one per pixel"


def _labels(task: ScalarTaskSpec, known_N: np.ndarray) -> str:
    """Summarise labels: frequencies of the commonest classes, or mean and range in the task's unit."""
    if not len(known_N):
        return "none"
    if isinstance(task, ClassificationSpec):
        counts = np.bincount(known_N.astype(int), minlength=len(task.classes))
        common = np.argsort(-counts, kind="stable")[:MAX_CLASSES_SHOWN]
        shown = ", ".join(f"{task.classes[number]} {100 * counts[number] / len(known_N):.1f}%" for number in common)
        return shown + (f" and {len(counts) - len(common)} more" if len(counts) > len(common) else "")
    unit = f" {task.unit}" if task.unit else ""
    return f"{known_N.mean():.4g} ± {known_N.std():.4g}{unit}, from {known_N.min():.4g} to {known_N.max():.4g}"


def _input(manifest: Manifest) -> str:
    shape = " x ".join(map(str, manifest.input.shape))
    return f"images of {shape}" if isinstance(manifest.input, ImageSpec) else f"{shape} features"
