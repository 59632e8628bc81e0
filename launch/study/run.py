"""Run a study: tune every method, train the chosen ones with every seed, and write the page and the tables.

Runs that are complete are never trained again, so the same command goes on where an earlier one ended.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launch.grid import Point
from launch.study.check import other_runs
from launch.study.plan import Contender, Plan
from launch.study.schema import ALONE, SINGLE_TASK
from launch.submit import Job, submit
from launch.sweep import exit_code_of, is_complete, train_missing
from trainer.errors import EXIT_UNFINISHED, UserError
from trainer.observe.read_run import RunFolder, read_run
from trainer.observe.study.page import write_study
from trainer.observe.study.results import Method, Results, deciding_of, mean_changes, measured, method_of, metrics_on
from trainer.observe.study.summary import summary
from trainer.terminal import Terminal

Train = Callable[[Path, Sequence[Point]], int]
"""Train points that are not complete, or hand them to a cluster. Returns an exit code: 0 if all are complete."""


def here(parallel: int) -> Train:
    """Return a function that trains on this machine, `parallel` runs at a time."""

    def train(base: Path, points: Sequence[Point]) -> int:
        return exit_code_of(train_missing("study", base, points, parallel), len(points))

    return train


def on_slurm(job: Job, *, dry_run: bool) -> Train:
    """Return a function that submits what is missing as an array of jobs, and ends the command until it is done."""

    def train(base: Path, points: Sequence[Point]) -> int:
        missing = [point for point in points if not is_complete(point)]
        if not missing:
            return 0
        submit(base, missing, job, dry_run=dry_run)
        if not dry_run:
            print(
                f"study: {len(missing)} of {len(points)} runs are to do. Type the same command when the job has ended"
            )
        return EXIT_UNFINISHED

    return train


def train_study(plan: Plan, train: Train) -> int:
    """Train what is missing, then write the page. Return the exit code.

    Args:
        plan: of the study.
        train: is called with the tuning runs, and then with those of the chosen values.

    Raises:
        UserError: a run failed, or the page cannot be written.
    """
    tuning = _tuning(plan)
    if tuning and (exit_code := train(plan.base, tuning)):
        return exit_code
    chosen = {contender.name: choose(plan, contender) for contender in plan.contenders}
    if exit_code := train(plan.base, _final(plan, chosen)):
        return exit_code
    _write(plan, chosen)
    return 0


def write_so_far(plan: Plan) -> None:
    """Write the page of what is complete, and print what is missing. Nothing is trained.

    Raises:
        UserError: no method has all its runs, or the page cannot be written.
    """
    chosen = {}
    for contender in plan.contenders:
        if all(is_complete(point) for seeds in plan.tuning(contender) for point in seeds):
            best = choose(plan, contender)
            if all(map(is_complete, plan.final(contender, best))):
                chosen[contender.name] = best
    methods, alone, front = (
        [contender for contender in part if contender.name in chosen] for part in (plan.methods, plan.alone, plan.front)
    )
    others = other_runs(plan)
    if not methods:
        raise UserError(f"no method of {plan.name} has all its runs in {plan.out} yet. {others}".strip())
    if others:
        print(others, end="")
    if missing := [contender.name for contender in plan.contenders if contender.name not in chosen]:
        print(f"{plan.name}: {len(missing)} of {len(plan.contenders)} are not complete: {', '.join(missing)}")
    alone = alone if len(alone) == len(plan.alone) else []
    _write(replace(plan, methods=methods, alone=alone, front=front), chosen)


def _write(plan: Plan, chosen: Mapping[str, int]) -> None:
    results = results_of(plan, chosen)
    page = write_study(results, plan.out)
    Terminal.for_tables().print(summary(results))
    Terminal(soft_wrap=True).print(f"page: {page}")


def choose(plan: Plan, contender: Contender) -> int:
    """Return the point of the grid that is the best on the split of the tuning; of equal ones, the first.

    Raises:
        UserError: no point has the metrics that decide, or a run is damaged.
    """
    tuning = plan.tuning(contender)
    if not tuning:
        return 0
    assert plan.study.tune is not None
    split = plan.study.tune.split
    records = [[metrics_on(read_run(point.experiment.run_dir), split) for point in seeds] for seeds in tuning]
    metrics = [[record["metrics"] for record in seeds] for seeds in records]
    changes = mean_changes(metrics, records[0][0].get("deciding", {}))
    if max(changes) == -math.inf:
        raise UserError(
            f"{contender.name}: no point of the grid has all metrics that decide. Type smaller learning rates, say"
        )
    return changes.index(max(changes))


def _tuning(plan: Plan) -> list[Point]:
    return [point for contender in plan.contenders for seeds in plan.tuning(contender) for point in seeds]


def _final(plan: Plan, chosen: Mapping[str, int]) -> list[Point]:
    return [point for contender in plan.contenders for point in plan.final(contender, chosen[contender.name])]


def results_of(plan: Plan, chosen: Mapping[str, int]) -> Results:
    """Read the complete runs of a study.

    Args:
        plan: of the study.
        chosen: name of a contender -> its point of the grid.

    Returns:
        The results, against the first method where the plan lacks the baseline.
    """

    def runs_of(contender: Contender) -> list[RunFolder]:
        return [read_run(point.experiment.run_dir) for point in plan.final(contender, chosen[contender.name])]

    def reached(contender: Contender) -> Method:
        seeds = [[run] for run in runs_of(contender)]
        return method_of(contender.name, seeds, plan.grid[chosen[contender.name]])

    methods = [reached(contender) for contender in plan.methods]
    alone = None
    if plan.alone:
        seeds = zip(*map(runs_of, plan.alone), strict=True)
        alone = method_of(ALONE, list(seeds), {})
    first = runs_of(plan.methods[0])[0]
    named = {method.name: method for method in methods}.get(plan.study.baseline or "")
    deciding = deciding_of([first])
    counted = measured(deciding, [metrics for method in methods for metrics in method.metrics])
    return Results(
        title=plan.study.title,
        split=first.result.split,
        seeds=plan.study.seeds,
        deciding=counted,
        left_out=[task for task in deciding if task not in counted],
        methods=methods,
        baseline=(alone if plan.study.baseline == SINGLE_TASK else named) or methods[0],
        alone=alone,
        front=[reached(contender) for contender in plan.front],
        grid=plan.study.grid,
    )
