"""The schema of the files that a run writes: a typed dictionary for each kind of record, summary.json and run.json.

A file that is read back may come from an older version or be damaged. Validation drops unknown fields, allows optional
fields to be missing, and checks the type of all others. docs/observability.md describes the records.

The file is long because it lists every field of every record.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from trainer.errors import UserError
from trainer.plain import one_line, shortened

SCHEMA = 2
"""The version of the records of metrics.jsonl, in each of them; docs/observability.md says what changed."""

MAX_NUMBER = 1e100
"""Bound of the numbers that are read back, so that their sums are finite. Squares of float32 numbers are far below."""

MAX_COUNT = 2**53
"""Bound of steps, samples and bytes: larger integers are not all exact in float64, which figures use."""

MAX_GRAM_TASKS = 1024
"""The most tasks of a Gram matrix: ordering them takes time that grows with their cube."""

T = TypeVar("T")

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)

Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Measured = Number | None
"""null if the number was not finite."""
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
ByTask = dict[str, Measured]
ByMetric = dict[str, Measured]
"""See trainer/config/metrics.py."""


@with_config(_STRICT)
class _Record(TypedDict):
    schema: NotRequired[Annotated[int, Field(ge=1, le=SCHEMA)]]
    """Records of the first version have none."""
    step: Count
    time: NotRequired[str]
    """When it was written: UTC, in ISO 8601."""
    seconds: NotRequired[Number]
    """Time that the run has taken so far, over all its starts."""


@with_config(_STRICT)
class Train(_Record):
    """A training step."""

    kind: Literal["train"]
    losses: ByTask
    alpha: ByTask
    samples_per_second: NotRequired[Number]
    samples_per_second_per_process: NotRequired[Number]
    data_wait_percent: NotRequired[Number]
    tflops_per_process: NotRequired[Number]
    mfu_percent: NotRequired[Number]
    memory_mib: NotRequired[Number]
    peak_memory_mib: NotRequired[Number]
    epoch: NotRequired[Count]
    """The epoch; with several sources, the smallest of theirs."""
    epochs: NotRequired[dict[str, Count]]
    """The epoch of each of several sources."""
    samples: NotRequired[Count]
    learning_rate: NotRequired[Measured]
    min_norm: NotRequired[Measured]
    gap: NotRequired[Measured]
    stale: NotRequired[Measured]
    """The staleness that the last renewal has found."""
    gradient_norm: NotRequired[Measured]
    multipliers: NotRequired[ByTask]
    distances: NotRequired[ByTask]
    """Like the multipliers, those of heads under constraints; see models/heads/constrained.py."""
    bad_samples: NotRequired[dict[str, Count]]
    cache: NotRequired[dict[str, Count]]


@with_config(_STRICT)
class OfSource(TypedDict):
    """An evaluation on one of several sources, of the tasks that have labels there."""

    samples: Count
    errors: ByTask
    losses: ByTask
    metrics: dict[str, ByMetric]


@with_config(_STRICT)
class _Evaluation(_Record):
    split: NotRequired[str]
    """Runs of older versions evaluated the test split only, and did not name it."""
    errors: ByTask
    losses: NotRequired[ByTask]
    metrics: NotRequired[dict[str, ByMetric]]
    deciding: NotRequired[dict[str, str]]
    units: NotRequired[dict[str, str]]
    by_class: NotRequired[dict[str, ByTask]]
    samples: NotRequired[Count]
    by_source: NotRequired[dict[str, OfSource]]
    averaged: NotRequired[bool]
    duration_seconds: NotRequired[Number]


@with_config(_STRICT)
class Eval(_Evaluation):
    """An evaluation during the training."""

    kind: Literal["eval"]


@with_config(_STRICT)
class Test(_Evaluation):
    """The test split, evaluated after the training with the parameters of a step, where others were evaluated on."""

    kind: Literal["test"]


@with_config(_STRICT)
class Monitor(_Record):
    """How much a step lowers the loss that falls least."""

    kind: Literal["monitor"]
    worst_slope: float | None
    """A ratio of any size: it is drawn, never summed."""
    num_ascending: Count


@with_config(_STRICT)
class Renewal(_Record):
    """A step that found α anew, and how stale the held one had become; see `paretrain.renewal`."""

    kind: Literal["renewal"]
    held_steps: Count
    stale: Measured


@with_config(_STRICT)
class Fault(_Record):
    """A step in which something was not finite."""

    kind: Literal["fault"]
    action: str
    losses: list[str]
    gradients: list[str]
    found: str


@with_config(_STRICT)
class Gram(_Record):
    """The Gram matrix of the tasks' gradients."""

    kind: Literal["gram"]
    gram: Annotated[list[list[Measured]], Field(max_length=MAX_GRAM_TASKS)]


