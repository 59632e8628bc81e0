"""The arguments of `paretrain couple` and `refit`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from trainer.commands.arguments import Subparsers, whole

Run = Callable[[argparse.Namespace], int | None]


def add_theory_commands(commands: Subparsers, on_processes: Callable[[Run], Run]) -> None:
    """Add the commands that say what combining tasks wins.

    Args:
        commands: of the command line.
        on_processes: turns a command into one that starts as many processes as its option --processes says.
    """
    couple = commands.add_parser("couple", help="predict what combining the tasks wins, before training")
    couple.add_argument("folder", type=Path, metavar="DATA|RUN", help="a data folder of a table, or a run's folder")
    couple.add_argument("--out", type=Path, metavar="FILE", help="default: couple.html, in the folder of a run")
    couple.add_argument(
        "--samples", type=whole(30, 5000), default=300, metavar="N", help="train samples to estimate from (default 300)"
    )
    couple.add_argument("--tasks", nargs="+", metavar="NAME", help="default: all tasks")
    couple.add_argument("--step", type=whole(0, 99_999_999), help="a run's checkpoint (default: the last one)")
    couple.set_defaults(run=_couple)

    refit = commands.add_parser("refit", help="keep a run's encoder, and fit all its heads anew in closed form")
    refit.add_argument("run_dir", type=Path, metavar="RUN", help="a run's folder, such as runs/digits")
    refit.add_argument("--out", type=Path, required=True, metavar="NEW_RUN", help="the folder of the new run")
    refit.add_argument("--step", type=whole(0, 99_999_999), help="the checkpoint of this step (default: the last one)")
    refit.add_argument("--processes", type=whole(1), metavar="N", help="processes that read the samples (default: 1)")
    refit.set_defaults(run=on_processes(_refit))


def _couple(options: argparse.Namespace) -> None:
    from trainer.commands.couple import couple_tasks

    couple_tasks(options.folder, options.out, options.samples, options.tasks, options.step)


def _refit(options: argparse.Namespace) -> None:
    from trainer.commands.refit import refit_run

    refit_run(options.run_dir, options.out, options.step, options.processes or 1)
