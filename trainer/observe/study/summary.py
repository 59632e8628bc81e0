"""What a study has found, as a table for the terminal."""

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from trainer.observe.report.tables import NONE
from trainer.observe.study.results import Results
from trainer.observe.study.statistics import estimate
from trainer.observe.study.tables import metric_columns, over_seeds, signed
from trainer.plain import one_line, shortened

MAX_COLUMNS = 3
"""With more columns of metrics than this, none is shown here; the page has all of them."""
MAX_LETTERS = 40
"""The longest name in a heading."""
LIKE_BEST = "*"


def summary(results: Results) -> Table:
    """Return one row a method, the best by Δm first, with a mark where the seeds do not tell it from the best."""
    changes = {method.name: results.changes(method) for method in results.rows}
    best = results.like_the_best({method.name: changes[method.name] for method in results.methods})
    shown = list(metric_columns(results))
    shown = shown if len(shown) <= MAX_COLUMNS else []
    table = Table(title=f"{results.title}: {results.split}, seeds: {len(results.seeds)}", box=SIMPLE_HEAD)
    table.add_column("", width=1)
    table.add_column("method", overflow="fold")
    for heading in [
        *(column.title for column in shown),
        f"Δm against {shortened(one_line(results.baseline.name), MAX_LETTERS)}, %",
        "mean rank",
    ]:
        table.add_column(heading, justify="right")
    for name in sorted(changes, key=lambda name: -np.nan_to_num(changes[name].mean(), nan=-np.inf)):
        change = NONE if np.isnan(changes[name]).any() else signed(estimate(changes[name]))
        mark, rank = LIKE_BEST if name in best else "", results.mean_ranks.get(name, np.nan)
        metrics = [over_seeds(column.values[name]) for column in shown]
        table.add_row(mark, name, *metrics, change, NONE if np.isnan(rank) else f"{rank:.2f}")
    table.caption = f"{LIKE_BEST} the best method, and those that the seeds do not tell from it"
    return table