@with_config(_STRICT)
class Note(_Record):
    """A remark in words."""

    kind: Literal["note"]
    text: str


Record = Train | Eval | Test | Monitor | Renewal | Fault | Gram | Note

RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


class NewerSchemaError(UserError):
    """A record was written by a newer version of this project."""


def read_record(value: Any, where: str) -> Record:
    """Validate a record of metrics.jsonl of any version, and return it in today's.

    Args:
        value: a parsed line.
        where: the file and the line, for an error.

    Raises:
        NewerSchemaError: its version is not known yet.
        UserError: a field is missing or wrong; the message names the first one.
    """
    if isinstance(value, dict):
        schema = value.get("schema", 1)
        if isinstance(schema, int) and schema > SCHEMA:
            raise NewerSchemaError(
                f"{where}: found schema {schema}, expected at most {SCHEMA}: a newer version of paretrain wrote it, "
                "which can read it"
            )
        if schema == 1 and value.get("kind") in ("eval", "test") and "seconds" in value:
            # In the first version, `seconds` of an evaluation was its duration.
            value = {"duration_seconds" if key == "seconds" else key: item for key, item in value.items()}
    return validated(RECORD, value, where)


@with_config(_STRICT)
class Selected(TypedDict):
    """The checkpoint that train.select has chosen."""

    step: Count
    rule: str
    """By what, in words: best mean error on val."""


@with_config(_STRICT)
class Summary(TypedDict):
    """summary.json."""

    tasks: list[str]
    steps: Count
    final_errors: ByTask
    best_errors: ByTask
    best_step: Count | None
    final_step: NotRequired[Count | None]
    eval_split: NotRequired[str]
    """Split of the final and best errors; test where it is missing."""
    selected: NotRequired[Selected | None]
    test_errors: NotRequired[ByTask]
    """Errors on the test split, where evaluations had another one: of the selected checkpoint, or else the last one."""
    test_step: NotRequired[Count]
    complete: NotRequired[bool]
    """Whether no step is left to make."""
    stopped_early: NotRequired[bool]
    """Whether train.patience has ended it."""
    units: NotRequired[dict[str, str]]
    metrics: NotRequired[dict[str, dict[str, ByMetric]]]
    deciding: NotRequired[dict[str, str]]
    by_source: NotRequired[dict[str, dict[str, OfSource]]]
    """By split and source: what the last evaluation of the split found in each source."""
    weighting: NotRequired[str]
    skipped_steps: NotRequired[Count]
    overflow_steps: NotRequired[Count]
    broken: NotRequired[dict[str, dict[str, Count]]]
    samples: NotRequired[Count]
    wall_seconds: NotRequired[Number]
    samples_per_second: NotRequired[Number]
    data_wait_percent: NotRequired[Number]
    world_size: NotRequired[Count]
    parameters: NotRequired[Count]
    peak_memory_mib: NotRequired[Number]
    bad_samples: NotRequired[dict[str, Count]]


SUMMARY: TypeAdapter[Summary] = TypeAdapter(Summary)


class Git(BaseModel):
    """The version of the code that ran."""

    model_config = _STRICT

    commit: str
    dirty: bool


class Info(BaseModel):
    """run.json. Fields that other versions add are kept, and the report shows them."""

    model_config = ConfigDict(**_STRICT, extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    command: str | None = None
    started_at: str | None = None
    world_size: Count | None = None
    git: Git | None = None
    """The version of this project."""
    user_git: Git | None = None
    """The version of the folder where the command was typed."""
    versions: dict[str, str | None] = {}


INFO: TypeAdapter[Info] = TypeAdapter(Info)


class _TrainSection(BaseModel):
    steps: Count | None = None


class _BalanceSection(BaseModel):
    weighting: str | None = None
    normalise: str = "none"


class ConfigExcerpt(BaseModel):
    """The settings of config.yaml that a report needs. The file may be of another version, so no other is read."""

    model_config = _STRICT

    train: _TrainSection = _TrainSection()
    balance: _BalanceSection = _BalanceSection()


CONFIG_EXCERPT: TypeAdapter[ConfigExcerpt] = TypeAdapter(ConfigExcerpt)


def validated(schema: TypeAdapter[T], value: Any, where: str) -> T:
    """Validate a value that was read from a file.

    Args:
        schema: the expected type.
        value: the value that was read.
        where: the start of an error message: the file, and the line if there are several.

    Raises:
        UserError: a field is missing or wrong; the message names the first one.
    """
    try:
        return schema.validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        raise UserError(f"{where}: {_explain(fault['loc'], fault['msg'])}") from None


def _explain(location: Sequence[str | int], message: str) -> str:
    field = ".".join(one_line(str(part))[:80] for part in location)
    said = shortened(one_line(message), 300)
    return f"{field}: {said}" if field else said
