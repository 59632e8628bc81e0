"""balance.groups: which tasks share one α."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape

from trainer.config.sections.balance import BalanceConfig
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError, did_you_mean


def with_groups_of_sources(config: BalanceConfig, sources: Sequence[DataFolder], tasks: Sequence[str]) -> BalanceConfig:
    """Return the section with a group a source, where `balance.groups` leaves that to the trainer; else as it is.

    Tasks that have labels in the same sources are a group, named by these sources. No sample then runs in two
    backwards, unless sources share a task.

    Args:
        config: the section.
        sources: of the data.
        tasks: names of the tasks that are trained.
    """
    if config.groups is not None or config.space != "parameters":
        return config
    groups: dict[str, list[str]] = {}
    for task in tasks:
        having = [source.name for source in sources if task in [spec.name for spec in source.tasks]]
        groups.setdefault("+".join(having), []).append(escape(task))
    # One group would leave nothing to balance.
    return config if len(groups) < 2 else config.model_copy(update={"groups": groups})


def say_groups(config: BalanceConfig, tasks: Sequence[str]) -> str:
    """Return a sentence about the groups that `with_groups_of_sources` has made."""
    names, group_of = task_groups(config.groups or {}, tasks)
    of_groups = (
        f"{name} ({', '.join(task for task, its_group in zip(tasks, group_of, strict=True) if its_group == number)})"
        for number, name in enumerate(names)
    )
    return (
        f"the tasks of a source share one α: {'; '.join(of_groups)}. For an α a task, and a backward a task, type "
        "balance.groups={}"
    )


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
