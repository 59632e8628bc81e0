"""Make a data folder of a table: some columns are targets, one task each, and the others are the features."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.format.manifest import Manifest
from trainer.data.format.npy import write_npy
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import ScalarTaskSpec
from trainer.data.sources.tables.columns import survey
from trainer.data.sources.tables.features import Features
from trainer.data.sources.tables.no_effect import say_no_categories, say_unused_missing
from trainer.data.sources.tables.roles import choose_columns, other_roles
from trainer.data.sources.tables.rows import table_name
from trainer.data.sources.tables.split_column import propose_split, review_splits
from trainer.data.sources.tables.table_file import TableFile
from trainer.data.sources.tables.tasks import build_tasks, label_reader, last_match
from trainer.errors import UserError
from trainer.terminal import Terminal


def write_table(
    csv: Path,
    out: Path,
    *,
    targets: Sequence[str],
    features: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    categories: Sequence[str] = (),
    split_column: str | None = None,
    split_names: Mapping[str, str] | None = None,
    val_fraction: float = 0.0,
    missing: Sequence[tuple[str, str]] = (),
    drop_empty: bool = False,
    id_column: str | None = None,
) -> Manifest:
    """Write shards of a table's rows. An empty feature is replaced by its mean; an empty target is no label.

    Args:
        csv: the file, in one of `rows.FORMATS`, with the names of the columns.
        out: the data folder to write.
        targets: names of the columns to predict; `*` matches anything but the ignored columns and `features`.
        features: names of the columns to predict from. None: all that are neither targets nor ignored.
        kinds: column or pattern -> `classification` or `regression`, to override what its cells suggest.
        units: column of a regression, or pattern -> unit of its error.
        ignore: names of columns to leave out, also of those that patterns match; `*` matches anything.
        categories: names of the columns whose values become a feature each; a pattern matches columns of texts only.
        split_column: the column that names each row's split; None: a fifth is `test`, chosen by a hash of the row.
        split_names: cell of that column -> split; None: its cells are the splits.
        val_fraction: fraction of the train rows that are put into `val`, chosen by a hash of the row.
        missing: (column or pattern, cell) pairs: such cells count as missing values.
        drop_empty: leave out columns that have no value, and targets that have a single class, in the train split.
        id_column: the column that names each row, which is then left out of features and targets; None: a row's name
            is its number in the file, from 0.

    Raises:
        UserError: a file, columns or a cell are faulty; or as `write_shards`.
    """
    file = TableFile(csv, split_column, split_names, val_fraction, missing, id_column)
    others = other_roles(file, ignore)
    chosen, sources = _choose(file, targets, features, others)
    _refuse_other_categories(file, categories, sources, chosen)
    matching = set(file.find(categories)) & set(sources)
    of_classes = [column for column in chosen if last_match(kinds or {}, file.columns[column]) == "classification"]
    file.check_ids()
    found, splits = survey(file, sources, chosen, {*of_classes, *matching})
    say_unused_missing(file, found)
    if split_column is None:
        values = {column: seen.values for column, seen in found.items()}
        propose_split(file.path, file.columns, values, file.find(ignore))
    review_splits(file.path, splits, ["test", *(split_names or {}).values(), *(["val"] if val_fraction else [])])
    made = build_tasks(
        file, {column: found[column] for column in chosen}, kinds or {}, units or {}, drop_empty=drop_empty
    )
    if not made.tasks:
        raise UserError(f"{csv}: no target has anything to learn in the train split: {', '.join(made.dropped[:20])}.")
    empty = [column for column in sources if drop_empty and found[column].is_empty]
    sources = [column for column in sources if column not in empty]
    of_categories = {column for column in matching if found[column].text or file.columns[column] in categories}
    say_no_categories(file, categories, matching, of_categories)
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


def _choose(
    file: TableFile,
    targets: Sequence[str],
    features: Sequence[str] | None,
    others: Mapping[str, Collection[int]],
) -> tuple[list[int], list[int]]:
    """Return the columns to predict, and those to predict from. `others`: other roles, and the columns that have them.

    Raises:
        UserError: as `choose_columns`, or no column is left to predict from.
    """
    wanted = None if features is None else choose_columns(file, "features", features, others)
    chosen = choose_columns(file, "targets", targets, {**others, "features": wanted or []})
    unused = {*file.indexes, *chosen, *itertools.chain(*others.values())}
    sources = [column for column in range(len(file.columns)) if column not in unused] if wanted is None else wanted
    if not sources:
        raise UserError(f"{file.path}: no column is left to predict {', '.join(targets)} from.")
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
