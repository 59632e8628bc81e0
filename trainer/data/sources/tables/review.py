"""Read a table once: what its columns contain, and which of the user's options do not fit it."""

from collections.abc import Collection

from trainer.data.sources.tables.columns import Survey, survey
from trainer.data.sources.tables.no_effect import say_unused_missing
from trainer.data.sources.tables.options import Columns
from trainer.data.sources.tables.split_column import propose_split, review_splits
from trainer.data.sources.tables.table_file import TableFile
from trainer.data.sources.tables.tasks import last_match


def review(
    file: TableFile, columns: Columns, sources: Collection[int], targets: Collection[int], texts: Collection[int] = ()
) -> tuple[dict[int, Survey], list[str]]:
    """Survey the columns that are used; print or refuse options that changed nothing, and splits that nobody reads.

    Args:
        file: the table.
        columns: the user's options.
        sources: numbers of the columns to predict from.
        targets: numbers of the columns to predict.
        texts: those of `sources` whose distinct cells are all kept.

    Returns:
        A survey of each column, and the splits, `train` and `test` first.

    Raises:
        UserError: as `survey`, `say_unused_missing`, `propose_split` and `review_splits`.
    """
    classes = [column for column in targets if last_match(columns.kinds, file.columns[column]) == "classification"]
    found, splits = survey(file, sources, targets, {*classes, *texts})
    say_unused_missing(file, found)
    if columns.split.column is None:
        values = {column: seen.values for column, seen in found.items()}
        propose_split(file.path, file.columns, values, file.find(columns.ignore))
    review_splits(file.path, splits, columns.split.expected)
    return found, splits
