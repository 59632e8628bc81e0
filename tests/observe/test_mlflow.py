"""A run in MLflow's own store of files, read back by its client."""

import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import UserError
from trainer.observe.mlflow import MlflowTracker, metric_name

pytestmark = [pytest.mark.long, pytest.mark.processes]
"""MLflow's import takes seconds, and asks the machine what it is by a process."""


def record(step: int, loss: float) -> dict[str, object]:
    return {"kind": "train", "step": step, "losses": {"a/b": loss, "right": None}, "min_norm": 0.25}


def a_tracker(folder: Path, said: list[str], config: dict[str, Any] | None = None) -> MlflowTracker:
    return MlflowTracker(f"file://{folder}/store", "ours", "digits", folder, config or {"name": "digits"}, said.append)


def found(folder: Path) -> Any:
    """The only run of the only experiment, and the client that has it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"file://{folder}/store")
    experiment = client.get_experiment_by_name("ours")
    (run,) = client.search_runs([experiment.experiment_id])
    return run, client


def test_a_resumed_run_goes_on_in_mlflow(tmp_path: Path) -> None:
    said: list[str] = []
    first = a_tracker(tmp_path, said, {"name": "digits", "train": {"steps": 4, "select": None}, "empty": []})
    first.log(record(1, 0.5))
    first.log({"kind": "gram", "step": 1, "gram": [[1.0]]})
    first.close(None)
    assert found(tmp_path)[0].info.status == "FAILED"
    second = a_tracker(tmp_path, said, {"name": "digits", "train": {"steps": 8}})
    second.log(record(2, 0.25))
    second.close({"steps": 2, "errors": {"a/b": 12.5}})
    second.log(record(3, 0.25))
    run, client = found(tmp_path)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits")
    assert run.data.params == {"name": "digits", "train.steps": "4", "empty": "[]"}
    assert run.data.metrics.keys() == {
        "train/losses/a:252Fb",
        "train/min_norm",
        "summary/steps",
        "summary/errors/a:252Fb",
    }
    history = client.get_metric_history(run.info.run_id, "train/losses/a:252Fb")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.25)]
    assert said == [f"mlflow: run {run.info.run_id} at file://{tmp_path}/store"] * 2


def test_a_failure_is_said_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    said: list[str] = []
    tracker = a_tracker(tmp_path, said)

    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(MlflowClient, "log_batch", gone)
    tracker.log(record(1, 0.5))
    tracker.log(record(2, 0.5))
    tracker.close(None)
    assert len(said) == 2
    assert "the server is gone" in said[1]


def test_what_cannot_be_used_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"track.mlflow: http://127.0.0.1:1 cannot be used"):
        MlflowTracker("http://127.0.0.1:1", "ours", "digits", tmp_path, {"name": "digits"})
    a_tracker(tmp_path, []).close(None)
    id_file = tmp_path / "mlflow_id"
    for wrong, says in (("../../etc\n", "should hold the id"), ("0" * 32 + "\n", "cannot be used")):
        id_file.write_text(wrong)
        with pytest.raises(UserError, match=says):
            a_tracker(tmp_path, [])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"pip install 'paretrain\[mlflow\]'"):
        a_tracker(tmp_path, [])


def test_different_names_remain_different() -> None:
    names = ["a%2Fb", "a:25b", "a+b", "a-b", "train/losses/Größe 1"]
    assert len({metric_name(name) for name in names}) == len(names)
    assert metric_name("train/losses/Größe 1") == "train/losses/Größe 1"
