"""Save and upload a run's checkpoints, and fetch the uploaded ones where this machine has none."""

import secrets
import sys

import paretrain
from trainer.code_version import code_version
from trainer.config.schema import Experiment
from trainer.plain import printable
from trainer.run_folder import METRICS, RUN, STARTS
from trainer.run_path import CONFIG
from trainer.runtime.checkpoints.folder import CHECKPOINTS
from trainer.runtime.checkpoints.manifest import Writer
from trainer.runtime.checkpoints.saving import Saver
from trainer.runtime.checkpoints.store import Store, Uploader, is_empty
from trainer.runtime.collectives import Runtime
from trainer.runtime.polling import run_while_polling

RECORDS = (CONFIG, METRICS, RUN, STARTS)


def open_saver(experiment: Experiment, runtime: Runtime, run: str | None) -> tuple[Saver, Uploader | None]:
    """Return what saves the run's checkpoints, and on rank 0 what uploads them, if the configuration asks for it.

    Collective.

    Args:
        experiment: the configuration.
        runtime: the processes.
        run: the identity of the run; None: a new one.

    Raises:
        UserError: the place cannot be opened; the same on every rank.
    """
    with runtime.raise_together():
        uploader = _open_uploader(experiment) if runtime.is_main else None
    saver = Saver(
        experiment.run_dir / CHECKPOINTS,
        experiment.checkpoint.keep,
        runtime,
        run=run or runtime.on_main(lambda: secrets.token_hex(16)),
        config=experiment.model_dump(mode="json"),
        written_by=_this_code() if runtime.is_main else None,
        on_published=uploader.offer if uploader else None,
    )
    return saver, uploader


def _this_code() -> Writer:
    found = code_version()
    return Writer(version=paretrain.__version__, commit=found["commit"] if found else None)


def _open_uploader(experiment: Experiment) -> Uploader | None:
    config, run_dir = experiment.checkpoint, experiment.run_dir
    if config.upload is None:
        return None
    records = [run_dir / name for name in RECORDS]
    return Uploader(Store(config.upload, experiment.name), records, config.keep, _say)


def _say(text: str) -> None:
    print(f"paretrain: {printable(text)}", file=sys.stderr, flush=True)


def fetch_if_missing(experiment: Experiment, runtime: Runtime) -> str | None:
    """Fetch the newest uploaded checkpoint where the run has none here. Collective.

    Returns:
        What was fetched, in a sentence for the log; None: nothing.

    Raises:
        UserError: what was uploaded is not a whole checkpoint.
        FaultError: it cannot be fetched.
    """
    url, run_dir = experiment.checkpoint.upload, experiment.run_dir
    if url is None:
        return None

    def fetch() -> str | None:
        if not runtime.is_main or not is_empty(run_dir / CHECKPOINTS):
            return None
        store = Store(url, experiment.name)
        name = store.fetch(run_dir / CHECKPOINTS, run_dir, RECORDS)
        return name and f"{name} was fetched from {store.words}"

    found = run_while_polling(runtime, fetch)
    return runtime.on_main(lambda: found)


def finish_uploads(uploader: Uploader | None, runtime: Runtime) -> None:
    """Wait until the last checkpoint is uploaded. Collective.

    Raises:
        FaultError: it could not be uploaded; the same on every rank.
    """
    run_while_polling(runtime, lambda: uploader.finish() if uploader else None)
