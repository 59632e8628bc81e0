"""Build the balancer of a run from the section `balance` of the configuration."""

from collections.abc import Sequence

from models import Task
from paretrain import Balancer
from trainer.config.sections.balance import BalanceConfig
from trainer.runtime.collectives import Runtime
from trainer.training.rules import build_rule
from trainer.training.task_groups import task_groups


def build_balancer(config: BalanceConfig, tasks: Sequence[Task], runtime: Runtime, seed: int) -> Balancer:
    """Build the balancer over all ranks, with its rule; raises as `build_rule`."""
    names = [task.name for task in tasks]
    group_of = task_groups(config.groups, names)[1] if config.groups else None
    return Balancer(
        names,
        build_rule(config, names, seed),
        group=runtime.balance_group,
        on_nonfinite=config.on_nonfinite,
        every_steps=config.every_steps,
        max_gap=config.adaptive.gap if config.adaptive else None,
        group_of=group_of,
    )
