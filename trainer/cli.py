"""The `paretrain` command. Each command imports what it needs when it runs, so that --help answers at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trainer.data.commands import add_data_commands
from trainer.errors import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0, 2 for a mistake that the user can mend, 3 for a lost process."""
    options = _parse(arguments)
    exit_code = 0

    def command() -> None:
        nonlocal exit_code
        exit_code = options.run(options) or 0

    return run_command(command) or exit_code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes the values of one `nargs="*"` in one run only; here --processes may stand between overrides.
    unknown = [word for word in rest if word.startswith("-") or "overrides" not in options]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides += rest
    return options


def _train(options: argparse.Namespace) -> int:
    from trainer.config import load_config

    overrides = _overrides(options)
    experiment = load_config(options.config, overrides)
    if experiment.parallel.processes > 1:
        from launch.local import launch

        return launch(experiment.parallel.processes, [str(options.config), *overrides])
    from trainer.train import train

    train(experiment)
    return 0


def _check(options: argparse.Namespace) -> None:
    from trainer.check import check
    from trainer.config import load_config

    check(load_config(options.config, _overrides(options)))


def _eval(options: argparse.Namespace) -> None:
    from trainer.eval import evaluate_run

    evaluate_run(options.run_dir, options.split, options.step)


def _report(options: argparse.Namespace) -> None:
    from trainer.observe.report import write_report
    from trainer.run_dir import REPORT

    out = options.out or (options.run_dirs[0] if len(options.run_dirs) == 1 else Path()) / REPORT
    write_report(options.run_dirs, out)
    print(f"report: {out}")


def _overrides(options: argparse.Namespace) -> list[str]:
    processes = [] if options.processes is None else [f"parallel.processes={options.processes}"]
    return [*options.overrides, *processes]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paretrain",
        description="Train many tasks on one shared encoder, balanced exactly, on any number of processes.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a run, or go on with it, on this machine")
    _add_config(train)
    train.set_defaults(run=_train)

    check = commands.add_parser("check", help="try everything that a run needs, without training")
    _add_config(check)
    check.set_defaults(run=_check)

    evaluate = commands.add_parser("eval", help="evaluate a run's checkpoint")
    evaluate.add_argument("run_dir", type=Path, metavar="RUN", help="a run's folder, such as runs/digits")
    evaluate.add_argument("--split", default="test", help="split of the run's data (default: test)")
    evaluate.add_argument("--step", type=int, help="the checkpoint of this step (default: the last one)")
    evaluate.set_defaults(run=_eval)

    report = commands.add_parser("report", help="draw one or several runs as one page")
    report.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN", help="runs' folders, such as runs/digits")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: report.html, in the folder of a single run")
    report.set_defaults(run=_report)

    add_data_commands(commands)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, such as configs/digits.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that replace those of the file")
    parser.add_argument("--processes", type=int, metavar="N", help="short for parallel.processes=N")
