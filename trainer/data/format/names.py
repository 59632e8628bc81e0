"""Names that can be kept: of a data set's columns, tasks, classes and units."""

from collections.abc import Iterable

from trainer.data.format.specs import FeaturesSpec, ImageSpec, TaskSpec
from trainer.errors import UserError
from trainer.plain import one_line


def refuse_control_characters(inputs: ImageSpec | FeaturesSpec, tasks: Iterable[TaskSpec]) -> None:
    """Refuse names that no table, log or page can show as they are; folders that have some can still be read.

    Raises:
        UserError: a name holds a line break, an escape or another control character.
    """
    names = list(inputs.names) if isinstance(inputs, FeaturesSpec) else []
    for task in tasks:
        names += [task.name, *getattr(task, "classes", ()), getattr(task, "unit", None) or ""]
    for name in names:
        if one_line(name) != name:
            raise UserError(
                f"The name '{one_line(name)}' holds a line break or another control character. Rename it in the source."
            )
