"""The file of a study: its runs, how they are tuned, and what they are compared with. Its page is docs/studies.md."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from trainer.config.faults import shown
from trainer.config.file import parse_section
from trainer.config.section import Section
from trainer.config.yaml_file import read_yaml
from trainer.errors import UserError, did_you_mean

SINGLE_TASK = "single_task"
"""The baseline that trains each task alone."""
ALONE = "each task alone"
"""What the tables call these runs together."""
OURS = ("name", "seed", "output", "wandb.group")
"""Keys that a study sets itself."""

MAX_NAME = 120
"""Longest name of a method."""

Overrides = dict[str, Any]
"""Dotted keys of the configuration, such as balance.weighting, and their values."""
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1, max_length=100)]
Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]


class TuneConfig(Section):
    """How every method is tuned: all get the same grid, so the same number of runs."""

    grid: Grid = Field(min_length=1)
    """Keys and the values to try; every combination is a run. The one with the best mean change of the metrics that
    decide, against the mean of the method's own grid, is chosen."""
    seeds: Seeds | None = None
    """Seeds of these runs. null: the first seed of the study, whose chosen run then also counts as its result."""
    split: str = Field("val", min_length=1)
    """Split that the choice is made on; the runs must be evaluated on it (`train.eval_split`)."""


class SmallConfig(Section):
    """What `--scale small` changes, so that the study runs in minutes."""

    overrides: Overrides = Field({})
    """They come after the study's own."""
    seeds: Seeds | None = None
    """null: those of the study."""
    methods: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the methods to keep. null: all."""
    grid: Grid | None = None
    """In place of the study's. {}: no tuning, the values of the configuration count. null: the study's."""
    front: int | None = Field(None, ge=0, le=101)
    """In place of the study's. 0: none. null: the study's."""


class StudyConfig(Section):
    """Methods times seeds, on one base configuration."""

    title: str = Field(min_length=1)
    """Heading of the page."""
    base: Path
    """Configuration file of all runs, relative to the study's file."""
    overrides: Overrides = Field({})
    """Changes of the base, for all runs."""
    seeds: Seeds
    """Each method is trained once with each."""
    methods: dict[str, Overrides] = Field(min_length=1, max_length=200)
    """Name of each method, and its changes of the base."""
    tune: TuneConfig | None = None
    """null: no tuning, the values of the configuration count."""
    baseline: str | None = None
    """What changes are measured against: single_task, which trains each task alone as well, or the name of a method.
    null: the first method."""
    front: int = Field(0, ge=0, le=101)
    """For two tasks: number of fixed weights from (1, 0) to (0, 1), whose runs draw the front that any weighting of the
    losses can reach. They are tuned as the methods are. 0: none."""
    small: SmallConfig | None = None

    @model_validator(mode="after")
    def _methods_have_names(self) -> Self:
        if bad := [name for name in self.methods if not name.strip() or len(name) > MAX_NAME]:
            raise ValueError(f"methods: expected names of 1 to {MAX_NAME} characters, found {shown(bad[0])}")
        if reserved := [name for name in self.methods if name in (SINGLE_TASK, ALONE)]:
            raise ValueError(f"methods.{reserved[0]}: the tasks alone are called that. Type another name")
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if self.baseline not in (None, SINGLE_TASK, *self.methods):
            known = [SINGLE_TASK, *self.methods]
            raise ValueError(f"baseline: no method {self.baseline!r}{did_you_mean(str(self.baseline), known)}")
        kept = () if self.small is None else self.small.methods or ()
        if unknown := [name for name in kept if name not in self.methods]:
            raise ValueError(f"small.methods: no method {unknown[0]!r}{did_you_mean(unknown[0], self.methods)}")
        if kept and self.baseline not in (None, SINGLE_TASK, *kept):
            raise ValueError(f"small.methods: the baseline, {self.baseline!r}, must be among them")
        return self

    @model_validator(mode="after")
    def _a_front_has_two_ends(self) -> Self:
        if 1 in (self.front, self.small and self.small.front):
            raise ValueError("front: 1 is no front: expected 0, or 2 and more")
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        small, tune = self.small or SmallConfig(), self.tune
        for seeds in (self.seeds, small.seeds or (), (tune.seeds or ()) if tune else ()):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"seeds: each must occur once, found {list(seeds)}")
        return self

    @model_validator(mode="after")
    def _keys_have_one_meaning(self) -> Self:
        small = self.small or SmallConfig()
        tuned = [*self.grid, *(small.grid or {})]
        given = [
            pair
            for overrides in (self.overrides, small.overrides, *self.methods.values())
            for pair in overrides.items()
        ]
        given += [(key, value) for key in tuned for value in (self.grid | (small.grid or {}))[key]]
        if ours := [own for own in OURS if any(replaces(own, key, value) for key, value in given)]:
            raise ValueError(f"{ours[0]}: a study sets it itself; list the seeds under `seeds`")
        for name, overrides in self.methods.items():
            if clash := [own for own in tuned if any(replaces(own, key, value) for key, value in overrides.items())]:
                raise ValueError(f"methods.{name}: {clash[0]} is tuned. Leave it out, or out of the grid")
        return self

    @property
    def grid(self) -> Grid:
        """Return the keys that are tuned, with the values to try; none where the study does not tune."""
        return self.tune.grid if self.tune else {}

    def at(self, scale: str) -> "StudyConfig":
        """Return the study at a scale: "full", or "small" as its section `small` says.

        Raises:
            UserError: the study has no such section.
        """
        if scale == "full":
            return self
        if self.small is None:
            raise UserError("--scale small: this study has no section `small`")
        small = self.small
        changed: dict[str, Any] = {
            "overrides": self.overrides | small.overrides,
            "seeds": small.seeds or self.seeds,
            "front": self.front if small.front is None else small.front,
            "methods": {name: self.methods[name] for name in small.methods or self.methods},
        }
        if small.grid is not None:
            split = self.tune.split if self.tune else TuneConfig.model_fields["split"].default
            changed["tune"] = TuneConfig(grid=small.grid, split=split) if small.grid else None
        elif self.tune:
            changed["tune"] = self.tune.model_copy(update={"seeds": None} if small.seeds else {})
        return self.model_copy(update=changed)


def replaces(own: str, key: str, value: Any) -> bool:
    """Return whether `key=value` gives a value to the key `own`, to a key inside it, or to a section with it."""
    if f"{key}.".startswith(f"{own}."):
        return True
    if not own.startswith(f"{key}."):
        return False
    for part in own.removeprefix(f"{key}.").split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def read_study(path: Path) -> StudyConfig:
    """Read the file of a study.

    Raises:
        UserError: it is missing, not YAML, or a key or value is wrong.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"no study {path}. For examples, type: ls studies/*.yaml") from None
    return parse_section(StudyConfig, values, str(path), "study")
