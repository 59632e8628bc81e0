"""Make a data folder of a CSV file: some columns are targets, one task each, and the others are the features.

Shapes: F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.data.format.manifest import Manifest
from trainer.data.format.npy import write_npy
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import LARGEST, FeaturesSpec, ScalarTaskSpec, refusing
from trainer.data.sources.columns import build_tasks, label_reader, number, survey
from trainer.data.sources.csv_file import CsvFile
from trainer.errors import UserError


def write_table(
    csv: Path,
    out: Path,
    *,
    targets: Sequence[str],
    kinds: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    split_column: str | None = None,
) -> Manifest:
    """Write shards of a table's rows. An empty feature is replaced by its mean; an empty target is no label.

    Args:
        csv: the file, with a header.
        out: the data folder to write.
        targets: names of the columns to predict; `*` matches anything.
        kinds: column -> `classification` or `regression`, to override what its cells suggest.
        units: column of a regression -> unit of its error.
        ignore: names of columns to leave out; `*` matches anything.
        split_column: the column that names each row's split; None: a fifth is `test`, chosen by a hash of the row.

    Raises:
        UserError: a file, a column or a cell is faulty; or as `write_shards`.
    """
    file = CsvFile(csv, split_column)
    chosen, ignored = file.find(targets), {*file.find(ignore), *file.find([split_column] if split_column else [])}
    both = [file.columns[column] for column in chosen if column in ignored]
    if both:
        raise UserError(f"{csv}: expected targets and ignored columns to be different, found in both: {both[:5]}.")
    features = [column for column in range(len(file.columns)) if column not in ignored and column not in chosen]
    if not features:
        raise UserError(f"{csv}: no column is left to predict {', '.join(targets)} from.")
    found, splits = survey(file, features, chosen, kinds or {})
    for column in features:
        if text := found[column].text:
            name = file.columns[column]
            raise UserError(
                f"{csv}:{text[0]}: feature {name!r} should be a finite number of at most {LARGEST:g}, "
                f"found {text[1][:40]!r}.\n"
                f"Leave the column out with --ignore {name}, or predict it with --targets."
            )
    with refusing(f"{csv}: its columns cannot be features"):
        inputs = FeaturesSpec(
            names=tuple(file.columns[column] for column in features),
            mean=tuple(found[column].mean for column in features),
            std=tuple(found[column].std for column in features),
        )
    tasks = build_tasks(file, {column: found[column] for column in chosen}, kinds or {}, units or {})
    return write_shards(
        out,
        name=csv.stem,
        made_by={"source": "table", "file": csv.name, "split_column": split_column},
        inputs=inputs,
        tasks=tasks,
        splits={split: _samples(file, split, features, dict(zip(chosen, tasks, strict=True))) for split in splits},
    )


def _samples(
    file: CsvFile, split: str, features: Sequence[int], tasks: Mapping[int, ScalarTaskSpec]
) -> Iterator[Sample]:
    targets = [(column, task.name, label_reader(task)) for column, task in tasks.items()]
    for row in file.of_split(split):
        features_F = np.array([number(row.cells[column]) for column in features], np.float32)
        yield Sample(write_npy(features_F), {name: read(row.cells[column]) for column, name, read in targets})
