"""A snapshot is left when memory runs out, and only then. torch's recorder is replaced: there is no GPU here."""

from pathlib import Path

import pytest
import torch

from trainer.training.memory_snapshot import snapshot_if_out_of_memory


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda enabled="all", **_: found.append(str(enabled)))
    monkeypatch.setattr(memory, "_dump_snapshot", lambda path: Path(path).write_bytes(b"snapshot"))
    return found


@pytest.mark.parametrize(
    ("wanted", "error", "leaves"),
    [(True, torch.OutOfMemoryError, True), (True, ValueError, False), (False, torch.OutOfMemoryError, False)],
)
def test_a_snapshot_is_left_if_memory_runs_out(
    wanted: bool, error: type[Exception], leaves: bool, tmp_path: Path, calls: list[str]
) -> None:
    with pytest.raises(error), snapshot_if_out_of_memory(wanted, tmp_path, rank=3):
        raise error("no room")
    assert (tmp_path / "profile" / "memory.rank_3.pickle").exists() == leaves
    assert calls == (["all", "None"] if wanted else [])
