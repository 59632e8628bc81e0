"""Expand a grid: one run for every combination of the values of some configuration keys."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from trainer.config.file import load_config
from trainer.config.schema import Experiment
from trainer.errors import UserError

MAX_RUNS = 1000
"""Slurm's default limit for an array of jobs."""


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Attributes:
        overrides: the overrides of the configuration file that give this run.
        experiment: the resulting configuration.
    """

    overrides: tuple[str, ...]
    experiment: Experiment


def points(config: Path, overrides: Sequence[str], grid: Sequence[str]) -> list[Point]:
    """Return the runs of a grid, named after their values and in one Weights & Biases group; one run without a grid.

    Args:
        config: a YAML file.
        overrides: overrides for all runs, such as `train.steps=100`.
        grid: axes such as `seed=0,1,2` or `balance.weights={left: 1, right: 0},{left: 0, right: 1}`.

    Raises:
        UserError: an axis or a run is invalid.
    """
    if not grid:
        return [Point(tuple(overrides), load_config(config, overrides))]
    axes = [_axis(text) for text in grid]
    keys = [key for key, _ in axes]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise UserError(f"--grid names {', '.join(sorted(twice))} twice: give all its values at once, as in seed=0,1,2")
    size = math.prod(len(values) for _, values in axes)
    if size > MAX_RUNS:
        raise UserError(f"--grid asks for {size:,} runs, expected at most {MAX_RUNS:,}")
    found = []
    for values in product(*(values for _, values in axes)):
        chosen = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        # Only the whole point must be valid: weighting=fixed may get its weights from another axis.
        base = load_config(config, [*overrides, *chosen])
        name = "-".join([base.name, *map(label, keys, values)])
        point = (*overrides, *chosen, f"wandb.group={base.wandb.group or base.name}", f"name={name}")
        found.append(Point(point, load_config(config, point)))
    names = [point.experiment.name for point in found]
    same = {name for name in names if names.count(name) > 1}
    if same:
        raise UserError(f"--grid gives several runs the same folder, {', '.join(sorted(same))}: a value occurs twice")
    return found


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    found = [value.strip() for value in _split(values)]
    if not equals or not key or not all(found):
        raise UserError(f"found --grid {text!r}, expected key=value,value,..., such as --grid seed=0,1,2")
    if key == "name":
        raise UserError("--grid name=...: runs get their names from their values")
    return key, found


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def label(key: str, value: str) -> str:
    """Return a part of a file name: `normalise-loss-plus` for `balance.normalise` and `loss+`."""
    if value.endswith("+"):  # Not a character of names, but what tells `loss+` from `loss`.
        return f"{label(key, value.removesuffix('+'))}-plus"
    short = re.sub(r"[^A-Za-z0-9._]+", "_", value).strip("_")
    return f"{key.rpartition('.')[2]}-{short}"
