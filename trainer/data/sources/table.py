"""A CSV file as a data folder: some columns are targets, each a task of its own, and the others the features.

Shapes: F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.data.format.manifest import Manifest
from trainer.data.format.npy import write_npy
from trainer.data.format.shards import Sample, write_shards
from trainer.data.format.specs import LARGEST, ClassificationSpec, FeaturesSpec, RegressionSpec, refusing
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
    """Writes shards of a table's rows. An empty feature is its mean, an empty target no label.

    Args:
        csv: the file, with a header.
        out: the data folder to make.
        targets: names of the columns to predict; `*` stands for anything.
        kinds: column -> `classification` or `regression`, where its cells do not say it.
        units: column of a regression -> what its error is shown in.
        ignore: names of columns to leave out; `*` stands for anything.
        split_column: whose cells name each row's split; None: a fifth is `test`, chosen by a hash of the row.

    Raises:
        UserError: a file, a column or a cell that is not what it should be; or as `write_shards`.
    """
    file = CsvFile(csv, split_column)
    wanted, ignored = file.find(targets), {*file.find(ignore), *file.find([split_column] if split_column else [])}
    both = [file.columns[column] for column in wanted if column in ignored]
    if both:
        raise UserError(f"{csv}: expected targets and columns to leave out to be different, found both: {both[:5]}.")
    features = [column for column in range(len(file.columns)) if column not in ignored and column not in wanted]
    if not features:
        raise UserError(f"{csv}: no column is left to predict {', '.join(targets)} from.")
    found, splits = survey(file, features, wanted, kinds or {})
    for column in features:
        if text := found[column].text:
            name = file.columns[column]
            raise UserError(
                f"{csv}:{text[0]}: feature {name!r} should be a finite number of at most {LARGEST:g}, "
                f"found {text[1][:40]!r}.\n"
                f"Leave the column out with --ignore {name}, or predict it with --targets."
            )
    with refusing(f"{csv}: its features cannot be kept"):
        inputs = FeaturesSpec(
            names=tuple(file.columns[column] for column in features),
            mean=tuple(found[column].mean for column in features),
            std=tuple(found[column].std for column in features),
        )
    tasks = build_tasks(file, {column: found[column] for column in wanted}, kinds or {}, units or {})
    return write_shards(
        out,
        name=csv.stem,
        made_by={"source": "table", "file": csv.name, "split_column": split_column},
        inputs=inputs,
        tasks=tasks,
        splits={split: _samples(file, split, features, dict(zip(wanted, tasks, strict=True))) for split in splits},
    )


def _samples(
    file: CsvFile, split: str, features: Sequence[int], tasks: Mapping[int, ClassificationSpec | RegressionSpec]
) -> Iterator[Sample]:
    targets = [(column, task.name, label_reader(task)) for column, task in tasks.items()]
    for row in file.of_split(split):
        features_F = np.array([number(row.cells[column]) for column in features], np.float32)
        yield Sample(write_npy(features_F), {name: read(row.cells[column]) for column, name, read in targets})
