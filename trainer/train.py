"""Train one run: build -> fit -> close. What `accelerate launch -m trainer.train CONFIG [a.b=c ...]` runs."""

import sys
from contextlib import ExitStack, closing
from pathlib import Path

from trainer.config.file import load_config
from trainer.config.schema import Experiment
from trainer.errors import EXIT_UNFINISHED, UserError, run_command
from trainer.run_folder import claimed, find_start
from trainer.runtime.agreement import facts_of
from trainer.runtime.distributed import joined
from trainer.runtime.launcher import end_with_launcher, tell_launcher
from trainer.runtime.shared_folder import check_shared
from trainer.runtime.stopping import StopRequests, refuse_stopped
from trainer.training.loop import fit
from trainer.training.prepare_data import open_data
from trainer.training.run import build_run
from trainer.training.summary import observed, say_complete


def train(experiment: Experiment) -> int:
    """Run `experiment` from its last checkpoint, or from its start, to its end. Every rank calls it.

    Returns:
        The exit code: 0 if the run is complete, EXIT_UNFINISHED if it was saved before its last step.

    Raises:
        UserError: a mistake of the user's; the same on every rank.
        FaultError: a fault of the machine; the same on every rank.
        RankError: the same, where this rank alone knows of it.
    """
    end_with_launcher()
    # Signals are noted until the processes have parted: a launcher sends one to all when one is lost, and the others
    # are to say which.
    facts = facts_of(experiment)
    with ExitStack() as last, joined(experiment.parallel, experiment.run_dir, facts) as runtime:
        stop_requests = StopRequests(
            experiment.run_dir, reads_files=runtime.is_main, max_hours=experiment.train.max_hours
        )
        last.enter_context(stop_requests.handling_signals())
        with ExitStack() as stack:
            with stop_requests.at_once():
                runtime.on_main(lambda: refuse_stopped(experiment.run_dir))
                data = open_data(experiment, runtime)
                check_shared(experiment.run_dir, runtime)
                found = find_start(experiment, runtime)
                run = build_run(experiment, data, runtime, found)
                if run.step >= experiment.train.steps:
                    say_complete(run)
                    return 0
                runtime.barrier()  # All have come so far: from here on, a signal to one of them is for all.
            stack.enter_context(closing(run))
            notes = runtime.on_main(lambda: stack.enter_context(claimed(experiment, found)))
            fit(run, stack.enter_context(observed(run, resumed=found is not None, notes=notes)), stop_requests)
        # A launcher ends all processes as soon as one ends with another code than 0: none does before all are done.
        runtime.set_phase("the end", patient=True)
        runtime.barrier()
    return 0 if run.step >= experiment.train.steps else EXIT_UNFINISHED


def main() -> int:
    """Read the command line."""
    if len(sys.argv) < 2:
        raise UserError("expected a configuration: python -m trainer.train configs/digits.yaml [a.b=c ...]")
    exit_code = train(load_config(Path(sys.argv[1]), sys.argv[2:]))
    tell_launcher(exit_code)
    return exit_code


if __name__ == "__main__":
    sys.exit(run_command(main))
