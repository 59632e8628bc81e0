import json
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.observe.metrics import MetricsLog, errors_so_far, read_metrics, stamped
from trainer.observe.records import SCHEMA
from trainer.observe.throughput import Throughput


def records(steps: int) -> list[dict]:
    """A run's file as the loop writes it: every step a "train" record, every second one an "eval" record too."""
    found: list[dict] = []
    for step in range(1, steps + 1):
        found.append({"kind": "train", "step": step, "losses": {"left": 1 / step, "rechts ä": 0.1 * step}, "alpha": {}})
        if step % 2 == 0:
            found.append({"kind": "eval", "step": step, "errors": {"left": 9.0 / step, "rechts ä": 3.0}})
    return found


def write_all(path: Path, items: list[dict], resume_step: int | None = None) -> None:
    log = MetricsLog(path, resume_step=resume_step)
    for record in items:
        log.write(record)
    log.close()


@pytest.mark.long
@given(data=st.data(), steps=st.integers(1, 8))
def test_a_resumed_file_equals_the_uninterrupted_one(data: st.DataObject, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped = Path(folder) / "whole.jsonl", Path(folder) / "stopped.jsonl"
        write_all(whole, records(steps))
        content = whole.read_bytes()
        cut = data.draw(st.integers(0, len(content)), label="bytes written when the process died")
        stopped.write_bytes(content[:cut])
        # A checkpoint follows the records of its step, so all of them stand complete in the file.
        complete = [json.loads(line) for line in content[:cut].split(b"\n")[:-1]]
        safe = [step for step in range(steps + 1) if sum(r["step"] <= step for r in records(steps)) <= len(complete)]
        checkpoint = data.draw(st.sampled_from(safe), label="last checkpoint")

        write_all(stopped, [r for r in records(steps) if r["step"] > checkpoint], resume_step=checkpoint)

        assert stopped.read_bytes() == content
        assert set(Path(folder).iterdir()) == {stopped, whole}


def test_each_record_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", resume_step=None)
    for step in (1, 2):
        log.write({"kind": "note", "step": step, "text": "line\nbreak"})
        assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, step + 1))
    log.close()


def test_a_new_file_replaces_an_old_one(tmp_path: Path) -> None:
    write_all(tmp_path / "metrics.jsonl", records(3))
    write_all(tmp_path / "metrics.jsonl", records(1))
    assert read_metrics(tmp_path / "metrics.jsonl") == records(1)


def test_numbers_that_are_not_finite_become_null_and_the_file_stays_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_all(
        path, [{"kind": "train", "step": 1, "losses": {"a": float("nan"), "b": 2.0}, "gram": [[float("inf"), 1]]}]
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found == {"kind": "train", "step": 1, "losses": {"a": None, "b": 2.0}, "gram": [[None, 1]]}


@pytest.mark.parametrize("damage", ["{broken}", "[1, 2]", '{"kind": "train"}'])
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write_all(path, records(3))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, *lines[1:]]) + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"line 2\b[\s\S]*sed -i 2d"):
        read_metrics(path)
    with pytest.raises(UserError, match="line 2"):
        MetricsLog(path, resume_step=2)
    assert path.read_bytes() == before


def test_a_record_has_its_schema_the_time_of_day_and_the_clock_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_all(path, [stamped(record, 12.5) for record in records(2)])
    for record in map(json.loads, path.read_text().splitlines()):
        assert list(record)[:5] == ["schema", "kind", "step", "time", "seconds"]
        assert (record["schema"], record["seconds"]) == (SCHEMA, 12.5)
        assert datetime.fromisoformat(record["time"]).utcoffset() == timedelta()
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 2]


def test_seconds_of_an_old_evaluation_are_its_duration(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    old = {"kind": "eval", "step": 1, "errors": {"left": 1.0}, "seconds": 2.5}
    write_all(path, [old, stamped({**old, "step": 2, "seconds": 60.0, "duration_seconds": 3.5}, 0.0)])
    before, after = read_metrics(path)
    assert before["duration_seconds"] == 2.5
    assert "seconds" not in before
    assert (after["duration_seconds"], after["seconds"]) == (3.5, 60.0)


def test_a_record_of_a_newer_version_is_left_to_that_version(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_all(path, [{"schema": SCHEMA + 1, "kind": "new", "step": 1}])
    with pytest.raises(UserError, match="a newer version of paretrain") as refused:
        read_metrics(path)
    assert "sed" not in str(refused.value), "nobody should remove it"


def test_a_note_of_a_start_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    note = {"kind": "note", "step": 2, "text": "the encoder is frozen"}
    write_all(path, [*records(2), stamped(note, 1.0)])
    other = note | {"text": "another one"}
    for _ in range(2):
        write_all(path, [stamped(note, 5.0), stamped(other, 5.0), {**note, "step": 3}], resume_step=2)
    notes = [(record["step"], record["text"]) for record in read_metrics(path) if record["kind"] == "note"]
    assert notes == [(2, note["text"]), (2, other["text"]), (3, note["text"])]


def test_resuming_without_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl[\s\S]*touch"):
        MetricsLog(tmp_path / "metrics.jsonl", resume_step=5)


def test_best_errors_are_those_of_one_evaluation() -> None:
    evaluations = [
        {"kind": "eval", "step": 1, "errors": {"a": 1.0, "b": 50.0}},
        {"kind": "eval", "step": 2, "errors": {"a": 4.0, "b": 6.0}},
        {"kind": "train", "step": 3, "losses": {}},
        {"kind": "eval", "step": 3, "errors": {"a": 2.0, "b": None}},
    ]
    found = errors_so_far(evaluations)
    assert found["best_step"] == 2
    assert found["best_errors"] == {"a": 4.0, "b": 6.0}
    assert found["final_errors"] == {"a": 2.0, "b": None}
    nothing = {"final_errors": {}, "final_step": None, "best_errors": {}, "best_step": None, "units": {}}
    assert errors_so_far([]) == nothing


def test_errors_of_several_units_are_compared_each_with_its_own_first() -> None:
    units = {"price": "EUR", "sold": "%"}
    evaluations = [
        {"kind": "eval", "step": step, "units": units, "errors": {"price": price, "sold": sold}}
        # A fifth less of both, then a little less of the large number and twice the small one.
        for step, price, sold in [(1, 10_000.0, 5.0), (2, 8_000.0, 4.0), (3, 7_900.0, 10.0)]
    ]
    found = errors_so_far(evaluations)
    assert found["best_step"] == 2
    assert found["units"] == units


class Clock:
    """Time that passes when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_throughput_measures_each_interval_without_its_pauses() -> None:
    clock = Clock()
    throughput = Throughput(elapsed_seconds=60.0, clock=clock)
    with throughput.data_wait():
        clock.now += 1
    clock.now += 3
    throughput.count(400)
    with throughput.paused():
        clock.now += 100
    assert throughput.read() == {"seconds": 164.0, "samples_per_second": 100.0, "data_wait_percent": 25.0}

    clock.now += 2
    throughput.count(50)
    assert throughput.read() == {"seconds": 166.0, "samples_per_second": 25.0, "data_wait_percent": 0.0}
    assert throughput.elapsed_seconds == 166.0
