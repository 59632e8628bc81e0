"""The arguments of `paretrain study`, and which kind of study it is: of training runs, or any function."""

import argparse
from pathlib import Path

from launch.job_arguments import add_job, job_of, job_options_of
from trainer.commands.arguments import Subparsers, whole

STUDIES = Path(__file__).parents[2] / "studies"
"""Folder of the studies of training runs, a YAML file each."""


def add_study_command(commands: Subparsers) -> None:
    """Add `paretrain study` to the commands of the command line."""
    study = commands.add_parser("study", help="compare methods over seeds, or run another study anew; write its page")
    study.add_argument(
        "name",
        metavar="NAME|FILE",
        help="a name or FILE.yaml: methods x seeds of training runs; double-descent: theory against simulation; "
        "scaling: what a step costs with ever more tasks; or your own FILE.py with run(out, quick, processes)",
    )
    study.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="a.b=c",
        help="training runs: values of all configurations, such as data.path=DIR",
    )
    study.add_argument("--out", type=Path, metavar="DIR", help="default: study-NAME in the current folder")
    study.add_argument("--scale", choices=("full", "small"), help="training runs: small takes minutes (default: full)")
    study.add_argument("--parallel", type=whole(1), metavar="N", help="training runs: runs at a time (default: 1)")
    study.add_argument("--check", action="store_true", help="training runs: check them all, and train nothing")
    study.add_argument(
        "--so-far", action="store_true", help="training runs: the page of what is complete; train nothing"
    )
    study.add_argument("--quick", action="store_true", help="other studies: smaller problems, about a minute")
    study.add_argument(
        "--processes",
        type=whole(1),
        metavar="N",
        help="other studies: default as many as cores; scaling times one step at a time",
    )
    slurm = study.add_argument_group("training runs on Slurm", "with --nodes, they are arrays of jobs")
    add_job(slurm, required=False)
    study.set_defaults(run=_study)


def _study(options: argparse.Namespace) -> int:
    from trainer.errors import UserError

    path = _file(options.name)
    of_runs = {"--scale": options.scale, "--parallel": options.parallel, "--check": options.check}
    of_runs |= {"--so-far": options.so_far, "a.b=c": options.overrides, "--nodes": options.nodes}
    of_runs |= dict.fromkeys(job_options_of(options), True)
    of_others = {"--quick": options.quick, "--processes": options.processes}
    for option, given in (of_others if path else of_runs).items():
        if given:
            kind = "other studies" if path else "studies of training runs"
            raise UserError(f"study {options.name}: {option} is for {kind}. See paretrain study --help")
    if path is None:
        from trainer.commands.study import run_study

        run_study(options.name, options.out, options.quick, options.processes, sorted(_named()))
        return 0
    from launch.study.check import check_study, refuse_folder, refuse_unready
    from launch.study.plan import plan_study
    from launch.study.run import here, on_slurm, train_study, write_so_far
    from launch.study.schema import read_study

    scale = options.scale or "full"
    out = options.out or Path(f"study-{path.stem}{'' if scale == 'full' else f'-{scale}'}")
    if (options.nodes is None) != (options.processes_per_node is None):
        raise UserError("--nodes and --processes-per-node go together: both for Slurm, none for this machine")
    if options.nodes is None and (of_job := job_options_of(options)):
        raise UserError(f"{of_job[0]} is for Slurm: add --nodes and --processes-per-node, or leave it out")
    if options.check and options.so_far:
        raise UserError("--check and --so-far: type one of them")
    job = None if options.nodes is None else job_of(options)
    plan = plan_study(path, read_study(path).at(scale), out, [*options.overrides, *(job.overrides if job else ())])
    if options.check:
        check_study(plan)
        return 0
    if options.so_far:
        refuse_folder(out)
        write_so_far(plan)
        return 0
    refuse_unready(plan, in_container=job is not None and job.container is not None)
    if job is None:
        return train_study(plan, here(options.parallel or 1))
    exit_code = train_study(plan, on_slurm(job, dry_run=options.dry_run))
    return 0 if options.dry_run else exit_code


def _file(name: str) -> Path | None:
    """Return the file of a study of training runs; None if it is another kind of study, or none at all."""
    return Path(name) if name.endswith((".yaml", ".yml")) else _named().get(name)


def _named() -> dict[str, Path]:
    return {path.stem: path for path in STUDIES.glob("*.yaml")}
