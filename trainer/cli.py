"""The `paretrain` command.

Each command imports what it needs when it runs: --help answers at once, and a missing package is reported in one line.

The file is long because the arguments of the commands for one run are declared beside what they call; those of data,
checkpoints and theory have files of their own in commands/.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from launch.job_arguments import add_job, job_of
from launch.study.command import add_study_command
from trainer.commands.arguments import Subparsers, whole
from trainer.commands.checkpoints import add_checkpoint_commands
from trainer.commands.data import add_data_commands
from trainer.commands.theory import add_theory_commands
from trainer.config.metrics import METRICS
from trainer.errors import UserError, run_command
from trainer.plain import one_line

Command = Callable[[argparse.Namespace], int | None]

MAX_GIB = 2**20
"""Far beyond any GPU."""
TRAIN_EXTRA = {
    *("accelerate", "cv2", "einops", "matplotlib", "pydantic", "rich", "safetensors", "simplejpeg", "sklearn"),
    *("psutil", "webdataset", "yaml"),
}
"""Modules that the extra `train` installs."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors show what was typed without its control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Return its exit code; launch/README.md lists them."""
    options = _parse(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int | None:
    try:
        exit_code: int | None = options.run(options)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in TRAIN_EXTRA:
            raise
        raise UserError(
            f"the package {module} is missing: this command needs the extra. Type: pip install 'paretrain[train]'"
        ) from None
    return exit_code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser.parse_known_args(words)
    options.words = words
    # argparse accepts the values of a `nargs="*"` only in one piece; here an option may stand between overrides.
    unknown = [word for word in rest if word.startswith("-") or "overrides" not in options]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="paretrain",
        description="Train many tasks on one shared encoder, with exact Pareto weights, on any number of processes.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _add_train(commands)
    _add_check(commands)
    add_checkpoint_commands(commands, _on_processes)
    _add_report(commands)
    _add_compare(commands)
    _add_sweep(commands)
    _add_submit(commands)
    _add_conflicts(commands)
    _add_rules(commands)
    add_data_commands(commands)
    add_study_command(commands)
    add_theory_commands(commands, _on_processes)
    return parser


def _add_train(commands: Subparsers) -> None:
    parser = commands.add_parser("train", help="train a run on this machine, or resume it from its last checkpoint")
    _add_config(parser)
    parser.add_argument(
        "--max-restarts",
        type=whole(0),
        default=0,
        metavar="N",
        help="restart up to N times from the last checkpoint after a fault (default: 0)",
    )
    parser.add_argument(
        "--from",
        dest="start_from",
        metavar="RUN",
        help="start a new run from the weights of this one, such as runs/digits; short for train.start_from=RUN",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="go on with another value of this key, such as optimizer.learning_rate; docs/resume.md lists them",
    )
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from trainer.config.file import load_config
    from trainer.config.machine import refuse_flood
    from trainer.runtime.launcher import end_with_launcher, tell_launcher

    end_with_launcher()
    start_from = [] if options.start_from is None else [f"train.start_from={json.dumps(options.start_from)}"]
    overrides = [*_overrides(options), *start_from]
    experiment = load_config(options.config, overrides)
    launched = "RANK" in os.environ  # By `accelerate launch` or torchrun, say: this process is one rank of the run.
    if launched and options.max_restarts:
        raise UserError(
            f"--max-restarts {options.max_restarts}: this process is rank {os.environ['RANK']} of a run that another "
            "launcher started, and only that one can start it again. Leave the option out"
        )
    if not launched:
        refuse_flood(experiment.parallel, experiment.data.workers)
        if experiment.parallel.processes > 1 or options.max_restarts:
            from launch.local import launch

            arguments = [str(options.config), *overrides, *(f"--allow-change={key}" for key in options.allow_change)]
            return launch(experiment.parallel.processes, arguments, experiment.run_dir, options.max_restarts)
    from trainer.train import train

    exit_code = train(experiment, options.allow_change)
    tell_launcher(exit_code)
    return exit_code


def _add_check(commands: Subparsers) -> None:
    parser = commands.add_parser("check", help="try everything that a run needs, without training")
    _add_config(parser)
    parser.add_argument("--strategy", metavar="NAME", help="short for parallel.strategy=NAME")
    parser.add_argument(
        "--gpu-memory", type=_gib, metavar="GiB", help="check that each process fits a GPU of this size, such as 80GiB"
    )
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> None:
    from trainer.commands.check import check
    from trainer.config.file import load_config

    strategy = [] if options.strategy is None else [f"parallel.strategy={options.strategy}"]
    check(load_config(options.config, [*_overrides(options), *strategy]), options.gpu_memory)


def _on_processes(run: Command) -> Command:
    """Return a command that starts itself in as many processes as --processes says, and in each of them runs `run`."""

    def command(options: argparse.Namespace) -> int | None:
        from trainer.config.machine import refuse_flood
        from trainer.config.sections.parallel import ParallelConfig
        from trainer.runtime.launcher import end_with_launcher

        end_with_launcher()
        processes = options.processes or 1
        if "RANK" in os.environ or processes == 1:
            return run(options)
        from launch.local import launch_command

        refuse_flood(ParallelConfig(processes=processes), workers=0)
        return launch_command(processes, options.words)

    return command


def _add_report(commands: Subparsers) -> None:
    parser = commands.add_parser("report", help="write one HTML page about one or several runs")
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN", help="folders of runs, such as runs/digits")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html, in the folder of a single run")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    from trainer.observe.report.frame import refuse_no_page
    from trainer.observe.report.page import write_report
    from trainer.plain import printable
    from trainer.run_folder import REPORT

    out = options.out or (options.run_dirs[0] if len(options.run_dirs) == 1 else Path()) / REPORT
    refuse_no_page(out)
    write_report(options.run_dirs, out)
    print(printable(f"report: {out}"))


