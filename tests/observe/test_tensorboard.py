import sys
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.observe.tensorboard import FOLDER, TensorBoardTracker
from trainer.observe.tracker import Several, Tracker


def record(step: int, loss: float) -> dict[str, object]:
    return {"kind": "train", "step": step, "losses": {"a/b": loss, "right": None}, "min_norm": 0.25}


def test_a_resumed_run_forgets_the_steps_after_its_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        tracker = TensorBoardTracker(tmp_path, start, said.append)
        for step in steps:
            tracker.log(record(step, start + step / 8))
            tracker.log({"kind": "gram", "step": step, "gram": [[1.0]]})
        tracker.close({} if start else None)
        tracker.close(None)
    assert curves(tmp_path / FOLDER) == {
        "train/losses/a%2Fb": [(1, 0.125), (2, 0.25), (3, 2.375), (4, 2.5)],
        "train/min_norm": [(step, 0.25) for step in (1, 2, 3, 4)],
    }
    assert said == [f"tensorboard: tensorboard --logdir {tmp_path / FOLDER}"] * 2


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the event files with TensorBoard itself."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_failure_is_said_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    said: list[str] = []
    tracker = TensorBoardTracker(tmp_path, 0, said.append)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    tracker.log(record(1, 0.5))
    tracker.log(record(2, 0.5))
    tracker.close(None)
    assert len(said) == 2
    assert "No space left" in said[1]


def test_without_tensorboard_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'paretrain\[tensorboard\]'"):
        TensorBoardTracker(tmp_path, 0)


def test_several_trackers_get_every_record_and_the_end() -> None:
    got: list[object] = []

    class Listening(Tracker):
        def log(self, record: object) -> None:
            got.append(record)

        def close(self, summary: object) -> None:
            got.append(summary)

    both = Several([Listening(), Listening()])
    both.log({"kind": "note"})
    both.close(None)
    assert got == [{"kind": "note"}, {"kind": "note"}, None, None]
