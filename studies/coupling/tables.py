"""Read the tables of mulan's multi-target collection.

Shapes: N rows, P features, T tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import arff

NUM_TARGETS: Mapping[str, int] = {
    "andro": 6, "atp1d": 6, "atp7d": 6, "edm": 2, "enb": 2, "jura": 3, "oes10": 16, "oes97": 16, "osales": 12, "rf1": 8,
    "scpf": 3, "sf1": 3, "sf2": 3, "slump": 3, "wq": 14,
}  # fmt: skip
"""The tables, and how many of their last columns are to be predicted."""


@dataclass(frozen=True)
class Table:
    """Hold a table with complete labels of unit variance; a missing feature has its column's mean."""

    name: str
    features_NP: np.ndarray
    labels_NT: np.ndarray


def read_table(path: Path) -> Table:
    """Read one ARFF file; a nominal column becomes one column a value. Rows without all labels are left out."""
    records, meta = arff.loadarff(path)
    columns = [_columns(records[name], kind) for name, kind in zip(meta.names(), meta.types(), strict=True)]
    num_targets = NUM_TARGETS[path.stem]
    features_NP, labels_NT = np.hstack(columns[:-num_targets]), np.hstack(columns[-num_targets:])
    complete_N = ~np.isnan(labels_NT).any(axis=1)
    features_NP, labels_NT = features_NP[complete_N], labels_NT[complete_N]
    known_P = ~np.isnan(features_NP).all(axis=0)
    features_NP = features_NP[:, known_P]
    features_NP = np.where(np.isnan(features_NP), np.nanmean(features_NP, axis=0), features_NP)
    labels_NT = (labels_NT - labels_NT.mean(axis=0)) / labels_NT.std(axis=0)
    return Table(path.stem, features_NP, labels_NT)


def _columns(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "numeric":
        return values.astype(float)[:, None]
    levels = np.unique(values)
    return (values[:, None] == levels[1:]).astype(float) if len(levels) > 1 else np.zeros((len(values), 1))
