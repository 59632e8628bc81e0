"""Read the folder of a run, for the report and the comparison."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter

from trainer.config.yaml_file import MAX_BYTES, parse_yaml
from trainer.errors import UserError
from trainer.files import read_json, read_text
from trainer.observe.metrics import TEST, Metrics, errors_so_far, parse_metrics
from trainer.observe.predictions import Predictions, read_predictions
from trainer.observe.records import (
    CONFIG_EXCERPT,
    INFO,
    MAX_NUMBER,
    SUMMARY,
    ConfigExcerpt,
    Info,
    Record,
    Summary,
    validated,
)
from trainer.observe.result import Result, result_of
from trainer.run_path import CONFIG, refuse_no_run

T = TypeVar("T")


@dataclass(frozen=True)
class RunFolder:
    """One run, finished or not."""

    path: Path
    config_text: str
    """The text of config.yaml."""
    config: ConfigExcerpt
    """The settings of config.yaml that a report needs."""
    info: Info | None
    """run.json: versions, git state, command, world size; None if the run has not written it."""
    summary: Summary | None
    """summary.json; None if the run has not finished, or was continued after it had."""
    metrics: Metrics
    """metrics.jsonl."""
    predictions: Predictions | None = None
    """predictions.npz; None if no task has one target per pixel, or before the first evaluation."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def records(self) -> list[Record]:
        """Records of metrics.jsonl, in order."""
        return self.metrics.records

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Task names in the order of the Gram matrix; empty before the first record."""
        if self.summary is not None:
            return tuple(self.summary["tasks"])
        firsts = (*self.of_kind("train")[:1], *self.of_kind("eval")[:1])
        return next((tuple(first["losses" if first["kind"] == "train" else "errors"]) for first in firsts), ())

    @cached_property
    def errors(self) -> Mapping[str, Any]:
        """`final_errors` and `best_errors` by task, and `best_step`."""
        return self.summary if self.summary is not None else errors_so_far(self.records)

    @property
    def result(self) -> Result:
        """The errors that the run is compared by."""
        return result_of(self.errors)

    @property
    def eval_split(self) -> str:
        """The split of the evaluations during the training."""
        return self.errors.get("eval_split", TEST)

    def evaluated_on(self, split: str) -> Mapping[str, Any]:
        """Return the record of the evaluation that the run stands for on a split; empty if there is none.

        It is that of the chosen step, where it was evaluated on this split, else the last one.
        """
        found = [*self.of_kind("eval"), *self.of_kind("test")]
        of_split = [record for record in found if record.get("split", TEST) == split]
        step = self.result.step if self.result.rule else None
        chosen = [record for record in of_split if record["step"] == step]
        return next(reversed(chosen or of_split), {})

    @cached_property
    def units(self) -> dict[str, str]:
        """Unit of each task's error; tasks that are missing here have percentages."""
        return self.errors.get("units", {})

    def of_kind(self, kind: str) -> list[Any]:
        """Return the records of one kind, in order; see records.py for their fields."""
        return [record for record in self.records if record["kind"] == kind]

    def latest(self, key: str) -> Any:
        """Return `key` of the summary, else of the last "train" record; None if neither has it."""
        sources = (self.summary, *self.of_kind("train")[-1:])
        return next((source[key] for source in sources if source and source.get(key) is not None), None)

    @property
    def world_size(self) -> int | None:
        """Number of processes."""
        return self.latest("world_size") or (self.info.world_size if self.info else None)

    def steps(self, kind: str) -> np.ndarray:
        """Return the S steps at which records of a kind were written."""
        return np.array([record["step"] for record in self.of_kind(kind)], dtype=float)

    def series(self, kind: str, key: str) -> np.ndarray:
        """Return one number of each of the S records of a kind; NaN if it is null or missing."""
        values_S = np.array([record.get(key) for record in self.of_kind(kind)], dtype=float)
        return np.clip(values_S, -MAX_NUMBER, MAX_NUMBER)

    def by_task(self, kind: str, key: str, tasks: Sequence[str]) -> np.ndarray:
        """Return one number per task of each of the S records of a kind, (S, T); NaN if it is null or missing."""
        rows = [[record[key].get(task) for task in tasks] for record in self.of_kind(kind)]
        return np.array(rows, dtype=float).reshape(len(rows), len(tasks))


def read_run(path: Path) -> RunFolder:
    """Read a run folder. Only config.yaml must be there.

    Raises:
        UserError: the folder is not a run, or one of its files is damaged.
    """
    refuse_no_run(path)
    config = path / CONFIG
    config_text = read_text(config, MAX_BYTES)
    metrics = path / "metrics.jsonl"
    found = parse_metrics(metrics) if os.path.lexists(metrics) else Metrics([], [], is_torn=False)
    summary = _read(path / "summary.json", SUMMARY)
    outdated = summary is not None and any(record["step"] > summary["steps"] for record in found.records)
    run = RunFolder(
        path=path,
        config_text=config_text,
        config=validated(CONFIG_EXCERPT, parse_yaml(config_text, str(config)), str(config)),
        info=_read(path / "run.json", INFO),
        summary=None if outdated else summary,
        metrics=found,
        predictions=read_predictions(path / "predictions.npz"),
    )
    for record in run.of_kind("gram"):
        if {len(run.tasks)} != {len(record["gram"]), *map(len, record["gram"])}:
            raise UserError(
                f"{metrics}: the Gram matrix of step {record['step']} does not match the run's {len(run.tasks)} tasks."
            )
    return run


def read_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """Read the folders of several runs.

    Raises:
        UserError: see `read_run`; or a run is named twice, and would count twice.
    """
    places = [path.resolve() for path in paths]
    if twice := next((path for path, place in zip(paths, places, strict=True) if places.count(place) > 1), None):
        raise UserError(f"the run {twice} is named twice. Type it once")
    return [read_run(path) for path in paths]


def _read(path: Path, schema: TypeAdapter[T]) -> T | None:
    try:
        return validated(schema, read_json(path), str(path))
    except FileNotFoundError:
        return None
    except UserError as error:
        raise UserError(f"{error}\nRemove it to leave it out of the report: rm {path}") from None
