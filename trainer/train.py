"""Train one run: build -> fit -> close. What `accelerate launch -m trainer.train CONFIG [a.b=c ...]` runs."""

import sys
from contextlib import closing
from pathlib import Path

from trainer.config import Experiment, load_config
from trainer.data.manifest import Manifest, read_manifest
from trainer.data.shards import verify_shards
from trainer.errors import UserError, run_command
from trainer.loop import fit
from trainer.reporting import observed, say_complete
from trainer.run import build_run
from trainer.run_dir import claim, find_checkpoint
from trainer.runtime.checkpoint import load
from trainer.runtime.setup import Runtime, joined


def train(experiment: Experiment) -> None:
    """Run `experiment` from its last checkpoint, or from its start, to its end. Every rank calls it.

    Raises:
        UserError: something that the user can mend; the same on every rank.
        RankError: the same, where this rank alone knows of it.
    """
    with joined(experiment.parallel) as runtime:
        manifest = open_data(experiment, runtime)
        checkpoint = runtime.on_main(lambda: find_checkpoint(experiment))
        run = build_run(experiment, manifest, runtime, load(checkpoint, runtime) if checkpoint else None)
        if run.step >= experiment.train.steps:
            say_complete(run)
            return
        runtime.on_main(lambda: claim(experiment))
        with closing(run), observed(run, resumed=checkpoint is not None) as observers:
            fit(run, observers)


def open_data(experiment: Experiment, runtime: Runtime) -> Manifest:
    """Read the manifest and hold every shard against it, each rank its share. Collective.

    Raises:
        UserError: the folder, a shard or a task is not what it should be.
    """
    config = experiment.data
    with runtime.together():
        manifest = read_manifest(config.path)
        if config.tasks is not None:
            manifest.select_tasks(config.tasks)
        checksum = config.verify == "checksum"
        verify_shards(config.path, manifest, checksum=checksum, rank=runtime.rank, world_size=runtime.world_size)
    return manifest


def main() -> None:
    """Read the command line."""
    if len(sys.argv) < 2:
        raise UserError("expected a configuration: python -m trainer.train configs/digits.yaml [a.b=c ...]")
    train(load_config(Path(sys.argv[1]), sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(run_command(main))
