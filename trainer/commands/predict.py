"""`paretrain predict`: write the labels and predictions of every sample of a split to a table.

Shapes: N samples of the split, C classes, T tasks.
"""

import csv
import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.commands.evaluated import Evaluated, evaluate_checkpoint
from trainer.data.format.index import scalar_tasks
from trainer.data.format.specs import MISSING, ClassificationSpec, RegressionSpec, TaskSpec, doubled
from trainer.data.format.tables import load_index
from trainer.data.remote.folder import DataFolder, names_of
from trainer.errors import UserError
from trainer.files import make_folder, refuse_unwritable, replace
from trainer.terminal import Terminal

SUFFIXES = (".parquet", ".csv")


def predict_run(run_dir: Path, split: str, step: int | str | None, out: Path, processes: int | None) -> None:
    """Write a row for each sample.

    Its columns: of several sources `source`, the name of the sample's; `sample`, its number in the split in the order
    of the shards; `sample.name`, such as its image's file, if the data have names; and for each task NAME its label,
    null where it is missing, and NAME.p0, NAME.p1 ... or NAME.predicted.

    A class is its index, and a number is in the data's own unit. The metadata of a .parquet file hold the names of the
    classes.

    Args:
        run_dir: folder of the run.
        split: split of the run's data.
        step: step of the checkpoint; "best": the one that train.select has chosen; None: the last one.
        out: NAME.parquet or NAME.csv, which must not exist.
        processes: see `evaluate_checkpoint`.

    Raises:
        UserError: there is no such run, checkpoint or split, the predictions are too many or of pixels alone, or the
            file exists already or cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: expected a file name that ends in {' or '.join(SUFFIXES)}")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"--out {out} needs the package pyarrow. Type: pip install 'paretrain[parquet]', or --out {out.stem}.csv"
        )
    if out.exists():
        raise UserError(f"--out {out}: the file exists already. Remove it, or type another name")
    refuse_unwritable(out)
    evaluated = evaluate_checkpoint(run_dir, split, step, processes)
    if evaluated.found.too_large:
        raise UserError(evaluated.found.too_large)
    if not evaluated.is_main:
        return
    columns = _columns(evaluated)
    names = {spec.name: list(getattr(spec, "classes", ())) for spec in _described(evaluated.specs)}
    about = {"split": split, "step": evaluated.step, "classes": names}
    make_folder(out.parent)
    replace(out, _csv(columns) if out.suffix == ".csv" else _parquet(columns, about))
    left_out = [spec.name for spec in evaluated.specs if spec.name not in names]
    pixels = f"; left out, as they have a target for every pixel: {', '.join(left_out)}" if left_out else ""
    Terminal(soft_wrap=True).print(
        f"{out}: {len(columns[0].values_N):,} samples of the {split} split, {len(columns)} columns, step "
        f"{evaluated.step} of {run_dir}{pixels}"
    )


class _Column(NamedTuple):
    """A column of numbers or texts, some of which may be missing."""

    name: str
    values_N: np.ndarray
    missing_N: np.ndarray | None = None


def _columns(evaluated: Evaluated) -> list[_Column]:
    predicted, sources = evaluated.found.predicted, evaluated.data.sources
    if predicted is None:
        raise UserError("all tasks have a target for every pixel: there is no prediction of a sample to write")
    specs = _described(evaluated.specs)
    of_sources = evaluated.found.by_source or {"": evaluated.found}
    ids = [found.predicted.sample_ids_N for found in of_sources.values() if found.predicted]
    both = list(zip(sources, ids, strict=True))
    # The labels as the data have them: the model is given standardised ones.
    labels_NT = np.concatenate([_labels(source, evaluated.split, ids_N, specs) for source, ids_N in both])
    columns = [_Column("sample", predicted.sample_ids_N)]
    if len(sources) > 1:
        columns.insert(0, _Column("source", np.concatenate([np.full(len(ids_N), one.name) for one, ids_N in both])))
    named = [names_of(source, evaluated.split) for source in sources]
    if any(named):
        names = [of_split and of_split[one] for of_split, (_, ids_N) in zip(named, both, strict=True) for one in ids_N]
        columns.append(_Column("sample.name", np.array(names, object), np.array([name is None for name in names])))
    for place, spec in enumerate(specs):
        labels_N, answers_CN = labels_NT[:, place], predicted.of([spec.name])[0][:, 0]
        if isinstance(spec, ClassificationSpec):
            columns.append(_Column(spec.name, labels_N.astype(np.int64), labels_N < 0))
            columns += [_Column(f"{spec.name}.p{one}", p_N) for one, p_N in enumerate(answers_CN)]
        else:
            columns.append(_Column(spec.name, labels_N.astype(np.float64), np.isnan(labels_N)))
            answers_N = answers_CN[0].astype(np.float64) * spec.std + spec.mean
            columns.append(_Column(f"{spec.name}.predicted", answers_N))
    if doubles := doubled(column.name for column in columns):
        raise UserError(
            f"two columns would have the name {', '.join(map(repr, doubles))}: rename the tasks of the data"
        )
    return columns


def _labels(source: DataFolder, split: str, ids_N: np.ndarray, specs: Sequence[TaskSpec]) -> np.ndarray:
    """Return the labels of samples of a source as its table has them, (N, T) float64; -1 or NaN without a label."""
    labels_NT = load_index(source.path, source.manifest, split)[1][ids_N]
    places = {spec.name: place for place, spec in enumerate(scalar_tasks(source.manifest.tasks))}
    used = {task.name for task in source.tasks}
    found_NT = np.full((len(ids_N), len(specs)), np.nan)
    for number, spec in enumerate(specs):
        if spec.name in used:
            found_NT[:, number] = labels_NT[:, places[spec.name]]
        elif isinstance(spec, ClassificationSpec):
            found_NT[:, number] = MISSING
    return found_NT


def _described(specs: Sequence[TaskSpec]) -> list[ClassificationSpec | RegressionSpec]:
    return [spec for spec in specs if isinstance(spec, ClassificationSpec | RegressionSpec)]


def _csv(columns: Sequence[_Column]) -> bytes:
    """Return a CSV file; what is missing is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    writer.writerows(zip(*map(_cells, columns), strict=True))
    return text.getvalue().encode()


def _cells(column: _Column) -> list[Any]:
    values = column.values_N.tolist()
    if column.missing_N is None:
        return values
    return [None if missing else value for value, missing in zip(values, column.missing_N.tolist(), strict=True)]


def _parquet(columns: Sequence[_Column], about: Mapping[str, Any]) -> bytes:
    """Return a Parquet file with `about` as JSON in its metadata, under "paretrain"."""
    import pyarrow
    import pyarrow.parquet

    arrays = [pyarrow.array(column.values_N, mask=column.missing_N) for column in columns]
    table = pyarrow.table(
        arrays,
        names=[column.name for column in columns],
        metadata={"paretrain": json.dumps(about, ensure_ascii=False)},
    )
    with pyarrow.BufferOutputStream() as stream:
        pyarrow.parquet.write_table(table, stream)
        content: bytes = stream.getvalue().to_pybytes()
    return content
