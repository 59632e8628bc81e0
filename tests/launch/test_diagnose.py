"""What diagnose makes of the logs of a start. Of real hosts that lost one another: cluster/test_hosts.py."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from launch.diagnose.diagnosis import diagnose
from tests.support.command import ROOT
from tests.support.fault_records import fault_record
from trainer.errors import UserError
from trainer.runtime.faults.records import ON_STDERR, FaultRecord, LostPeer, keep_earlier, write_record

STARTS = ("2026-01-01T00:59:59.999999", "2026-01-01T01:00:00.000001")
LOST = "paretrain: error: rank {} on {} stopped: another process of this run is gone or stuck (Connection closed)\n"


def start(run_dir: Path, stderr: dict[str, list[str]], restart: int = 0) -> Path:
    """The logs of a start: for each host what its processes have said. Returns their folder."""
    folder = run_dir / "logs" / "12.0" / "trainer.train"
    for number, (host, texts) in enumerate(stderr.items()):
        node = folder / f"node{number}" / STARTS[restart]
        node.mkdir(parents=True)
        for local_rank, text in enumerate(texts):
            output = node / "12.0_abc" / "attempt_0" / str(local_rank)
            output.mkdir(parents=True)
            (output / "stderr.log").write_text(text)
        (node / "host").write_text(f"{host}\n")
    return folder


def test_a_killed_rank_is_the_cause_and_those_that_lost_it_are_not(tmp_path: Path) -> None:
    folder = start(tmp_path, {"alpha": [LOST.format(0, "alpha"), ""], "beta": [LOST.format(2, "beta"), ""]})
    left(tmp_path, fault_record("lost_peer"), fault_record("lost_peer", rank=2, host="beta"))
    line = "error: rank 3 (process 77) was ended by SIGKILL on beta; the other processes were stopped\n"
    (folder / "node1" / STARTS[0] / "launcher.log").write_text(line)
    *_, answer = diagnose(tmp_path).splitlines()
    assert answer.startswith("first cause: rank 3 on beta: was ended by SIGKILL (")


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
    left(tmp_path, fault_record("lost_peer"))
    found = diagnose(tmp_path)
    assert "rank 2 on gamma: raised KeyError: 'left' at <string>:2 in reach" in found
    assert "first cause: rank 1 on beta: crashed: Segmentation fault at " in found
    assert "ctypes" in found.splitlines()[-1]


def test_a_rank_without_a_word_is_suspected_where_others_lost_it(tmp_path: Path) -> None:
    start(tmp_path, {"alpha": [LOST.format(0, "alpha")], "beta": [""]})
    left(tmp_path, fault_record("lost_peer"))
    assert diagnose(tmp_path).splitlines()[-1].startswith("first cause: probably rank 1 on beta: others lost it")


def test_the_last_start_counts_and_a_host_that_started_nothing_is_named(tmp_path: Path) -> None:
    start(tmp_path, {"alpha": ["ValueError: of the first start\n"]})
    start(tmp_path, {"alpha": ["paretrain: error: the disk is full\n"], "beta": []}, restart=1)
    found = diagnose(tmp_path)
    assert "beta started no process" in found
    assert found.endswith("first cause: rank 0 on alpha: the disk is full")
    assert "first start" not in found


def test_flight_records_tell_who_came_no_further(tmp_path: Path) -> None:
    folder = start(tmp_path, {"alpha": [LOST.format(0, "alpha")], "beta": [LOST.format(1, "beta")]})
    left(tmp_path, fault_record("lost_peer"), fault_record("lost_peer", rank=1, host="beta"))
    for rank, last in enumerate((12, 11)):
        entries = [
            {
                "record_id": number,
                "profiling_name": "nccl:all_reduce",
                "state": "scheduled",
                "frames": [
                    {"filename": "/v/torch/distributed/distributed_c10d.py", "line": 3245, "name": "all_reduce"},
                    {"filename": "loop.py", "line": 90, "name": "train_step"},
                ],
            }
            for number in range(8, last + 1)
        ]
        (folder / f"node{rank}" / STARTS[0] / f"flight_{rank}").write_bytes(pickle.dumps({"entries": entries}))
    assert diagnose(tmp_path).splitlines()[-1] == (
        "first cause: others waited for rank 1 on beta, which came no further than nccl:all_reduce number 11, "
        "scheduled at loop.py:90 in train_step"
    )


def test_a_flight_record_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    folder = start(tmp_path, {"alpha": [""]})
    (folder / "node0" / STARTS[0] / "flight_0").write_bytes(pickle.dumps({"entries": [Path("x")]}))
    assert "GLOBAL is not what torch writes" in diagnose(tmp_path).replace("STACK_GLOBAL", "GLOBAL")


def left(run_dir: Path, *records: FaultRecord) -> None:
    """What ranks themselves have left."""
    (run_dir / "faults").mkdir(exist_ok=True)
    for record in records:
        write_record(run_dir / "faults", record)


SILENT = LostPeer(rank=2, host="beta", pid=9)
BACKWARD = "at trainer/runtime/engines/engine.py:146 in backward"


def test_what_ranks_have_left_is_enough_without_logs(tmp_path: Path) -> None:
    """Rank 0 lost rank 2, and rank 1 was asked where it is."""
    left(
        tmp_path,
        fault_record("lost_peer", message="late", lost=[SILENT], world_size=3),
        fault_record("asked", rank=1, pid=8, place=BACKWARD, world_size=3),
    )
    assert diagnose(tmp_path).splitlines() == [
        f"{tmp_path / 'faults'}: what the processes of the run left",
        "  rank 0 on alpha: lost another rank in step 4, all_reduce at ranks.py:30 in sum: late (process 7)",
        "  rank 1 on alpha: was in step 4, at trainer/runtime/engines/engine.py:146 in backward (process 8)",
        "  rank 2 on beta: left no error message (process 9)",
        f"  their stacks: {tmp_path / 'faults'}",
        "",
        "first cause: probably rank 2 on beta: others lost it, and it left no error message. It was killed or stopped, "
        "or its host or network failed. If it still runs, print its stacks with: kill -USR2 PID",
    ]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_nobody_names_and_that_left_nothing_is_suspected(tmp_path: Path, killed: int) -> None:
    """The store, which could have named the rank that was killed, is gone as well."""
    left(tmp_path, fault_record("lost_peer", rank=1 - killed))
    *_, answer = diagnose(tmp_path).splitlines()
    assert answer.startswith(f"first cause: probably rank {killed} on an unknown host: others lost it")


@pytest.mark.parametrize("has_logs", [False, True])
def test_a_fault_before_the_last_start_is_named_and_can_be_diagnosed(tmp_path: Path, has_logs: bool) -> None:
    """A rank failed, the run was started again, and SIGTERM has ended it, which leaves no record."""
    for pid in (7, 8):
        left(tmp_path, fault_record("failed", pid=pid, message="no luck"))
        os.utime(tmp_path / "faults" / "rank_00000.json", (1e9 + pid, 1e9 + pid))
        keep_earlier(tmp_path / "faults")
    if has_logs:
        start(tmp_path, {"alpha": [""]})
        page = diagnose(tmp_path)
    else:
        with pytest.raises(UserError, match="nothing in") as refused:
            diagnose(tmp_path)
        page = str(refused.value)
    earlier = tmp_path / "faults" / "2001-09-09T01:46:48.000Z"
    assert f"python -m launch.diagnose {earlier}" in page
    assert diagnose(earlier).endswith("no luck (process 8)")


def test_a_rank_that_could_tell_only_the_others_is_the_cause(tmp_path: Path) -> None:
    failed = LostPeer(rank=1, host="beta", pid=9, failure="in step 4, at users.py:12 in forward: ValueError: no luck")
    left(tmp_path, fault_record("lost_peer", message="late", lost=[failed]))
    assert diagnose(tmp_path).splitlines()[-1] == (
        "first cause: rank 1 on beta: failed in step 4, at users.py:12 in forward: ValueError: no luck (process 9)"
    )


def test_a_record_that_found_no_place_in_the_run_folder_is_read_from_the_output(tmp_path: Path) -> None:
    record = fault_record("failed", rank=1, host="beta", pid=9, message="OSError: no space left")
    printed = f"{ON_STDERR}{record.model_dump_json()}\nTraceback\n"
    start(tmp_path, {"alpha": [""], "beta": [printed]})
    assert diagnose(tmp_path).splitlines()[-1] == (
        f"first cause: rank 1 on beta: failed in step 4, {record.place}: OSError: no space left (process 9)"
    )


def test_where_all_answer_the_one_that_others_waited_for_is_named_with_its_place(tmp_path: Path) -> None:
    """The output of rank 1 says nothing of it: it hung, and was killed for another one's error."""
    folder = start(tmp_path, {"alpha": [LOST.format(0, "alpha")], "beta": [""]})
    left(
        tmp_path,
        fault_record("lost_peer", message="late"),
        fault_record("asked", rank=1, host="beta", pid=8, place="at users.py:12 in forward"),
    )
    for rank, last in enumerate((12, 11)):
        entries = [
            {"record_id": number, "profiling_name": "gloo:reduce", "state": "scheduled"} for number in range(last)
        ]
        (tmp_path / "faults" / f"flight_{rank}").write_bytes(pickle.dumps({"entries": entries}))
    assert (folder / "node1").is_dir()
    assert diagnose(tmp_path).splitlines()[-1] == (
        "first cause: others waited for rank 1 on beta, which came no further than gloo:reduce number 10, scheduled; "
        "it was in step 4, at users.py:12 in forward (process 8)"
    )


def test_a_watchdog_of_nccl_ends_a_victim(tmp_path: Path) -> None:
    watchdog = (
        "[rank0]:[E1011 20:58:33.1 ProcessGroupNCCL.cpp:616] [Rank 0] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=4, OpType=ALLREDUCE, NumelIn=1) ran for 10001 milliseconds before timing out.\n"
        "Fatal Python error: Aborted\n"
    )
    start(tmp_path, {"alpha": [watchdog], "beta": [""]})
    *_, victim, _, _, answer = diagnose(tmp_path).splitlines()
    assert victim.endswith("NCCL gave up waiting for other ranks: SeqNum=4, OpType=ALLREDUCE, NumelIn=1")
    assert answer.startswith("first cause: probably rank 1 on beta")


def test_a_run_that_left_nothing_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing in .+ tells of a fault"):
        diagnose(tmp_path)
