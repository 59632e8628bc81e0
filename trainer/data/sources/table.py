"""Make a data folder of a table: some columns are targets, one task each, and the others are the features."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.format.manifest import Manifest
from trainer.data.format.npy import write_npy
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ScalarTaskSpec
from trainer.data.sources.tables.features import Features
from trainer.data.sources.tables.no_effect import say_no_categories
from trainer.data.sources.tables.options import TableColumns
from trainer.data.sources.tables.review import review
from trainer.data.sources.tables.roles import choose_columns, other_roles
from trainer.data.sources.tables.rows import table_name
from trainer.data.sources.tables.table_file import TableFile
from trainer.data.sources.tables.tasks import build_tasks, label_reader
from trainer.errors import UserError
from trainer.terminal import Terminal


def write_table(csv: Path, out: Path, columns: TableColumns) -> Manifest:
    """Write shards of a table's rows. An empty feature is replaced by its mean; an empty target is no label.

    Args:
        csv: the file, in one of `rows.FORMATS`, with the names of the columns.
        out: the data folder to write.
        columns: what the columns are for, and how the rows are split.

    Raises:
        UserError: a file, columns or a cell are faulty; or as `write_shards`.
    """
    file = TableFile(csv, columns.split, columns.missing, columns.id)
    chosen, sources = _choose(file, columns)
    _refuse_other_categories(file, columns.categories, sources, chosen)
    matching = set(file.find(columns.categories)) & set(sources)
    file.check_ids()
    found, splits = review(file, columns, sources, chosen, matching)
    targets = {column: found[column] for column in chosen}
    made = build_tasks(file, targets, columns.kinds, columns.units, drop_empty=columns.drop_empty)
    empty = [column for column in sources if columns.drop_empty and found[column].is_empty]
    sources = [column for column in sources if column not in empty]
    of_categories = {column for column in matching if found[column].text or file.columns[column] in columns.categories}
    say_no_categories(file, columns.categories, matching, of_categories)
    inputs = Features(file, {column: found[column] for column in sources}, of_categories)
    dropped = [*made.dropped, *(file.columns[column] for column in empty)]
    _say_dropped(file, dropped)
    made_by: dict[str, Any] = {"source": "table", **file.made_by}
    made_by |= {"categories": [file.columns[column] for column in sorted(of_categories)]} if of_categories else {}
    made_by |= {"dropped": dropped} if dropped else {}
    return write_shards(
        out,
        name=table_name(csv),
        made_by=made_by,
        inputs=inputs.spec,
        tasks=list(made.tasks.values()),
        splits={split: _samples(file, split, inputs, made.tasks) for split in splits},
        reasons=made.reasons,
    )


def _choose(file: TableFile, columns: TableColumns) -> tuple[list[int], list[int]]:
    """Return the columns to predict, and those to predict from.

    Raises:
        UserError: as `choose_columns`, or no column is left to predict from.
    """
    others = other_roles(file, columns.ignore)
    wanted = None if columns.features is None else choose_columns(file, "features", columns.features, others)
    chosen = choose_columns(file, "targets", columns.targets, {**others, "features": wanted or []})
    unused = {*file.indexes, *chosen, *itertools.chain(*others.values())}
    sources = [column for column in range(len(file.columns)) if column not in unused] if wanted is None else wanted
    if not sources:
        raise UserError(f"{file.path}: no column is left to predict {', '.join(columns.targets)} from.")
    return chosen, sources


def _refuse_other_categories(
    file: TableFile, categories: Sequence[str], sources: Collection[int], targets: Collection[int]
) -> None:
    for name in categories:
        columns = file.find([name])
        if not set(columns) & set(sources):
            role = "a target" if set(columns) & set(targets) else "left out"
            raise UserError(f"--categories names {name!r}, which is no feature: it is {role}.")


def _samples(file: TableFile, split: str, features: Features, tasks: Mapping[int, ScalarTaskSpec]) -> Iterator[Sample]:
    targets = [(column, task.name, label_reader(task)) for column, task in tasks.items()]
    for row in file.of_split(split):
        labels = {name: read(row.cells[column]) for column, name, read in targets}
        yield Sample(write_npy(features.read(row)), labels, name=row.name)


def _say_dropped(file: TableFile, dropped: Collection[str]) -> None:
    ignored = [file.columns[column] for column in sorted(file.indexes)]
    if ignored:
        Terminal(soft_wrap=True).print(f"left out, as pandas' index or without a name: {', '.join(ignored)}")
    if dropped:
        Terminal(soft_wrap=True).print(f"left out, with nothing to learn from: {', '.join(dropped)}")
