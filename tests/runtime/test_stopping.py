"""Files and signals become requests; the greater wins; what is granted is forgotten."""

import json
import os
import signal
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.runtime.stopping import Request, Wishes, refuse_stopped


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
        ((), (signal.SIGTERM,), Request.STOP),
        ((), (signal.SIGTERM, signal.SIGUSR1), Request.STOP),
        (("save",), (signal.SIGUSR1,), Request.YIELD),
    ],
)
def test_the_greatest_request_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], signals: list[int], expected: Request
) -> None:
    monkeypatch.setenv("PARETRAIN_JOB_ID", "77")
    wishes = Wishes(tmp_path, reads_files=True)
    for name in files:
        (tmp_path / name).touch()
    with wishes.heard():
        for number in signals:
            os.kill(os.getpid(), number)
    assert wishes.read() == expected


def test_only_one_process_reads_files(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    assert Wishes(tmp_path, reads_files=False).read() is Request.GO_ON


def test_signals_are_the_process_s_own_again_afterwards(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Wishes(tmp_path, reads_files=True).heard():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_granted_is_forgotten_and_what_came_later_stands(tmp_path: Path) -> None:
    wishes = Wishes(tmp_path, reads_files=True)
    (tmp_path / "save").touch()
    (tmp_path / "stop").touch()  # after the ranks agreed on saving
    wishes.granted(Request.SAVE, step=5, started_at_step=0)
    assert wishes.read() is Request.STOP
    assert not (tmp_path / "save").exists()


def test_only_who_makes_room_comes_back(tmp_path: Path) -> None:
    wishes = Wishes(tmp_path, reads_files=True)
    wishes.granted(Request.STOP, step=5, started_at_step=2)
    assert not (tmp_path / "requeue").exists()
    wishes.granted(Request.YIELD, step=5, started_at_step=2)
    assert json.loads((tmp_path / "requeue").read_text()) == {"step": 5, "started_at_step": 2}


def test_a_run_that_was_stopped_while_it_stood_does_not_start(tmp_path: Path) -> None:
    refuse_stopped(tmp_path)
    (tmp_path / "stop").touch()
    with pytest.raises(UserError, match=r"To go on, remove it: rm .*/stop"):
        refuse_stopped(tmp_path)
