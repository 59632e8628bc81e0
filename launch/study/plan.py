"""The runs of a study: every method, with every point of the grid and every seed, as points of `paretrain sweep`."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from launch.grid import MAX_RUNS, Point, label
from launch.study.schema import OURS, SINGLE_TASK, Overrides, StudyConfig, replaces
from trainer.config.file import load_config
from trainer.config.schema import Experiment
from trainer.config.yaml_file import parse_yaml
from trainer.data.format.manifest import read_manifest
from trainer.data.remote.folder import open_folder
from trainer.errors import UserError

RUNS = "runs"
"""Folder of the runs, in the study's."""
MAX_SLUG = 120
"""Longest part of a run's name that stands for a method or a task."""


@dataclass(frozen=True)
class Draft:
    """A method, a task alone, or a point of the front, before its runs.

    Attributes:
        name: for people.
        slug: what the names of its runs begin with.
        overrides: its changes of the base.
    """

    name: str
    slug: str
    overrides: Overrides


@dataclass(frozen=True)
class Contender:
    """What is tuned and trained with every seed: a method, a task alone, or a point of the front.

    Attributes:
        name: for people.
        runs: of each point of the grid: seed -> run.
    """

    name: str
    runs: Sequence[Mapping[int, Point]]


@dataclass(frozen=True)
class Plan:
    """Everything that decides the runs of a study.

    Attributes:
        study: its file, at the scale that was asked for.
        name: of the study, which is the group of its runs.
        out: folder of the page and the runs.
        base: configuration file of all runs.
        grid: the combinations that each contender is tuned over; one without any values where the study does not tune.
        methods, alone, front: what is trained.
    """

    study: StudyConfig
    name: str
    out: Path
    base: Path
    grid: Sequence[Overrides]
    methods: Sequence[Contender]
    alone: Sequence[Contender]
    front: Sequence[Contender]

    @property
    def contenders(self) -> list[Contender]:
        """Return all that is trained."""
        return [*self.methods, *self.alone, *self.front]

    def tuning(self, contender: Contender) -> list[list[Point]]:
        """Return the runs that tune, a list for each point of the grid; none where there is nothing to choose."""
        if len(self.grid) == 1:
            return []
        return [[runs[seed] for seed in _tuning_seeds(self.study)] for runs in contender.runs]

    def final(self, contender: Contender, chosen: int) -> list[Point]:
        """Return the runs of all seeds at a point of the grid."""
        return [contender.runs[chosen][seed] for seed in self.study.seeds]


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
    _refuse_own_keys(path, study, overrides)
    base, common = path.parent / study.base, (*_typed(study.overrides), *overrides)
    parts = _drafts(study, load_config(base, common))
    drafts = [draft for part in parts for draft in part]
    _refuse_shared_folders(path, drafts)
    seeds = tuple(dict.fromkeys([*_tuning_seeds(study), *study.seeds]))
    most = len(drafts) * (math.prod(map(len, study.grid.values())) + len(seeds))
    if most > MAX_RUNS:
        raise UserError(f"{path} asks for about {most:,} runs, expected at most {MAX_RUNS:,}")
    grid = [dict(zip(study.grid, values, strict=True)) for values in product(*study.grid.values())]
    labels = ["".join(f"-{label(key, _plain(value))}" for key, value in values.items()) for values in grid]
    if twice := next((name for name in labels if labels.count(name) > 1), None):
        raise UserError(f"{path}: tune.grid: the runs of two points would be called NAME{twice}: leave one of them out")
    places = {"output": str(out / RUNS), "wandb.group": path.stem}

    def contender(draft: Draft) -> Contender:
        found = []
        for values, ending in zip(grid, labels, strict=True):
            name = f"{draft.slug}{ending}"
            typed = (*common, *_typed(draft.overrides | values | places))
            try:
                found.append(_points(base, typed, name, seeds))
            except UserError as error:
                raise UserError(f"method {draft.name!r}: {error}") from None
        return Contender(draft.name, found)

    return Plan(study, path.stem, out, base, grid, *([contender(draft) for draft in part] for part in parts))


