"""Of several ranks only one reads a checkpoint's model; all of them have it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.small_checkpoints import save
from trainer.runtime.checkpoints.pieces import Scattered
from trainer.runtime.checkpoints.reading import load
from trainer.training.restore import load_model


def loads(rank: int, folder: Path) -> dict[str, Any]:
    runtime, whole, read = a_runtime(rank, 2), Scattered.whole, list[str]()
    snapshot = load(folder / "step_00000001", runtime)
    Scattered.whole = lambda self: read.append(self.name) or whole(self)  # type: ignore[method-assign, func-returns-value]
    torch.manual_seed(rank)
    network = nn.Linear(3, 2)
    load_model(network, snapshot, runtime)
    return {"read": read, "model": {name: tensor.tolist() for name, tensor in network.state_dict().items()}}


@pytest.mark.slow
@pytest.mark.processes
def test_rank_0_reads_the_model_and_the_others_receive_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    first, second = run_ranks(2, loads, tmp_path)
    assert first["read"] == ["weight", "bias"]
    assert second["read"] == []
    assert first["model"] == second["model"]
