"""Which ends are faults that a run is started again after, and how often. Real faults: tests/e2e/test_kills.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.node.restarts import run_with_restarts
from trainer.errors import UserError

KILLED, LOST_PEER, CRASHED = 137, 3, 1


def starts(run_dir: Path, *ends: tuple[int, int]) -> tuple[Callable[[int], int], list[int]]:
    """A run whose n-th start saves up to a step and ends with an exit code; and the starts that it has seen."""
    seen: list[int] = []

    def start(restart: int) -> int:
        seen.append(restart)
        exit_code, step = ends[restart]
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        (run_dir / "checkpoints" / "LATEST").write_text(f"step_{step:08d}")
        return exit_code

    return start, seen


def test_starts_again_after_faults_until_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, seen = starts(tmp_path, (KILLED, 2), (LOST_PEER, 4), (CRASHED, 6), (0, 8))
    assert run_with_restarts(start, tmp_path, max_restarts=9) == 0
    assert seen == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines() == [
        f"paretrain: starts again from step_0000000{2 * number}, {number} of 9 times" for number in (1, 2, 3)
    ]


def test_starts_again_no_more_often_than_it_may(tmp_path: Path) -> None:
    start, seen = starts(tmp_path, (KILLED, 2), (KILLED, 4), (LOST_PEER, 6), (0, 8))
    assert run_with_restarts(start, tmp_path, max_restarts=2) == LOST_PEER
    assert seen == [0, 1, 2]
    with pytest.raises(UserError, match="--max-restarts -1: expected 0 or more"):
        run_with_restarts(start, tmp_path, max_restarts=-1)


@pytest.mark.parametrize("exit_code", [0, 2, 75, 129, 130, 138, 143])
def test_what_is_no_fault_is_left_alone(tmp_path: Path, exit_code: int) -> None:
    start, seen = starts(tmp_path, (exit_code, 2), (0, 4))
    assert run_with_restarts(start, tmp_path, max_restarts=1) == exit_code
    assert seen == [0]


def test_a_start_that_saved_nothing_is_the_last_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, seen = starts(tmp_path, (KILLED, 2), (KILLED, 2), (0, 4))
    assert run_with_restarts(start, tmp_path, max_restarts=9) == KILLED
    assert seen == [0, 1]
    assert "not started again: this start has saved no checkpoint" in capsys.readouterr().err
