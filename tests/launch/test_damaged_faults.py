"""paretrain diagnose reads what can be read of damaged records, and says what cannot."""

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.diagnose.diagnosis import diagnose
from tests.support.fault_records import fault_record
from tests.support.no_files import PUT, in_time
from trainer.runtime.faults.records import write_record


def left(tmp_path: Path) -> Path:
    """A run of which two ranks have left their record, and one its flight record."""
    run = tmp_path / "run"
    (run / "faults").mkdir(parents=True)
    for rank in range(2):
        write_record(run / "faults", fault_record("failed", rank=rank, pid=7 + rank))
    entries = [{"record_id": 3, "profiling_name": "gloo:all_reduce", "state": "scheduled", "frames": None}]
    (run / "faults" / "flight_0").write_bytes(pickle.dumps({"version": "2", "entries": entries}))
    return run


def test_diagnose_reads_what_can_be_read_and_says_what_cannot(tmp_path: Path) -> None:
    run, choose = left(tmp_path), random.Random(0)
    record = run / "faults" / "flight_0"
    sound = record.read_bytes()
    assert "gloo:all_reduce number 3" in diagnose(run)
    memo_bomb = b"\x80\x02}r\xff\xff\xff\x7f."
    runs_code = b"cos\nsystem\n(S'touch /tmp/x'\ntR."
    for content in (b"", sound[:-9], memo_bomb, runs_code, pickle.dumps([1]), pickle.dumps({"entries": [{}]})):
        record.write_bytes(content)
        assert "not read: " in diagnose(run)
    for _ in range(100):
        changed = bytearray(sound)
        changed[choose.randrange(len(changed))] = choose.randrange(256)
        record.write_bytes(changed)
        assert "first cause: rank 0 on alpha" in diagnose(run)


@pytest.mark.parametrize("put", PUT)
def test_diagnose_survives_what_is_no_file(tmp_path: Path, put: Callable[[Path], Any]) -> None:
    run = left(tmp_path)
    for name in ("rank_00001.json", "flight_0"):
        (run / "faults" / name).unlink()
        put(run / "faults" / name)
    logs = run / "logs" / "1.0" / "trainer.train"
    (logs / "node0" / "2026").mkdir(parents=True)
    (logs / "node0" / "2026" / "host").write_text("alpha\x1b[31m\n")
    (logs / "node0" / "2026" / "1_x" / "attempt_0" / "0").mkdir(parents=True)
    (logs / "nodex").mkdir()
    (logs / "node1").write_text("a file")
    put(logs / "node0" / "2026" / "1_x" / "attempt_0" / "0" / "stderr.log")
    with in_time():
        assert "rank 0 on alpha" in diagnose(run)
