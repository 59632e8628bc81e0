"""What diagnose makes of the logs of a start. Of real hosts that lost one another: cluster/test_hosts.py."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from launch.diagnose import diagnose
from tests.e2e.conftest import ROOT
from trainer.errors import UserError

LOST = "paretrain: error: rank {} on {} stopped: another process of this run is gone or stuck (Connection closed)\n"


def start(run_dir: Path, stderr: dict[str, list[str]], attempt: int = 0) -> Path:
    """The logs of a start: for each host what its processes have said. Returns their folder."""
    folder = run_dir / "logs" / "12.0" / "trainer.train"
    for number, (host, texts) in enumerate(stderr.items()):
        node = folder / f"node{number}"
        node.mkdir(parents=True, exist_ok=True)
        for local_rank, text in enumerate(texts):
            output = node / "12.0_abc" / f"attempt_{attempt}" / str(local_rank)
            output.mkdir(parents=True)
            (output / "stderr.log").write_text(text)
        (node / "host").write_text(f"{host}\n")
    return folder


def test_a_killed_rank_is_the_cause_and_those_that_lost_it_are_not(tmp_path: Path) -> None:
    folder = start(tmp_path, {"alpha": [LOST.format(0, "alpha"), ""], "beta": [LOST.format(2, "beta"), ""]})
    line = "error: rank 3 (process 77) was ended by SIGKILL on beta; the other processes were stopped\n"
    (folder / "node1" / "launcher.log").write_text(line)
    *_, answer = diagnose(tmp_path).splitlines()
    assert answer == "first cause: rank 3 on beta: was ended by SIGKILL (out of memory, or somebody's hand)"


def test_a_crash_and_an_exception_come_with_their_place(tmp_path: Path) -> None:
    crash = "import ctypes\ndef hurt():\n    ctypes.string_at(0)\nhurt()\n"
    raised = "def reach():\n    raise KeyError('left')\nreach()\n"
    said = [
        subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True, cwd=ROOT
        ).stderr
        for code in (crash, raised)
    ]
    start(tmp_path, {"alpha": [LOST.format(0, "alpha")], "beta": [said[0]], "gamma": [said[1]]})
    found = diagnose(tmp_path)
    assert "rank 2 on gamma: raised KeyError: 'left' at <string>:2 in reach" in found
    assert "first cause: rank 1 on beta: crashed: Segmentation fault at " in found
    assert "ctypes" in found.splitlines()[-1]


def test_a_rank_without_a_word_is_suspected_where_others_lost_it(tmp_path: Path) -> None:
    start(tmp_path, {"alpha": [LOST.format(0, "alpha")], "beta": [""]})
    assert diagnose(tmp_path).splitlines()[-1].startswith("first cause: probably rank 1 on beta: others lost it")


def test_the_last_attempt_counts_and_a_host_that_started_nothing_is_named(tmp_path: Path) -> None:
    start(tmp_path, {"alpha": ["ValueError: of the first attempt\n"]})
    start(tmp_path, {"alpha": ["paretrain: error: the disk is full\n"], "beta": []}, attempt=1)
    found = diagnose(tmp_path)
    assert "beta started no process" in found
    assert found.endswith("first cause: rank 0 on alpha: the disk is full")
    assert "first attempt" not in found


def test_flight_records_tell_who_came_no_further(tmp_path: Path) -> None:
    folder = start(tmp_path, {"alpha": [LOST.format(0, "alpha")], "beta": [LOST.format(1, "beta")]})
    for rank, last in enumerate((12, 11)):
        entries = [
            {
                "collective_seq_id": number,
                "profiling_name": "nccl:all_reduce",
                "state": "scheduled",
                "frames": [{"filename": "loop.py", "line": 90, "name": "train_step"}],
            }
            for number in range(8, last + 1)
        ]
        (folder / f"node{rank}" / f"flight_{rank}").write_bytes(pickle.dumps({"entries": entries}))
    assert diagnose(tmp_path).splitlines()[-1] == (
        "first cause: others waited for rank 1 on beta, which came no further than nccl:all_reduce number 11, "
        "scheduled at loop.py:90 in train_step"
    )


def test_a_flight_record_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    folder = start(tmp_path, {"alpha": [""]})
    (folder / "node0" / "flight_0").write_bytes(pickle.dumps({"entries": [Path("x")]}))
    with pytest.raises(UserError, match="it is not what torch writes"):
        diagnose(tmp_path)


def test_a_run_without_logs_of_a_start_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no logs of a start"):
        diagnose(tmp_path)