def _add_compare(commands: Subparsers) -> None:
    parser = commands.add_parser("compare", help="print the errors and speed of several runs side by side")
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN", help="folders of runs, such as runs/digits")
    parser.add_argument("--split", help="split whose errors to compare (default: the one that each run stands for)")
    parser.add_argument("--metric", choices=METRICS, metavar="NAME", help="show this metric, such as auroc")
    parser.add_argument(
        "--baseline",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs to compare with, such as one of each task alone: adds the mean change, Δm, and the mean rank",
    )
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    from trainer.observe.compare import print_comparison
    from trainer.observe.read_run import read_runs

    runs, baseline = map(read_runs, (options.run_dirs, options.baseline))
    print_comparison(runs, options.split, baseline, options.metric)


def _add_conflicts(commands: Subparsers) -> None:
    parser = commands.add_parser("conflicts", help="measure whether the tasks conflict beyond noise, and where")
    _add_run(parser)
    parser.add_argument(
        "--batches", type=whole(6, 999), default=9, metavar="K", help="batches to measure, a multiple of 3 (default: 9)"
    )
    parser.add_argument(
        "--steps", type=whole(0), default=0, metavar="N", help="train so many steps, then measure again (default: 0)"
    )
    parser.add_argument("--out", type=Path, default=Path("conflicts.html"), metavar="FILE", help="the page")
    parser.set_defaults(run=_conflicts)


def _conflicts(options: argparse.Namespace) -> None:
    from trainer.commands.conflicts import find_conflicts
    from trainer.config.file import load_config

    find_conflicts(load_config(options.config, options.overrides), options.out, options.batches, options.steps)


def _add_rules(commands: Subparsers) -> None:
    parser = commands.add_parser("rules", help="print the rules that weigh the tasks, and what each needs and costs")
    parser.add_argument("--tasks", type=whole(1), default=40, metavar="T", help="measure for this many (default: 40)")
    parser.set_defaults(run=_rules)


def _rules(options: argparse.Namespace) -> None:
    from trainer.commands.rules import print_rules

    print_rules(options.tasks)


def _add_sweep(commands: Subparsers) -> None:
    parser = commands.add_parser("sweep", help="train every combination of some values on this machine")
    _add_config(parser)
    _add_grid(parser, required=True)
    parser.add_argument("--parallel", type=whole(1), default=1, metavar="N", help="runs at a time (default: 1)")
    parser.set_defaults(run=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from launch.grid import points
    from launch.sweep import sweep

    return sweep(options.config, points(options.config, _overrides(options), options.grid), options.parallel)


def _add_submit(commands: Subparsers) -> None:
    parser = commands.add_parser("submit", help="train on a Slurm cluster; with --grid, an array of jobs")
    _add_run(parser)
    _add_grid(parser, required=False)
    parser.add_argument("--parallel", type=whole(1), metavar="N", help="for an array: runs at a time (default: all)")
    add_job(parser, required=True)
    parser.set_defaults(run=_submit)


def _submit(options: argparse.Namespace) -> None:
    from launch.grid import points
    from launch.submit import submit

    job = job_of(options)
    runs = points(options.config, [*options.overrides, *job.overrides], options.grid)
    submit(options.config, runs, job, dry_run=options.dry_run)


def _overrides(options: argparse.Namespace) -> list[str]:
    processes = [] if options.processes is None else [f"parallel.processes={options.processes}"]
    return [*options.overrides, *processes]


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        # Of the installed package: paretrain.__version__ is the same, but to import it would import torch.
        try:
            print(f"paretrain {metadata.version('paretrain')}")
        except metadata.PackageNotFoundError:
            parser.error("paretrain is not installed here. Type: pip install -e '.[train]'")
        parser.exit()


def _gib(text: str) -> float:
    try:
        number = float(text.removesuffix("GiB"))
    except ValueError:
        number = 0
    if not 0 < number <= MAX_GIB:
        raise argparse.ArgumentTypeError(f"expected a number of GiB, such as 80GiB, found {text[:40]!r}")
    return number


def _add_config(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--processes", type=whole(1), metavar="N", help="short for parallel.processes=N")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, such as configs/digits.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # Else argparse calls it required.
        metavar="a.b=c",
        help="values that replace those of the file, such as train.steps=100",
    )


def _add_grid(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        required=required,
        metavar="a.b=c,d,...",
        help="values to try; several --grid options give every combination",
    )
