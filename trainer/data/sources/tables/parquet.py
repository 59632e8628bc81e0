"""Read Parquet with pyarrow, which is optional: pip install 'paretrain[parquet]'."""

from collections.abc import Iterator
from pathlib import Path

from trainer.errors import UserError

INDEX = "__index_level_0__"
"""Name under which pandas writes an index without a name."""


def read_parquet(path: Path) -> Iterator[list[str]]:
    """Yield the names of the columns, then every row as texts; a missing value is an empty text.

    Raises:
        UserError: pyarrow is missing, the file is not Parquet, or a column holds lists or other nested values.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError(f"{path}: Parquet needs pyarrow. Type: pip install 'paretrain[parquet]'") from None
    try:
        if not path.is_file():
            raise UserError(f"{path} is not a regular file.")
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if nested := [field.name for field in schema if pa.types.is_nested(field.type)]:
                raise UserError(f"{path}: columns of lists or structures cannot be read: {nested[:5]}.")
            yield ["Unnamed: 0" if name == INDEX else name for name in schema.names]  # as pandas calls it in CSV
            for batch in file.iter_batches(batch_size=4096):
                columns = [[_cell(value) for value in column.to_pylist()] for column in batch.columns]
                yield from map(list, zip(*columns, strict=True))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}.") from None


def _cell(value: object) -> str:
    return "" if value is None else str(value).strip()
