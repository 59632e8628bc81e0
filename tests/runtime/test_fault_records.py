"""The records of a fault survive the starts after it."""

import os
from pathlib import Path

from tests.support.fault_records import fault_record
from trainer.runtime.faults.records import keep_earlier, write_record


def test_each_start_leaves_the_records_of_earlier_ones(tmp_path: Path) -> None:
    keep_earlier(tmp_path / "missing")
    for number in range(3):
        write_record(tmp_path, fault_record("failed", message=f"fault {number}"))
        os.utime(tmp_path / "rank_00000.json", (1e9 + number, 1e9 + number))
        keep_earlier(tmp_path)
    assert not list(tmp_path.glob("rank_*"))
    kept = sorted(tmp_path.glob("*/rank_00000.json"))
    assert [path.parent.name for path in kept] == [f"2001-09-09T01:46:4{number}.000Z" for number in range(3)]
    assert [f"fault {number}" in path.read_text() for number, path in enumerate(kept)] == [True] * 3
    keep_earlier(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
