"""Make a task of every column to predict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trainer.data.format.explain import refusing
from trainer.data.format.specs import LARGEST, ClassificationSpec, RegressionSpec, ScalarTaskSpec
from trainer.data.format.words import MISSING_WORDS
from trainer.data.sources.tables.alike import say_alike
from trainer.data.sources.tables.columns import Survey, whole
from trainer.data.sources.tables.kinds import decide, words
from trainer.data.sources.tables.table_file import TableFile
from trainer.errors import UserError, did_you_mean
from trainer.terminal import Terminal

MAX_FAULTS = 20
"""Columns that one message names."""


@dataclass(frozen=True)
class Targets:
    """The tasks of some columns.

    Attributes:
        tasks: column -> task.
        reasons: name of a task -> what was decided about it and why.
        dropped: columns without anything to learn, which were left out.
    """

    tasks: Mapping[int, ScalarTaskSpec]
    reasons: Mapping[str, str]
    dropped: Sequence[str]


def build_tasks(
    file: TableFile,
    targets: Mapping[int, Survey],
    kinds: Mapping[str, str],
    units: Mapping[str, str],
    *,
    drop_empty: bool,
) -> Targets:
    """Make a task of every column of targets.

    The cells of a column say whether it is a classification or a regression; `kinds` overrides this.

    Args:
        file: the file.
        targets: column -> its survey.
        kinds: name or pattern of columns -> kind.
        units: name or pattern of columns -> unit. A pattern leaves out classifications.
        drop_empty: leave out columns without a value, or with a single class, in the train split.

    Raises:
        UserError: kinds or units belong to no target or do not fit its cells, or the kind of a column is unclear. The
            message names every such column. Or none has anything to learn.
    """
    names = [file.columns[column] for column in targets]
    kind_of, unit_of = _spread("--kinds", kinds, names), _spread("--units", units, names)
    _say_unused("--kinds", kinds, "target", names)
    tasks: dict[int, ScalarTaskSpec] = {}
    reasons: dict[str, str] = {}
    dropped: list[str] = []
    faults: list[str] = []
    for column, seen in targets.items():
        name = file.columns[column]
        where, unit = f"{file.path}: column {name!r}", unit_of.get(name)
        if drop_empty and seen.is_empty:
            dropped.append(name)
            continue
        try:
            kind, reason = decide(where, name, seen, kind_of.get(name))
            if kind == "classification" and drop_empty and not seen.varies:
                dropped.append(name)
                continue
            if kind == "classification" and name in units:
                raise UserError(f"{where} is a classification: its error is a percentage, not in {unit}.")
            with refusing(f"{where} cannot be a task"):
                tasks[column] = (
                    _regression(where, name, seen, unit) if kind == "regression" else _classification(where, name, seen)
                )
            reasons[name] = reason
            if isinstance(made := tasks[column], ClassificationSpec):
                say_alike(name, made.classes)
        except UserError as error:
            faults.append(str(error))
    if faults:
        more = f"\n... and {len(faults) - MAX_FAULTS} more columns" if len(faults) > MAX_FAULTS else ""
        raise UserError("\n".join(faults[:MAX_FAULTS]) + more)
    regressions = [task.name for task in tasks.values() if isinstance(task, RegressionSpec)]
    _say_unused("--units", units, "regression", regressions)
    if not tasks:
        raise UserError(f"{file.path}: no target has anything to learn in the train split: {', '.join(dropped[:20])}.")
    return Targets(tasks, reasons, dropped)


def label_reader(task: ScalarTaskSpec) -> Callable[[str], int | float | None]:
    """Return a function that turns a cell of the task's column into a label."""
    if isinstance(task, RegressionSpec):
        return lambda cell: None if cell in MISSING_WORDS else float(cell)
    numbers = {name: number for number, name in enumerate(task.classes)}

    def read(cell: str) -> int | None:
        if cell in MISSING_WORDS:
            return None
        if cell not in numbers:  # 3.0 is 3
            numbers[cell] = numbers[str(whole(cell))]
        return numbers[cell]

    return read


def last_match(given: Mapping[str, str], name: str) -> str | None:
    """Return what was given for a column, or None. Its name counts first, then the last pattern that matches."""
    decides = _decides(given, name)
    return None if decides is None else given[decides]


def _decides(given: Mapping[str, str], name: str) -> str | None:
    """Return the name or pattern that counts for a column, or None."""
    if name in given:
        return name
    return next((pattern for pattern in reversed(list(given)) if fnmatchcase(name, pattern)), None)


def _say_unused(option: str, given: Mapping[str, str], what: str, names: Sequence[str]) -> None:
    """Print the patterns that count for none of the columns `names`, which are `what`."""
    deciding = {_decides(given, name) for name in names}
    for pattern in [pattern for pattern in given if pattern not in deciding]:
        Terminal(soft_wrap=True).print(
            f"{option} {pattern}={given[pattern]} has no effect on any {what}. A name counts first, then the last "
            "pattern that matches"
        )


def _spread(option: str, given: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return column -> value, for the columns that the names and patterns of an option match."""
    for pattern in given:
        if not any(name == pattern or fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:MAX_FAULTS]) + (", ..." if len(names) > MAX_FAULTS else "")
            raise UserError(
                f"{option} names {pattern!r}, which is not a target{did_you_mean(pattern, names)}\nTargets: {shown}."
            )
    return {name: value for name in names if (value := last_match(given, name)) is not None}


def _classification(where: str, name: str, seen: Survey) -> ClassificationSpec:
    if seen.whole and not seen.text:
        classes = [str(number) for number in sorted(set(map(whole, seen.values)))]
    else:
        classes = sorted(seen.values)
    if len(classes) < 2:
        raise UserError(
            f"{where}: a classification needs two classes or more, found {classes or 'no value at all'}. "
            "Leave such columns out with --drop-empty."
        )
    return ClassificationSpec(name=name, classes=tuple(classes))


def _regression(where: str, name: str, seen: Survey, unit: str | None) -> RegressionSpec:
    if seen.text:
        line, cell = seen.text
        raise UserError(
            f"{where}, line {line}: expected a finite number of at most {LARGEST:g}, found {cell[:40]!r}.\n"
            f"Cells that are none: {words(name, seen)}. If the column is one of classes, add --kinds "
            f"{name}=classification."
        )
    if not seen.count:
        raise UserError(f"{where} has no value in the train split. Leave such columns out with --drop-empty.")
    return RegressionSpec(name=name, unit=unit, mean=seen.mean, std=seen.std)
