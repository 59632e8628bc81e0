"""Which checkpoints stay, and what an evaluation leaves behind."""

from pathlib import Path

import torch
from torch import nn

from models import Classification
from trainer.data.reading.loader import Batch
from trainer.evaluation import evaluate
from trainer.runtime.checkpoint import save
from trainer.runtime.setup import Runtime

ALONE = Runtime(None, 0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


def save_at(folder: Path, step: int) -> list[str]:
    """The checkpoints that stand after one more."""
    tensors = {"w": torch.zeros(2)}
    save(folder, step, model=tensors, optimizer={}, state={"step": step}, runtime=ALONE, keep=2)
    return sorted(path.name for path in folder.glob("step_*"))


def test_the_newest_stay(tmp_path: Path) -> None:
    found = [save_at(tmp_path, step) for step in (1, 2, 3)]
    assert found[-1] == ["step_00000002", "step_00000003"]
    assert (tmp_path / "LATEST").read_text() == "step_00000003"


def test_a_run_that_is_set_back_keeps_its_new_branch(tmp_path: Path) -> None:
    save_at(tmp_path, 10)
    save_at(tmp_path, 40)
    found = [save_at(tmp_path, step) for step in (20, 30)]
    assert found[-1] == ["step_00000020", "step_00000030"]


def test_an_evaluation_leaves_every_module_in_its_own_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2))
    batch = Batch(torch.zeros(3, 4), {"a": torch.zeros(3, dtype=torch.int64)}, torch.arange(3))
    evaluate(_OneHead(model), [batch], [Classification("a", 2)], lambda inputs: inputs, ALONE)
    assert [module.training for module in model] == [True, False, True]


class _OneHead(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.model(x)]
