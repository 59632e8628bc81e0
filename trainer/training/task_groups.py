"""balance.groups: which tasks share one α."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from trainer.errors import UserError, did_you_mean


def task_groups(groups: Mapping[str, Sequence[str]], tasks: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the names of the groups, and the index of each task's group.

    A task in none of `groups` is a group of its own, of its own name. Groups are in the order of their first tasks.

    Args:
        groups: patterns of task names by the groups' names.
        tasks: names of all tasks.

    Raises:
        UserError: a pattern matches no task, a task is in two groups, or a group has the name of a task outside of it.
    """
    found: dict[str, str] = {}
    for group, patterns in groups.items():
        for pattern in patterns:
            matches = [task for task in tasks if fnmatchcase(task, pattern)]
            if not matches:
                raise UserError(
                    f"balance.groups.{group}: no task's name matches '{pattern}'{did_you_mean(pattern, tasks)} "
                    f"The tasks: {', '.join(tasks)}"
                )
            for task in matches:
                if found.setdefault(task, group) != group:
                    raise UserError(f"balance.groups: task '{task}' is in two groups, {found[task]} and {group}")
    for task in tasks:
        if task in groups and task not in found:
            raise UserError(f"balance.groups.{task}: another task, which is in no group, has this name")
    names = list(dict.fromkeys(found.get(task, task) for task in tasks))
    return names, [names.index(found.get(task, task)) for task in tasks]