def _refuse_own_keys(path: Path, study: StudyConfig, overrides: Sequence[str]) -> None:
    """Refuse overrides of the command line that would have no effect, since the study sets their keys itself."""
    for override in overrides:
        key, _, text = override.partition("=")
        value = parse_yaml(text, f"override {override}")
        if ours := [own for own in OURS if replaces(own, key, value)]:
            raise UserError(f"{override}: a study sets {ours[0]} itself; its seeds are listed in {path}")
        for name, values in {**study.methods, "tune.grid": study.grid}.items():
            if own := [own for own in values if replaces(own, key, value)]:
                raise UserError(f"{override}: {name!r} of the study sets {own[0]} itself. Change it in {path}")


def _refuse_shared_folders(path: Path, drafts: Sequence[Draft]) -> None:
    slugs = [draft.slug for draft in drafts]
    if twice := [draft.name for draft in drafts if slugs.count(draft.slug) > 1]:
        raise UserError(f"{path}: {', '.join(map(repr, twice))} would share the folders of their runs: rename them")


def _points(base: Path, overrides: Sequence[str], name: str, seeds: Sequence[int]) -> dict[int, Point]:
    """Return a run of each seed. The configuration is read once, since a study has hundreds of runs."""
    found = {}
    read = load_config(base, [*overrides, *_typed({"name": f"{name}-seed-{seeds[0]}"})])
    for seed in seeds:
        own = {"seed": seed, "name": f"{name}-seed-{seed}"}
        found[seed] = Point((*overrides, *_typed(own)), read.model_copy(update=own))
    return found


def _tuning_seeds(study: StudyConfig) -> Sequence[int]:
    return (study.tune and study.tune.seeds) or study.seeds[:1]


def _tasks(experiment: Experiment) -> list[str]:
    data, found = experiment.data, dict[str, None]()
    if data.tasks is not None:
        return list(data.tasks)
    for source in data.folders.values():
        manifest = read_manifest(open_folder(source.path, data.cache.dir, data.cache.max_bytes))
        found |= dict.fromkeys(source.tasks or (task.name for task in manifest.tasks))
    return list(found)


def _drafts(study: StudyConfig, experiment: Experiment) -> tuple[list[Draft], list[Draft], list[Draft]]:
    """Return the methods, the tasks alone and the front.

    Args:
        study: its file.
        experiment: the configuration without a method's changes.
    """
    methods = [Draft(name, _slug(name), values) for name, values in study.methods.items()]
    has_alone = study.baseline == SINGLE_TASK
    tasks = _tasks(experiment) if has_alone or study.front else []
    # One task, or fixed weights, need none of the section `balance` but what to do about a loss that is not finite.
    kept = {"on_nonfinite": experiment.balance.on_nonfinite}
    balance = {"weighting": "uniform", **kept}
    names = [f"{task} alone" for task in tasks]
    alone = [
        Draft(name, slug, {"data.tasks": [task], "balance": balance})
        for task, name, slug in zip(tasks, names, distinct_slugs(names), strict=True)
    ]
    return methods, alone if has_alone else [], _front(tasks, study.front, kept) if study.front else []


def _front(tasks: Sequence[str], number: int, kept: Overrides) -> list[Draft]:
    if len(tasks) != 2:
        raise UserError(f"front: {number}: the data has {len(tasks)} tasks, and a front is drawn of two")
    found = []
    for share in np.linspace(1, 0, number).round(4).tolist():
        weights = {tasks[0]: share, tasks[1]: round(1 - share, 4)}
        balance = {"weighting": "fixed", "weights": weights, **kept}
        name = f"weights {share:g} and {weights[tasks[1]]:g}"
        found.append(Draft(name, _slug(name), {"balance": balance}))
    return found


def _slug(name: str) -> str:
    """Return a part of a file name: `loss-plus` for `loss+`."""
    short = re.sub(r"[^A-Za-z0-9._]+", "-", name.replace("+", " plus ")).strip("-.")
    return short[:MAX_SLUG] or "method"


def distinct_slugs(names: Sequence[str]) -> list[str]:
    """Return the slugs of names that nobody may be able to change; where several are alike, with a hash of the name."""
    short = [_slug(name) for name in names]
    return [
        slug if short.count(slug) == 1 else f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for name, slug in zip(names, short, strict=True)
    ]


def _typed(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
