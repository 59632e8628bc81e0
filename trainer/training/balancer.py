"""Build the balancer of a run, and its rule, from the section `balance` of the configuration."""

from collections.abc import Sequence

from models import Task
from paretrain import Balancer
from paretrain.rules import Weighting
from trainer.config.sections.balance import BalanceConfig
from trainer.errors import UserError
from trainer.runtime.collectives import Runtime
from trainer.training.rules import build_weighting
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


def build_rule(config: BalanceConfig, tasks: Sequence[str], seed: int) -> Weighting:
    """Build the rule, which sees the groups of tasks where there are any; `seed` determines what a random one draws.

    Raises:
        UserError: no such rule or option, or groups, weights or a preference that do not fit the tasks.
    """
    names, _ = task_groups(config.groups or {}, tasks)
    try:
        return build_weighting(
            config.weighting,
            config.options,
            tasks=names,
            weights=config.weights,
            preference=config.preference,
            normalise=config.normalise,
            reference=config.reference,
            seed=seed,
        )
    except ValueError as error:
        raise UserError(f"balance: {error}") from error
