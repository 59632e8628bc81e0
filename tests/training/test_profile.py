"""Traces are of the steps and ranks that were asked for."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from trainer.config.sections.train import ProfileConfig
from trainer.training.profile import profiled


def trace(config: ProfileConfig | None, folder: Path, steps: int, rank: int = 0) -> list[tuple[str, int]]:
    """Multiply, in step n, n x n matrices. Returns each file and how many products it has."""
    with profiled(config, folder, rank) as before_step:
        for step in range(1, steps + 1):
            before_step(step)
            torch.ones(step, step) @ torch.ones(step, step)
    found = []
    for path in sorted((folder / "profile").glob("*")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        found.append((path.name, sum(event.get("name") == "aten::mm" for event in events)))
    return found


def test_a_trace_has_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    assert trace(ProfileConfig(start=2, steps=3), tmp_path, steps=6) == [("steps_2_to_4.rank_0.json.gz", 3)]
    assert trace(ProfileConfig(start=5, steps=3), tmp_path, steps=6)[1] == ("steps_5_to_7.rank_0.json.gz", 2)


@pytest.mark.parametrize("config", [None, ProfileConfig(start=2, ranks=(1,)), ProfileConfig(start=9)])
def test_nothing_is_written_where_nothing_is_asked_for(tmp_path: Path, config: ProfileConfig | None) -> None:
    assert trace(config, tmp_path, steps=3) == []
    assert list(tmp_path.iterdir()) == []
