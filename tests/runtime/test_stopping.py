"""Files and signals become requests; the greater wins; what is granted is forgotten."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from trainer import train
from trainer.config.file import load_config
from trainer.errors import EXIT_INTERRUPTED, StoppedError, UserError, run_command
from trainer.runtime.launcher import LAUNCHER_DIED
from trainer.runtime.stopping import Request, StopRequests, refuse_stopped


@pytest.mark.parametrize(
    ("files", "signals", "expected"),
    [
        ((), (), Request.GO_ON),
        (("save",), (), Request.SAVE),
        (("stop.77",), (), Request.YIELD),
        (("stop.78",), (), Request.GO_ON),
        (("stop",), (), Request.STOP),
        (("stop", "save", "stop.77"), (), Request.STOP),
        ((), (signal.SIGUSR1,), Request.YIELD),
        ((), (signal.SIGTERM,), Request.YIELD),
        ((), (signal.SIGTERM, LAUNCHER_DIED), Request.LEAVE),
        ((), (signal.SIGTERM, signal.SIGINT), Request.STOP),
        (("stop",), (signal.SIGTERM, signal.SIGUSR1), Request.STOP),
        (("save",), (signal.SIGUSR1,), Request.YIELD),
    ],
)
def test_the_greatest_request_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], signals: list[int], expected: Request
) -> None:
    monkeypatch.setenv("PARETRAIN_JOB_ID", "77")
    stop_requests = StopRequests(tmp_path, reads_files=True)
    for name in files:
        (tmp_path / name).touch()
    with stop_requests.handling_signals():
        for number in signals:
            os.kill(os.getpid(), number)
    assert stop_requests.read() == expected


@pytest.mark.parametrize(
    ("files", "max_hours", "expected"),
    [
        ((), 1.0, Request.GO_ON),
        ((), 1e-9, Request.TIME_IS_UP),
        (("save",), 1e-9, Request.TIME_IS_UP),
        (("stop",), 1e-9, Request.STOP),
    ],
)
def test_time_is_up_after_max_hours(tmp_path: Path, files: list[str], max_hours: float, expected: Request) -> None:
    stop_requests = StopRequests(tmp_path, reads_files=True, max_hours=max_hours)
    for name in files:
        (tmp_path / name).touch()
    assert stop_requests.read() is expected


def test_only_one_process_reads_files(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    assert StopRequests(tmp_path, reads_files=False).read() is Request.GO_ON


def test_signals_are_the_process_s_own_again_afterwards(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests(tmp_path, reads_files=True).handling_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_before_the_first_step_a_signal_ends_the_run_at_once_and_later_it_is_noted(tmp_path: Path) -> None:
    stop_requests = StopRequests(tmp_path, reads_files=True)
    with stop_requests.handling_signals():
        words = "stopped by SIGTERM before the first step"
        with pytest.raises(StoppedError, match=words) as caught, stop_requests.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.exit_code == 128 + signal.SIGTERM
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop_requests.read() is Request.YIELD


def test_a_run_that_is_starting_hears_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_data(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it was not heard")

    for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(train, "open_data", open_data)
    experiment = load_config(Path("configs/digits.yaml"), [f"output={tmp_path}", "parallel.processes=1"])
    with pytest.raises(StoppedError):
        train.train(experiment)


def test_ctrl_c_of_any_command_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.delenv("RANK", raising=False)
    assert run_command(interrupted) == EXIT_INTERRUPTED
    assert "stopped by Ctrl-C" in capsys.readouterr().err


def test_a_second_ctrl_c_ends_the_process_and_says_what_is_saved(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_requests = StopRequests(tmp_path, reads_files=True)
    with stop_requests.handling_signals():
        signal.raise_signal(signal.SIGINT)
        assert stop_requests.read() is Request.STOP
        assert "Ctrl-C again ends it at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt, match="no checkpoint was saved"):
            signal.raise_signal(signal.SIGINT)
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "LATEST").write_text("step_00000007")
        with pytest.raises(KeyboardInterrupt, match="the last checkpoint is step_00000007"):
            signal.raise_signal(signal.SIGINT)


def test_what_is_granted_is_forgotten_and_what_came_later_stands(tmp_path: Path) -> None:
    stop_requests = StopRequests(tmp_path, reads_files=True)
    (tmp_path / "save").touch()
    (tmp_path / "stop").touch()  # after the ranks agreed on saving
    stop_requests.fulfilled(Request.SAVE, step=5, started_at_step=0)
    assert stop_requests.read() is Request.STOP
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize("request_", [Request.YIELD, Request.TIME_IS_UP, Request.LEAVE])
def test_only_who_makes_room_comes_back(tmp_path: Path, request_: Request) -> None:
    stop_requests = StopRequests(tmp_path, reads_files=True)
    stop_requests.fulfilled(Request.STOP, step=5, started_at_step=2)
    assert not (tmp_path / "requeue").exists()
    stop_requests.fulfilled(request_, step=5, started_at_step=2)
    assert json.loads((tmp_path / "requeue").read_text()) == {"step": 5, "started_at_step": 2}


def test_a_run_that_was_stopped_while_it_stood_does_not_start(tmp_path: Path) -> None:
    refuse_stopped(tmp_path)
    (tmp_path / "stop").touch()
    with pytest.raises(UserError, match=r"To go on, remove it: rm .*/stop"):
        refuse_stopped(tmp_path)
