"""Refuse a study whose runs could not be trained and compared, before the first of them is trained."""

import os
from collections.abc import Sequence
from pathlib import Path

from launch.before_submit import check_runs
from launch.study.plan import RUNS, Plan
from launch.sweep import is_complete
from trainer.config.machine import try_to_write
from trainer.config.resume import differences
from trainer.config.schema import Experiment
from trainer.data.format.address import is_url
from trainer.data.format.manifest import MANIFEST_NAME, read_manifest
from trainer.errors import UserError
from trainer.observe.metrics import TEST
from trainer.observe.read_run import read_run
from trainer.observe.study.page import NUMBERS, PAGE, TABLE
from trainer.observe.study.results import metrics_on
from trainer.run_folder import read_config
from trainer.run_path import CONFIG
from trainer.terminal import Terminal
from trainer.training.selection import eval_split_of


def check_study(plan: Plan) -> None:
    """Refuse a study that could not be trained, and print how many runs it has.

    Raises:
        UserError: see `refuse_unready`.
    """
    refuse_unready(plan)
    runs = [point for contender in plan.contenders for seeds in plan.tuning(contender) for point in seeds]
    runs += [point for contender in plan.contenders for point in plan.final(contender, 0)]
    different = list({point.overrides: point for point in runs}.values())
    done = sum(map(is_complete, different))
    counts = {"methods": plan.methods, "tasks alone": plan.alone, "fixed weights": plan.front}
    what = ", ".join(f"{len(found)} {name}" for name, found in counts.items() if found)
    Terminal(soft_wrap=True).print(
        f"{plan.name}: {what}; points of the grid: {len(plan.grid)}, seeds: {len(plan.study.seeds)}; about "
        f"{len(different):,} runs, {done:,} of them complete; ready to train into {plan.out}"
    )


def refuse_unready(plan: Plan, *, in_container: bool = False) -> None:
    """Refuse a study whose runs could not all be trained and compared.

    Args:
        plan: of the study.
        in_container: its runs see other folders and packages than this process, so whether they can start is left to
            them.

    Raises:
        UserError: its folder cannot be written, or holds other runs in the place of its own; a run could not start, or
            will not be evaluated on the split that tuning chooses on.
    """
    refuse_folder(plan.out)
    _refuse_other_runs(plan)
    if in_container:
        return
    # The seed changes nothing of what can be wrong.
    of_one_seed = [next(iter(runs.values())) for contender in plan.contenders for runs in contender.runs]
    missing = [point.experiment for point in of_one_seed if not is_complete(point)]
    check_runs(missing, so="the study is not ready")
    if plan.study.tune and len(plan.grid) > 1:
        _refuse_other_split(missing, plan.study.tune.split)


def refuse_folder(out: Path) -> None:
    """Refuse a study's folder that cannot be written, or holds a page of somebody else.

    Raises:
        UserError: naming what is in the way.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"--out {out}: it is a file. Expected the folder of a study, which may be new")
    try_to_write(out / RUNS)
    page, table, numbers = out / PAGE, out / TABLE, out / NUMBERS
    for path in (page, table, numbers):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be written: it exists and is not a regular file")
    if foreign := [path for path in (page, table) if path.exists() and not numbers.exists()]:
        raise UserError(
            f"{foreign[0]} is not that of a study, which would have {NUMBERS} beside it. Move it, or type another --out"
        )


def _refuse_other_runs(plan: Plan) -> None:
    """Refuse folders whose runs are not those of the study, since they cannot go on as such, and damaged runs."""
    if found := other_runs(plan):
        raise UserError(
            f"{found}Change the study back; or train into another folder, with --out; or remove what is to be trained "
            "anew, such as that run"
        )


def other_runs(plan: Plan) -> str:
    """Return what to say of runs that have other settings than the study asks for now; nothing where there are none.

    Raises:
        UserError: a run is damaged.
    """
    points = [point for contender in plan.contenders for runs in contender.runs for point in runs.values()]
    others = [(point.experiment, changes) for point in points if (changes := _changes(point.experiment))]
    if not others:
        return ""
    (experiment, changes), count = others[0], len(others)
    return (
        f"{count} {'run has' if count == 1 else 'runs have'} other settings than the study asks for now, such as "
        f"{experiment.run_dir}:\n" + "".join(f"  {key}: {values}\n" for key, values in changes.items())
    )


def _changes(experiment: Experiment) -> dict[str, str]:
    """Return `old -> new` for what would have to be another run; nothing where there is none yet."""
    run_dir = experiment.run_dir
    if os.path.lexists(run_dir) and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file, and a run of the study is trained there: move it")
    if not os.path.lexists(run_dir / CONFIG):
        return {}
    try:
        before = read_config(run_dir)
    except UserError as error:
        raise UserError(f"{error}\nPut it back from a copy; or, to train the run anew: rm -r {run_dir}") from None
    if changed := differences(before, experiment) or _other_data(before, experiment):
        return changed
    run = read_run(run_dir)
    if run.summary is None:
        return {}
    metrics_on(run, run.result.split)  # The page needs them.
    if run.summary["steps"] > experiment.train.steps:
        return {"train.steps": f"{run.summary['steps']} -> {experiment.train.steps}"}
    return {}


def _other_data(before: Experiment, now: Experiment) -> dict[str, str]:
    """Return the folders of other data than the run's. Data may move: what is not there cannot be compared."""
    found = {}
    for name, source in now.data.folders.items():
        paths = before.data.folders[name].path, source.path
        if paths[0] == paths[1] or not all(Path(path, MANIFEST_NAME).is_file() for path in paths):
            continue
        manifests = [read_manifest(Path(path)) for path in paths]
        prints = [{split: manifest.fingerprint(split) for split in manifest.splits} for manifest in manifests]
        if prints[0] != prints[1]:
            key = f"data.sources.{name}.path" if name else "data.path"
            found[key] = f"{paths[0]} -> {paths[1]}, which are not the same data"
    return found


def _refuse_other_split(experiments: Sequence[Experiment], split: str) -> None:
    """Refuse runs that are not evaluated on the split of the tuning. Data behind an address are left to the runs."""
    for experiment in experiments:
        paths = [source.path for source in experiment.data.folders.values()]
        if any(map(is_url, paths)):
            continue
        manifests = [read_manifest(Path(path)) for path in paths]
        found = eval_split_of(experiment.train.eval_split, manifests)
        if split not in (found, TEST):
            splits = dict.fromkeys(name for manifest in manifests for name in manifest.splits)
            raise UserError(
                f"tune.split: {split}: the runs are evaluated on {found}, and their data have the splits "
                f"{', '.join(splits)}. Type train.eval_split={split} where the data have it; else give them one, with "
                "--val of their converter, or leave out the section `tune`"
            )
