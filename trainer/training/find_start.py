"""Find where a run starts: at a checkpoint of its own, at one of another run, or anew.

A checkpoint that this configuration may not go on from is refused.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.file import parse_config
from trainer.config.resume import check_request, differences, how_to_change
from trainer.config.schema import Experiment
from trainer.errors import UserError
from trainer.observe.metrics import read_metrics
from trainer.observe.read_run import read_run
from trainer.run_folder import METRICS, SUMMARY, changes_of, checkpoint_of, read_config
from trainer.run_path import CONFIG
from trainer.runtime.checkpoints.folder import CHECKPOINTS
from trainer.runtime.checkpoints.manifest import MANIFEST, read_manifest
from trainer.runtime.checkpoints.reading import Found, Snapshot, find_newest, load
from trainer.runtime.collectives import Runtime
from trainer.training.restore import Checkpoint, read_state


@dataclass(frozen=True)
class StartingPoint:
    """Where a run starts. Without a checkpoint it is a new run with initial parameters.

    Attributes:
        own: the checkpoint of this run to resume from; None: a new run.
        other: for a new run, the checkpoint of the run in train.start_from; None: it starts from no other run.
        tasks: of that run, in the order of its heads; empty where its records are lost, or it has none.
        takes_everything: whether it takes the whole state of `other`, as train.start_with says, or only the weights.
    """

    own: Checkpoint | None = None
    other: Checkpoint | None = None
    tasks: Sequence[str] = ()
    takes_everything: bool = False

    @property
    def resumed(self) -> Checkpoint | None:
        """The checkpoint, of whichever run, whose whole state is restored; None: there is no such checkpoint."""
        return self.own or (self.other if self.takes_everything else None)


ANEW = StartingPoint()


def find_start(experiment: Experiment, runtime: Runtime, allowed: Sequence[str] = ()) -> StartingPoint:
    """Find and open the checkpoint that the run starts from, if there is one. Writes nothing. Collective.

    Args:
        experiment: the configuration to go on with.
        runtime: the processes.
        allowed: keys that may differ from those of the run; see `trainer.config.resume`.

    Raises:
        UserError: the run's folder or its checkpoint belongs to another configuration; there are checkpoints, or
            there were some, and the run cannot go on from any; or train.start_from is no run with a whole checkpoint.
        FaultError: the disk cannot read a checkpoint.
    """
    own, start_from = _find_own(experiment, runtime, allowed), experiment.train.start_from
    if own or start_from is None:
        return StartingPoint(own)
    other = _open_other(start_from, experiment.run_dir, runtime)
    tasks = runtime.on_main(lambda: read_run(start_from).tasks)
    return StartingPoint(None, other, tasks, takes_everything=experiment.train.start_with == "everything")


def _find_own(experiment: Experiment, runtime: Runtime, allowed: Sequence[str]) -> Checkpoint | None:
    check_request(allowed)
    earlier = runtime.on_main(lambda: _refuse_another_config(experiment, allowed))
    found = find_newest(experiment.run_dir / CHECKPOINTS, runtime)
    if found is None:
        runtime.on_main(lambda: _refuse_lost_checkpoints(experiment))
        return None
    _refuse_another_configs_checkpoint(found.snapshot, experiment, [*allowed, *earlier])
    return Checkpoint(found, read_state(found.snapshot))


def _open_other(start_from: Path, run_dir: Path, runtime: Runtime) -> Checkpoint:
    """Open the checkpoint of another run: the one that its train.select has chosen, else its last. Collective."""

    def choose() -> Path:
        if start_from.resolve() == run_dir.resolve():
            raise UserError(f"a new run cannot start from {start_from}, its own folder: type name=ANOTHER_NAME")
        read_config(start_from)  # Refuses what is no run's folder.
        last = checkpoint_of(start_from, None)
        best = read_manifest(last).best
        return last if best is None else checkpoint_of(start_from, best)

    path = runtime.on_main(choose)
    snapshot = load(path, runtime)
    return Checkpoint(Found(snapshot, path, {}), read_state(snapshot))


def _refuse_another_config(experiment: Experiment, allowed: Sequence[str]) -> list[str]:
    """Refuse a run's folder whose configuration gives other results. Return the keys whose change was allowed before.

    Raises:
        UserError: naming each difference.
    """
    run_dir = experiment.run_dir
    if not os.path.lexists(run_dir / CONFIG):
        return []  # A checkpoint has a copy of its own.
    try:
        before = read_config(run_dir)
    except UserError as error:
        raise UserError(
            f"{error}\nPut it back from a copy; or, to train on, remove it, as the checkpoints hold the configuration "
            f"too: rm {run_dir / CONFIG}"
        ) from None
    _refuse_differences(
        before,
        experiment,
        allowed,
        f"the run in {run_dir} was started with another configuration",
        f"To start a new run, type name=ANOTHER_NAME; to replace this one, remove its folder first: rm -r {run_dir}",
    )
    return [change["key"] for change in changes_of(run_dir)]


def _refuse_another_configs_checkpoint(snapshot: Snapshot, experiment: Experiment, allowed: Sequence[str]) -> None:
    """Refuse a checkpoint that was written under a configuration with other results.

    Raises:
        UserError: naming each difference.
    """
    written_under = parse_config(dict(snapshot.config), f"config in {snapshot.path / MANIFEST}")
    _refuse_differences(
        written_under,
        experiment,
        allowed,
        f"checkpoint {snapshot.path} was written under another configuration",
        "To go on from it as it is, type what it was written under; to start a new run, type name=ANOTHER_NAME",
    )


def _refuse_differences(
    before: Experiment, now: Experiment, allowed: Sequence[str], found: str, otherwise: str
) -> None:
    """Refuse a configuration that gives other results than the one before.

    Args:
        before: the configuration before.
        now: the one to go on with.
        allowed: keys that may differ.
        found: begins the message.
        otherwise: ends it: what to do in place of changing the configuration back.
    """
    if changed := differences(before, now, allowed):
        lines = "\n".join(f"  {key}: {values}" for key, values in changed.items())
        raise UserError(f"{found}:\n{lines}\n{how_to_change(changed)}{otherwise}")


def _refuse_lost_checkpoints(experiment: Experiment) -> None:
    """Refuse to start anew where the run's records say that there were checkpoints.

    Raises:
        UserError: they do.
    """
    run_dir = experiment.run_dir
    if not (run_dir / METRICS).exists():
        return
    reached = max((record["step"] for record in read_metrics(run_dir / METRICS)), default=0)
    every_steps = (read_config(run_dir) if (run_dir / CONFIG).exists() else experiment).checkpoint.every_steps
    # At its second checkpoint a run waits until the first one is published.
    if (run_dir / SUMMARY).exists() or reached > 2 * every_steps:
        raise UserError(
            f"the run in {run_dir} has reached step {reached} and saved checkpoints, but {run_dir / CHECKPOINTS} has "
            f"none. Put them back; or type name=ANOTHER_NAME to start a new run; or remove this one: rm -r {run_dir}"
        )
