"""Log a run to MLflow, if the user asks for it."""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.files import replace
from trainer.observe.settings import leaves
from trainer.observe.tracker import CURVES, Guard, Tracker, flatten, saved_id
from trainer.plain import one_line

ID_FILE = "mlflow_id"
MAX_METRICS, MAX_PARAMETERS, MAX_CHARACTERS = 1000, 100, 500
"""Metrics and parameters in one message, and characters of a parameter, that all servers take."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""The step waits for the server: by default for minutes, longer than the other processes wait for this one."""


class MlflowTracker(Tracker):
    """Log to an MLflow server or store. A resumed run continues the run whose id is in `RUN/mlflow_id`.

    Args:
        address: track.mlflow.
        experiment: name of the experiment, which is made if there is none.
        name: of the run.
        run_dir: the run's folder.
        config: the resolved configuration.
        say: called with one-line messages for the user.

    Raises:
        UserError: MLflow is not installed, the server cannot be reached, or it does not know the run.
    """

    def __init__(
        self,
        address: str,
        experiment: str,
        name: str,
        run_dir: Path,
        config: Mapping[str, Any],
        say: Callable[[str], None] = print,
    ) -> None:
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        if address.startswith("file:"):  # MLflow asks for a word of consent, and such an address is one.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise UserError(
                f"track.mlflow is set, but MLflow cannot be imported: {error}\n"
                "Install it with: pip install 'paretrain[mlflow]'\n"
                "or train without it: track.mlflow=null"
            ) from error
        try:
            client = MlflowClient(tracking_uri=address)
            self._run_id = _open_run(client, experiment, name, run_dir / ID_FILE, config)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"track.mlflow: {address} cannot be used: {one_line(str(error))[:300]}\n"
                "Type another address, or train without it: track.mlflow=null"
            ) from error
        self._client = Guard("mlflow", client, say)
        say(f"mlflow: run {self._run_id} at {address}")

    def log(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        if record["kind"] in CURVES:
            self._client.use(lambda client: self._log(client, record))

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker`."""
        if summary is not None:
            last = {"kind": "summary", "step": summary["steps"], **summary}
            self._client.use(lambda client: self._log(client, last))
        status = "FAILED" if summary is None else "FINISHED"
        self._client.end(lambda client: client.set_terminated(self._run_id, status))

    def _log(self, client: Any, record: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        numbers = flatten(record)
        step, now = int(numbers.pop("step")), int(time.time() * 1000)
        metrics = [Metric(metric_name(name), number, now, step) for name, number in numbers.items()]
        for start in range(0, len(metrics), MAX_METRICS):
            client.log_batch(self._run_id, metrics=metrics[start : start + MAX_METRICS])


def metric_name(name: str) -> str:
    """Return a name with the characters that MLflow takes; different names give different ones."""
    return re.sub(r"[^/\w.\- ]", lambda found: f":{ord(found[0]):x}", name)


def _open_run(client: Any, experiment: str, name: str, path: Path, config: Mapping[str, Any]) -> str:
    """Return the id of the run: the one in the file, or that of a new run with the configuration as its parameters."""
    from mlflow.entities import Param

    run_id = saved_id(path, "MLflow")
    if run_id is not None:
        client.set_terminated(run_id, "RUNNING")
        return run_id
    known = client.get_experiment_by_name(experiment)
    run = client.create_run(known.experiment_id if known else client.create_experiment(experiment), run_name=name)
    parameters = [Param(key, str(value)[:MAX_CHARACTERS]) for key, value in _parameters(config)]
    for start in range(0, len(parameters), MAX_PARAMETERS):
        client.log_batch(run.info.run_id, params=parameters[start : start + MAX_PARAMETERS])
    replace(path, f"{run.info.run_id}\n".encode())
    return str(run.info.run_id)


def _parameters(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in leaves(config):
        yield metric_name(key), value
