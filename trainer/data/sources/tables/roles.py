"""What the columns of a table are for: to predict, to predict from, or neither."""

from collections.abc import Collection, Mapping, Sequence

from trainer.data.sources.tables.table_file import TableFile
from trainer.errors import UserError

MAX_SHOWN = 5


def other_roles(file: TableFile, ignore: Sequence[str]) -> dict[str, Collection[int]]:
    """Return the roles that leave a column out of targets and features, and the columns that have them."""
    of_file = {"the column of --split": file.split_column, "the column of --id": file.id_column}
    named = {role: [column] for role, column in of_file.items() if column is not None}
    return {"ignored columns": file.find(ignore), **named}


def choose_columns(
    file: TableFile, what: str, names: Sequence[str], others: Mapping[str, Collection[int]]
) -> list[int]:
    """Return the columns that an option names for a role, in the order of the file.

    Args:
        file: the table.
        what: the role, as the option is called: `targets` or `features`.
        names: names of the columns; `*` matches anything but the columns that have another role.
        others: the other roles, and the columns that have them.

    Raises:
        UserError: there is no such column, one that is named has another role, or a pattern matches only such columns.
    """
    taken = {column: role for role, columns in others.items() for column in columns}
    chosen = file.find(names, without=taken)
    for role, columns in others.items():
        if both := [file.columns[column] for column in chosen if column in columns]:
            raise UserError(
                f"{file.path}: expected {what} and {role} to be different, found in both: {both[:MAX_SHOWN]}."
            )
    for pattern in names:
        if not file.find([pattern], without=taken):
            roles = {file.columns[column]: taken[column] for column in file.find([pattern]) if column in taken}
            shown = [f"{name!r} ({role})" for name, role in list(roles.items())[:MAX_SHOWN]]
            raise UserError(
                f"{file.path}: --{what} {pattern!r} matches only columns of another role: "
                f"{', '.join(shown) or 'the index that pandas wrote'}."
            )
    return chosen
