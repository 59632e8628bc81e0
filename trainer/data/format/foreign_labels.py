"""Read the labels of a sample that another program wrote.

A label may be a class number or name, a number, a text, a boolean or a whole float; in a JSON member, under keys or in
a list, or alone in a member of its own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.data.format.foreign import ForeignSpec, LabelSource
from trainer.data.format.specs import LARGEST, MISSING, ClassificationSpec, RegressionSpec, ScalarTaskSpec
from trainer.data.format.words import MISSING_WORDS, number_or_text, parse_number
from trainer.errors import UserError, did_you_mean

_BOOLEANS = {"True": True, "TRUE": True, "False": False, "FALSE": False}
MAX_SHOWN = 40


class LabelReader:
    """Reads the labels of samples.

    Args:
        tasks: the tasks with a label a sample.
        foreign: where their labels are.

    Attributes:
        members: extensions of the members that hold labels.
    """

    def __init__(self, tasks: Sequence[ScalarTaskSpec], foreign: ForeignSpec) -> None:
        self._columns = [_Column(task, foreign) for task in tasks]
        self._names = [column.task.name for column in self._columns if column.by_name]
        self.members = {column.source.member for column in self._columns}

    @property
    def used_missing(self) -> set[float | str]:
        """The labels that the description calls missing, as far as samples had them."""
        return {word for column in self._columns for word in column.used}

    def read(self, members: Mapping[str, bytes], where: str) -> list[int | float]:
        """Return the label of each task: a class index or MISSING, a value or NaN.

        Args:
            members: extension -> content. An absent one means that its labels are missing.
            where: the sample, for error messages.

        Raises:
            UserError: a member is not JSON, or a label is not one of the task's.
        """
        values = {extension: _parse(content, extension, where) for extension, content in members.items()}
        found = []
        for column in self._columns:
            value = values.get(column.source.member)
            if column.by_name:
                value = _by_name(value, column.task.name, self._names, where)
            else:
                value = _by_path(value, column.source, where)
            found.append(column.label(value, where))
        return found


class _Column:
    """A task, where its labels are, and which labels mean what."""

    def __init__(self, task: ScalarTaskSpec, foreign: ForeignSpec) -> None:
        default = LabelSource(member=foreign.labels, path=(task.name,))
        self.task, self.source = task, foreign.tasks.get(task.name, default)
        # A task that only says what is missing has its label where it is without that. A number may be a place.
        same = (self.source.member, self.source.path) == (default.member, default.path)
        self.by_name = task.name not in foreign.tasks or (same and not task.name.isdecimal())
        # A number is meant however it is written: -1 and "-1" are the same.
        self._missing: dict[float | str, float | str] = {}
        for word in self.source.missing:
            self._missing |= dict.fromkeys((word, number_or_text(word)), word)
        self.used: set[float | str] = set()
        names = task.classes if isinstance(task, ClassificationSpec) else ()
        self._of_text: dict[str, int] = {name: number for number, name in enumerate(names)}
        # Where all names are numbers, a number is a name too: of 1, 2, 3 it is 1 that is the first class.
        are_numbers = all(name.removeprefix("-").isdecimal() for name in names)
        self._of_number = {int(name) if are_numbers else number: number for number, name in enumerate(names)}
        lowered = {name.lower(): number for name, number in self._of_text.items()}
        self._of_boolean = (
            {False: lowered["false"], True: lowered["true"]} if {"false", "true"} <= lowered.keys() else {}
        )

    def label(self, value: Any, where: str) -> int | float:
        is_class = isinstance(self.task, ClassificationSpec)
        if self._is_missing(value):
            return MISSING if is_class else math.nan
        found = self._class(value) if is_class else _number(value)
        if found is not None:
            return found
        raise UserError(
            f"{where}: label of task {self.task.name!r} should be null or {_expected(self.task)}, "
            f"found {repr(value)[:MAX_SHOWN]}.{_hint(value, self.task)}"
        )

    def _is_missing(self, value: Any) -> bool:
        if isinstance(value, bool | list | dict):
            return False
        if self._missing and value is not None:
            word = self._missing.get(value, self._missing.get(number_or_text(value)))
            if word is not None:
                self.used.add(word)
                return True
        if isinstance(value, str):
            return value in MISSING_WORDS and value not in self._of_text
        return value is None or value != value

    def _class(self, value: Any) -> int | None:
        if isinstance(value, str) and value in self._of_text:
            return self._of_text[value]
        if type(value) is bool and self._of_boolean:
            return self._of_boolean[value]
        number = _number(value)
        return self._of_number.get(int(number)) if number is not None and number == int(number) else None


def _parse(content: bytes, extension: str, where: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        if extension.rpartition(".")[2] == "json":
            raise UserError(f"{where}: its labels are not JSON: {error}.") from None
    text = content.decode("utf-8", "replace").strip()
    return _BOOLEANS.get(text, text)


def _by_name(value: Any, name: str, names: Sequence[str], where: str) -> Any:
    """Return a task's label from the labels member, which has one for each name."""
    if value is None or isinstance(value, dict):
        return None if value is None else value.get(name)
    if isinstance(value, list) and len(value) == len(names):
        return value[names.index(name)]
    if len(names) == 1 and not isinstance(value, list):
        return value
    raise UserError(
        f"{where}: its labels should be a JSON object, or a list of {len(names)}, found {repr(value)[:MAX_SHOWN]}.\n"
        f"Say where the label of task {name!r} is: from: MEMBER, or from: MEMBER/KEY."
    )


def _by_path(value: Any, source: LabelSource, where: str) -> Any:
    for key in source.path:
        if value is None:
            return None
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal():
            value = value[int(key)] if int(key) < len(value) else None
        else:
            address = "/".join((source.member, *source.path))
            raise UserError(f"{where}: {address}: {key!r} should be a key or a place in {repr(value)[:MAX_SHOWN]}.")
    return value


def _number(value: Any) -> float | None:
    """Return a finite number, also one that is written as text or a boolean; None for anything else."""
    if isinstance(value, str):
        return parse_number(value)
    return value if isinstance(value, int | float) and abs(value) <= LARGEST else None


def _expected(task: ScalarTaskSpec) -> str:
    if isinstance(task, RegressionSpec):
        return f"a finite number of at most {LARGEST:g}"
    if all(name == str(number) for number, name in enumerate(task.classes)):
        return f"a class number from 0 to {len(task.classes) - 1}"
    shown = ", ".join(task.classes[:8]) + (", ..." if len(task.classes) > 8 else "")
    return f"one of the classes {shown}, or a class number from 0 to {len(task.classes) - 1}"


def _hint(value: Any, task: ScalarTaskSpec) -> str:
    if isinstance(value, dict | list):
        return "\nName what is inside with from: MEMBER/KEY."
    if value == -1:
        return "\nIf -1 means that there is none, add missing: -1. If it is a class, name them: classes: [-1, 1]."
    if isinstance(value, str) and isinstance(task, ClassificationSpec):
        meant = did_you_mean(value, task.classes).removeprefix("; d").removesuffix(".")
        return f"{' D' + meant if meant else ''}\nclasses: [...] lists the names that labels may have."
    return ""
