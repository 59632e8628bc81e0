"""Train one run: prepare, build, restore, fit, finish.

This is what `accelerate launch -m trainer.train CONFIG [a.b=c ...] [--allow-change=KEY ...]` runs.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

from trainer.config.file import load_config
from trainer.config.schema import Experiment
from trainer.errors import EXIT_UNFINISHED, UserError, run_command
from trainer.run_folder import claimed
from trainer.runtime.agreement import facts_of
from trainer.runtime.collectives import Runtime
from trainer.runtime.distributed import joined
from trainer.runtime.launcher import end_with_launcher, tell_launcher
from trainer.runtime.shared_folder import check_shared
from trainer.runtime.stopping import StopRequests, refuse_stopped
from trainer.training.build_run import build_run
from trainer.training.final_test import needs_test, run_final_test
from trainer.training.find_start import StartingPoint, find_start
from trainer.training.loop import fit
from trainer.training.open_observers import open_observers
from trainer.training.prepare_data import open_data
from trainer.training.run import Run, restore_run
from trainer.training.summary import HURRIED, finish, say_complete
from trainer.training.uploads import fetch_if_missing, finish_uploads

ALLOW_CHANGE = "--allow-change="


def train(experiment: Experiment, allowed: Sequence[str] = ()) -> int:
    """Train `experiment` from its last checkpoint, or from its start, to its end. Every rank calls it.

    Args:
        experiment: the configuration.
        allowed: keys that may differ from those that the run was started with.

    Returns:
        The exit code: 0 if the run is complete, EXIT_UNFINISHED if it was saved before its last step.

    Raises:
        UserError: a mistake in what the user gave; the same on every rank.
        FaultError: a fault of the machine; the same on every rank.
        RankError: a fault of the machine that only this rank knows of.
    """
    end_with_launcher()
    facts = facts_of(experiment)
    run_dir = experiment.run_dir
    # The handlers of signals outlive the process group: when one process is lost, a launcher signals all others, which
    # must still report which one it was.
    with ExitStack() as handlers, joined(experiment.parallel, run_dir, facts) as runtime:
        stop_requests = StopRequests(run_dir, reads_files=runtime.is_main, max_hours=experiment.train.max_hours)
        handlers.enter_context(stop_requests.handling_signals())
        with stop_requests.at_once():
            run, start, notes = _prepare(experiment, runtime, allowed)
            if run.is_complete and not needs_test(run):
                say_complete(run)
                return 0
            runtime.barrier()  # All ranks are ready: from here on, a signal to one of them is a request to all.
        is_over = _fit_and_finish(run, start, notes, stop_requests)
        # A launcher kills all processes as soon as one exits with a code other than 0: no rank exits before the others
        # are done.
        runtime.set_phase("the end", patient=True)
        runtime.barrier()
    return 0 if is_over else EXIT_UNFINISHED


def _prepare(
    experiment: Experiment, runtime: Runtime, allowed: Sequence[str]
) -> tuple[Run, StartingPoint, Sequence[str]]:
    """Open the data, find where the run starts, build it, and restore it there. Collective.

    Returns:
        The run, where it starts, and notes for its log.
    """
    runtime.on_main(lambda: refuse_stopped(experiment.run_dir))
    data = open_data(experiment.data, runtime)
    check_shared(experiment.run_dir, runtime)
    fetched = fetch_if_missing(experiment, runtime)
    start = find_start(experiment, runtime, allowed)
    run = build_run(experiment, data, runtime, start)
    if start.resumed:
        restore_run(run, start.resumed)
    notes = []
    if start.other:
        what = "everything" if start.takes_everything else "its weights"
        notes.append(f"starts from {start.other.snapshot.path}, with {what}")
        run.selection = None  # The best checkpoint of the other run is not one of this.
        if run.is_complete:
            raise UserError(
                f"train.start_with=everything begins at step {run.step:,}, where train.steps ends: raise train.steps"
            )
    if fetched:
        notes.append(fetched)
    return run, start, notes


def _fit_and_finish(run: Run, start: StartingPoint, notes: Sequence[str], stop_requests: StopRequests) -> bool:
    """Claim the run's folder, train, and finish what follows the last step. Collective.

    Returns:
        Whether the run is over: complete, and evaluated on its test split.
    """
    runtime, found = run.runtime, start.own.found if start.own else None
    encoder_start = run.description.encoder_start
    encoder_weights = asdict(encoder_start) if encoder_start else None
    with (
        closing(run),
        claimed(run.experiment, found, runtime, encoder_weights) as notes_of_folder,
        open_observers(run, start.own, notes_of_folder) as observers,
    ):
        if start.other and start.takes_everything:  # From here on it has a checkpoint of its own.
            run.save()
            run.saver.finish()
        for note in notes:
            observers.note(run.step, note)
        request = fit(run, observers, stop_requests)
        is_over = run.is_complete and (request not in HURRIED or not needs_test(run))
        if is_over and needs_test(run):
            run_final_test(run, observers)
        finish(run, observers, request)
        runtime.set_phase("the upload of the last checkpoint", patient=True)
        finish_uploads(run.uploader, runtime)
    return is_over


def main() -> int:
    """Train the configuration on the command line."""
    if len(sys.argv) < 2:
        raise UserError("expected a configuration: python -m trainer.train configs/digits.yaml [a.b=c ...]")
    allowed = [word.removeprefix(ALLOW_CHANGE) for word in sys.argv[2:] if word.startswith(ALLOW_CHANGE)]
    overrides = [word for word in sys.argv[2:] if not word.startswith(ALLOW_CHANGE)]
    exit_code = train(load_config(Path(sys.argv[1]), overrides), allowed)
    tell_launcher(exit_code)
    return exit_code


if __name__ == "__main__":
    sys.exit(run_command(main))
