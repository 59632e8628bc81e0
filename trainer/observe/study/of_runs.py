"""Runs that exist as a study: those that differ in their seed alone are one method."""

from collections.abc import Sequence

from trainer.observe.read_run import RunFolder
from trainer.observe.settings import differing_settings
from trainer.observe.study.results import Results, deciding_of, measured, method_of

SEED = "seed"


def results_of_runs(runs: Sequence[RunFolder]) -> Results | None:
    """Return the runs as methods with the same seeds each, against the first; None where they are not."""
    differing = differing_settings(runs)
    if SEED not in differing or not all(
        run.summary and run.evaluated_on(run.result.split).get("metrics") for run in runs
    ):
        return None
    seeds = differing.pop(SEED)
    if not all(isinstance(seed, int) for seed in seeds):
        return None
    by_method: dict[str, dict[int, RunFolder]] = {}
    for place, (run, seed) in enumerate(zip(runs, seeds, strict=True)):
        name = ", ".join(f"{key} {values[place]}" for key, values in differing.items()) or "all runs"
        by_method.setdefault(name, {})[seed] = run
    order = list(dict.fromkeys(seeds))
    alike = len({(run.tasks, run.result.split) for run in runs}) == 1
    if not alike or len(by_method) * len(order) != len(runs) or any(len(m) < len(order) for m in by_method.values()):
        return None
    methods = [method_of(name, [[found[seed]] for seed in order], {}) for name, found in by_method.items()]
    deciding = measured(deciding_of(runs), [metrics for method in methods for metrics in method.metrics])
    return Results(
        title="Over seeds",
        split=runs[0].result.split,
        seeds=order,
        deciding=deciding,
        methods=methods,
        baseline=methods[0],
    )
