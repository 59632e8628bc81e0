"""`paretrain rules`: every rule, what it sees and remembers, what it costs here, and where its guarantee holds."""

import time

import numpy as np
from rich.table import Table

from paretrain.rules.rule import Weighting
from trainer.config.sections.balance import BalanceConfig
from trainer.terminal import Terminal
from trainer.training.rules import RULES, build_rule

REPEATS = 5
GUARANTEES = {"representation": "at z", "parameters": "parameters", "either": "anywhere", "none": "-"}


def print_rules(num_tasks: int) -> None:
    """Print the table, with the time that each rule takes on this machine for this many tasks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("rule", "sees", "remembers", "ms", "guarantee", "paper (arXiv)"):
        table.add_column(column, justify="right" if column == "ms" else "left", no_wrap=True)
    tasks = [f"{task}" for task in range(num_tasks)]
    weights = dict.fromkeys(tasks, 1 / num_tasks)
    for name, about in RULES.items():
        rule = build_rule(BalanceConfig(weighting=name, weights=weights if name == "fixed" else None), tasks)
        cost = f"{milliseconds(rule, num_tasks):.2f}"
        table.add_row(name, about.sees, about.remembers or "-", cost, GUARANTEES[about.guarantee], about.paper)
    terminal = Terminal(soft_wrap=True)
    terminal.print(table)
    terminal.print(
        f"\nms: CPU time of one step's weights here, for {num_tasks} tasks; the backward is the same for all.\n"
        "guarantee: where what the paper proves holds: for gradients of the representation z, of the\n"
        "encoder's parameters (balance.space=parameters), or anywhere, since the rule weighs losses.\n"
        "Choose a rule by balance.weighting=NAME; docs/balance.md says what each does."
    )


def milliseconds(rule: Weighting, num_tasks: int) -> float:
    """Return the least CPU time of a few calls of the rule, in ms."""
    generator = np.random.default_rng(0)
    times = []
    for _ in range(REPEATS):
        gradients_TN = generator.standard_normal((num_tasks, 2 * num_tasks))
        gram_TT, losses_T = gradients_TN @ gradients_TN.T, generator.uniform(0.5, 2, num_tasks)
        started = time.process_time()
        rule(gram_TT, losses_T, np.arange(num_tasks))
        times.append(time.process_time() - started)
    return 1e3 * min(times)
