"""What a run has left in its folder, read back for the report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trainer.errors import UserError
from trainer.observe.metrics import errors_so_far, read_metrics
from trainer.observe.predictions import Predictions, read_predictions


@dataclass(frozen=True)
class RunFolder:
    """One run, finished or not."""

    path: Path
    config_text: str
    """config.yaml as it stands."""
    info: dict[str, Any]
    """run.json: versions, git state, command, world size; empty when the run has not written it."""
    summary: dict[str, Any] | None
    """summary.json; None while the run has not finished, or trains on after it had."""
    records: list[dict[str, Any]]
    """metrics.jsonl, in order."""
    predictions: Predictions | None = None
    """predictions.npz; None where no task has a target a pixel, or before the first evaluation."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Task names in the order of the Gram matrix; empty before the first record."""
        if self.summary is not None:
            return tuple(self.summary["tasks"])
        return next((tuple(record["losses"]) for record in self.records if "losses" in record), ())

    @cached_property
    def errors(self) -> dict[str, Any]:
        """`final_errors` and `best_errors` by task, and `best_step`."""
        return self.summary if self.summary is not None else errors_so_far(self.records)

    @cached_property
    def units(self) -> dict[str, str]:
        """What each task's error is counted in; a task that is not here has percent."""
        return self.errors.get("units", {})

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as values."""
        return yaml.safe_load(self.config_text) or {}

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind, in order."""
        return [record for record in self.records if record["kind"] == kind]

    def latest(self, key: str) -> Any:
        """The value of `key` in the summary, else in the last "train" record, else in run.json; None if none has it."""
        sources = (self.summary, *self.of_kind("train")[-1:], self.info)
        return next((source[key] for source in sources if source and source.get(key) is not None), None)

    def steps(self, kind: str) -> np.ndarray:
        """The S steps at which records of a kind were written."""
        return np.array([record["step"] for record in self.of_kind(kind)], dtype=float)

    def series(self, kind: str, key: str) -> np.ndarray:
        """One number of each of the S records of a kind; NaN where it was null."""
        return np.array([record.get(key) for record in self.of_kind(kind)], dtype=float)

    def by_task(self, kind: str, key: str, tasks: Sequence[str]) -> np.ndarray:
        """The S x T numbers by task of the records of a kind; NaN where one was null or absent."""
        rows = [[record[key].get(task) for task in tasks] for record in self.of_kind(kind)]
        return np.array(rows, dtype=float).reshape(len(rows), len(tasks))


def read_run(path: Path) -> RunFolder:
    """Reads a run folder; everything but config.yaml may still be missing.

    Raises:
        UserError: The folder is not a run, or a file of it is damaged.
    """
    config = path / "config.yaml"
    if not config.is_file():
        raise UserError(
            f"{path} is not a run: {_found(path)}.\n"
            "Expected a folder that `paretrain train` has written, with config.yaml and metrics.jsonl in it.\n"
            "Type: paretrain report runs/NAME"
        )
    metrics = path / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.exists() else []
    summary = _read_json(path / "summary.json")
    outdated = summary is not None and any(record["step"] > summary["steps"] for record in records)
    return RunFolder(
        path=path,
        config_text=config.read_text(encoding="utf-8"),
        info=_read_json(path / "run.json") or {},
        summary=None if outdated else summary,
        records=records,
        predictions=read_predictions(kept) if (kept := path / "predictions.npz").exists() else None,
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.\nRemove it to leave it out of the report: rm {path}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, expected a JSON object.\nType: rm {path}")
    return value


def _found(path: Path) -> str:
    if not path.exists():
        return "no such folder"
    if not path.is_dir():
        return "it is a file"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
