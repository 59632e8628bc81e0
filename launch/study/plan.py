"""The runs of a study: every method, with every point of the grid and every seed, as points of `paretrain sweep`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from launch.grid import MAX_RUNS, Point, label
from launch.study.schema import SINGLE_TASK, Overrides, StudyConfig
from trainer.config.file import load_config
from trainer.config.schema import Experiment
from trainer.data.format.manifest import read_manifest
from trainer.data.remote.folder import open_folder
from trainer.errors import UserError

RUNS = "runs"
"""Folder of the runs, in the study's."""
MAX_NAME = 120
"""Longest name of a method in a run's name."""


@dataclass(frozen=True)
class Contender:
    """What is tuned and trained with every seed: a method, a task alone, or a point of the front.

    Attributes:
        name: for people.
        slug: for the names of its runs.
        overrides: of the base configuration.
        task: the task that it trains alone; None: all.
    """

    name: str
    slug: str
    overrides: Overrides
    task: str | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that decides the runs of a study.

    Attributes:
        study: its file, at the scale that was asked for.
        name: of the study, which is the group of its runs.
        out: folder of the page and the runs.
        base: configuration file of all runs.
        overrides: of all runs, as typed on the command line.
        methods, alone, front: what is trained.
        grid: the combinations that each is tuned over; one without any values where the study does not tune.
    """

    study: StudyConfig
    name: str
    out: Path
    base: Path
    overrides: tuple[str, ...]
    methods: tuple[Contender, ...]
    alone: tuple[Contender, ...]
    front: tuple[Contender, ...]
    grid: tuple[Overrides, ...]

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """Return all that is trained."""
        return *self.methods, *self.alone, *self.front

    @property
    def tuning_seeds(self) -> Sequence[int]:
        """Return the seeds of the tuning runs."""
        return (self.study.tune and self.study.tune.seeds) or self.study.seeds[:1]

    def tuning(self, contender: Contender) -> list[list[Point]]:
        """Return the runs of each point of the grid, a seed each."""
        return [[self.point(contender, values, seed) for seed in self.tuning_seeds] for values in self.grid]

    def final(self, contender: Contender, chosen: Overrides) -> list[Point]:
        """Return the runs of all seeds with the chosen values."""
        return [self.point(contender, chosen, seed) for seed in self.study.seeds]

    def point(self, contender: Contender, values: Overrides, seed: int) -> Point:
        """Return one run.

        Raises:
            UserError: its configuration is wrong; the message names the method.
        """
        labels = [label(key, _plain(value)) for key, value in values.items()]
        own = {
            "seed": seed,
            "name": "-".join([contender.slug, *labels, f"seed-{seed}"]),
            "output": str(self.out / RUNS),
            "wandb.group": self.name,
        }
        before = _overrides(self.study.overrides)
        overrides = (*before, *self.overrides, *_overrides(contender.overrides | values | own))
        try:
            return Point(overrides, load_config(self.base, overrides))
        except UserError as error:
            raise UserError(f"method {contender.name!r}: {error}") from None


def plan_study(path: Path, study: StudyConfig, out: Path, overrides: Sequence[str]) -> Plan:
    """Return the runs of a study. Nothing is trained or written.

    Args:
        path: the study's file.
        study: its content, at a scale.
        out: folder of the page and the runs.
        overrides: `key=value` of the command line.

    Raises:
        UserError: a configuration is wrong, the data cannot be read, or the runs are too many.
    """
    base = path.parent / study.base
    for override in overrides:
        key = override.partition("=")[0]
        for name, values in {**study.methods, "tune.grid": study.tune.grid if study.tune else {}}.items():
            if key in values:
                raise UserError(f"{override}: {name!r} of the study sets {key} itself. Change it in {path}")
    first = load_config(base, [*_overrides(study.overrides), *overrides])
    needs_tasks = study.baseline == SINGLE_TASK or study.front > 0
    tasks = _tasks(first) if needs_tasks else []
    kept = {"on_nonfinite": first.balance.on_nonfinite}
    grid = study.tune.grid if study.tune else {}
    plan = Plan(
        study=study,
        name=path.stem,
        out=out,
        base=base,
        overrides=tuple(overrides),
        methods=tuple(Contender(name, _slug(name), values) for name, values in study.methods.items()),
        alone=tuple(_alone(task, kept) for task in tasks) if study.baseline == SINGLE_TASK else (),
        front=_front(tasks, study.front, kept) if study.front else (),
        grid=tuple(dict(zip(grid, values, strict=True)) for values in product(*grid.values())),
    )
    slugs = [contender.slug for contender in plan.contenders]
    if twice := [contender.name for contender in plan.contenders if slugs.count(contender.slug) > 1]:
        raise UserError(f"{path}: {', '.join(map(repr, twice))} would share the folders of their runs: rename them")
    most = len(slugs) * (len(plan.grid) * len(plan.tuning_seeds) + len(study.seeds))
    if most > MAX_RUNS:
        raise UserError(f"{path} asks for up to {most:,} runs, expected at most {MAX_RUNS:,}")
    for contender in plan.contenders:
        for values in plan.grid:  # Every configuration is tried before the first run.
            plan.final(contender, values)
    return plan


def _tasks(experiment: Experiment) -> list[str]:
    data = experiment.data
    if data.tasks is not None:
        return list(data.tasks)
    manifest = read_manifest(open_folder(data.path, data.cache.dir, data.cache.max_bytes))
    return [task.name for task in manifest.tasks]


def _alone(task: str, kept: Overrides) -> Contender:
    overrides = {"data.tasks": [task], "balance": {"weighting": "uniform", **kept}}
    return Contender(f"{task} alone", f"alone-{_slug(task)}", overrides, task)


def _front(tasks: Sequence[str], number: int, kept: Overrides) -> tuple[Contender, ...]:
    if len(tasks) != 2:
        raise UserError(f"front: {number}: the data has {len(tasks)} tasks, and a front is drawn of two")
    found = []
    for share in np.linspace(1, 0, number).round(4).tolist():
        weights = {tasks[0]: share, tasks[1]: round(1 - share, 4)}
        name = f"weights {share:g} / {weights[tasks[1]]:g}"
        balance = {"weighting": "fixed", "weights": weights, **kept}
        found.append(Contender(name, _slug(f"front {share:g}"), {"balance": balance}))
    return tuple(found)


def _slug(name: str) -> str:
    """Return a part of a file name: `loss-plus` for `loss+`."""
    short = re.sub(r"[^A-Za-z0-9._]+", "-", name.replace("+", " plus ")).strip("-.")
    return short[:MAX_NAME] or "method"


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
