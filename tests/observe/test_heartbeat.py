"""heartbeat.json and heartbeat.prom: what monitors read of a run."""

import json
import re
from pathlib import Path

import pytest

from trainer.errors import UnfinishedError, UserError
from trainer.observe.heartbeat import INTERVAL_SECONDS, Heartbeat, Saved, State

SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)*)\} ([-+.\deE]+)')
"""A line of Prometheus's text format, as its documentation defines it."""


def read(folder: Path) -> dict:
    return json.loads((folder / "heartbeat.json").read_text())


def samples(folder: Path) -> dict[tuple[str, str], float]:
    """Every sample of the Prometheus file; fails where a line is not of its format."""
    found = {}
    for line in (folder / "heartbeat.prom").read_text().splitlines():
        if not line.startswith(("# HELP ", "# TYPE ")):
            match = SAMPLE.fullmatch(line)
            assert match, line
            found[match[1], match[2]] = float(match[3])
    return found


def test_both_files_tell_step_speed_losses_checkpoint_and_state(tmp_path: Path) -> None:
    name, task = 'runs "x\\y"', "left\nright"
    heart = Heartbeat(tmp_path, name, 300, 20, lambda: Saved(100, 1e9), clock=lambda: 1.7e9)
    assert read(tmp_path)["state"] == "starting"
    losses = {task: 0.5, "other": 1.5, "unknown": None}
    heart.observe({"kind": "train", "step": 110, "losses": losses, "samples_per_second": 1234.5})
    heart.beat(120, State.TRAINING)
    found = read(tmp_path)
    assert found["time"] == "2023-11-14T22:13:20.000Z"
    assert found["checkpoint_time"] == "2001-09-09T01:46:40.000Z"
    expected = {"schema": 1, "state": "training", "step": 120, "steps": 300, "mean_loss": 1.0, "run": name}
    assert found | expected | {"samples_per_second": 1234.5, "checkpoint_step": 100} == found
    run = r'run="runs \"x\\y\""'
    shown = samples(tmp_path)
    assert shown["paretrain_step", run] == 120
    assert shown["paretrain_checkpoint_timestamp_seconds", run] == 1e9
    assert shown["paretrain_heartbeat_timestamp_seconds", run] == 1.7e9
    assert shown["paretrain_task_loss", run + r',task="left\nright"'] == 0.5
    states = {labels: value for (metric, labels), value in shown.items() if metric == "paretrain_state"}
    assert len(states) == len(State)
    assert sum(states.values()) == states[f'{run},state="training"'] == 1


def test_it_is_written_when_the_state_changes_or_some_seconds_have_passed(tmp_path: Path) -> None:
    now = 0.0
    heart = Heartbeat(tmp_path, "run", 9, 0, lambda: None, clock=lambda: now)
    heart.beat(1, State.TRAINING)
    heart.beat(2, State.TRAINING)
    assert read(tmp_path)["step"] == 1
    now += INTERVAL_SECONDS
    heart.beat(3, State.TRAINING)
    assert read(tmp_path)["step"] == 3
    assert read(tmp_path)["checkpoint_step"] is None
    assert "checkpoint" not in (tmp_path / "heartbeat.prom").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heartbeat.json", "heartbeat.prom"]


@pytest.mark.parametrize(
    ("error", "state"), [(UserError("bad data"), "failed"), (UnfinishedError("asked to stop"), "stopped")]
)
def test_an_error_leaves_how_the_run_has_ended(tmp_path: Path, error: Exception, state: str) -> None:
    heart = Heartbeat(tmp_path, "run", 9, 0, lambda: None)
    heart.beat(4, State.TRAINING)
    with pytest.raises(type(error)), heart:
        raise error
    assert (read(tmp_path)["state"], read(tmp_path)["step"]) == (state, 4)
