"""The lines of a model card that turn a row of the table that the data were made of into the numbers of the model."""

import json
from collections.abc import Mapping
from typing import Any

ROW = '''\
CATEGORIES = {categories}


def row(cells):
    """Return the numbers of a row, given as {{column: cell}}: NaN for an empty cell or a new category."""
    numbers, known = [], set(inputs["names"])
    for name in inputs["names"]:
        column = next((column for column in CATEGORIES if name.startswith(f"{{column}}=")), None)
        if column is None:
            numbers.append(float("nan") if cells[name] in (None, "") else float(cells[name]))
        else:
            value = f"{{column}}={{cells[column]}}"
            numbers.append(float(name == value) if value in known else float("nan"))
    return numbers


'''


def row_function(made_by: Mapping[str, Any]) -> str:
    """Return the lines of a function `row` for data that `paretrain data table` has made; nothing for others.

    Args:
        made_by: what the data's manifest says about that.
    """
    if made_by.get("source") != "table":
        return ""
    return ROW.format(categories=json.dumps(made_by.get("categories", [])))
