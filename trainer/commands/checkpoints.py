"""The arguments of `paretrain eval`, `predict` and `export`, which read a checkpoint of a run."""

import argparse
from collections.abc import Callable
from pathlib import Path

from trainer.commands.arguments import Subparsers, whole

Run = Callable[[argparse.Namespace], int | None]
RESAMPLES = 1000
BEST = "best"
"""In place of a step, as in trainer/run_folder.py, which --help must not wait for."""


def add_checkpoint_commands(commands: Subparsers, on_processes: Callable[[Run], Run]) -> None:
    """Add the commands that read a checkpoint.

    Args:
        commands: of the parser.
        on_processes: turns a command into one that starts as many processes as its option --processes says.
    """
    evaluate = commands.add_parser("eval", help="print the errors and metrics of a run's checkpoint")
    _add_checkpoint(evaluate)
    _add_split(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print them as JSON")
    evaluate.add_argument(
        "--bootstrap",
        type=whole(2),
        nargs="?",
        const=RESAMPLES,
        metavar="N",
        help=f"add 95 %% intervals from N resamples of the split (default: {RESAMPLES})",
    )
    evaluate.add_argument(
        "--baseline", type=Path, metavar="RUN", help="a run whose summary to compare with: adds the mean change, Δm"
    )
    evaluate.set_defaults(run=on_processes(_eval))

    predict = commands.add_parser("predict", help="write labels and predictions of every sample to a table")
    _add_checkpoint(predict)
    _add_split(predict)
    predict.add_argument("--out", type=Path, required=True, metavar="FILE", help="such as test.parquet, or test.csv")
    predict.set_defaults(run=on_processes(_predict))

    export = commands.add_parser("export", help="write a run's model as one safetensors file, with a model card")
    _add_checkpoint(export)
    export.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="such as model.safetensors; the card becomes model.md"
    )
    export.set_defaults(run=_export)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run, such as runs/digits")
    parser.add_argument("--step", type=_step, metavar="N|best", help="step of the checkpoint (default: the last one)")


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="test", help="split of the run's data (default: test)")
    parser.add_argument("--processes", type=whole(1), metavar="N", help="processes on this machine (default: 1)")


def _eval(options: argparse.Namespace) -> None:
    from trainer.commands.eval import evaluate_run

    evaluate_run(
        options.run_dir,
        options.split,
        options.step,
        options.processes,
        as_json=options.json,
        resamples=options.bootstrap,
        baseline=options.baseline,
    )


def _predict(options: argparse.Namespace) -> None:
    from trainer.commands.predict import predict_run

    predict_run(options.run_dir, options.split, options.step, options.out, options.processes)


def _export(options: argparse.Namespace) -> None:
    from trainer.commands.export import export_run

    export_run(options.run_dir, options.out, options.step)


def _step(text: str) -> int | str:
    if text == BEST:
        return BEST
    try:
        return whole(0, 99_999_999)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or `{BEST}`") from None
