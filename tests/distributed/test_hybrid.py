"""Hybrid sharding on 4 processes, 2 copies in 2 shards each, against one process; and parameters gathered in bf16."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tests.support import runtimes
from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.strategies import CASES, assert_equal, by_definition, new_engine, train, whole, write

ALONE = replace(runtimes.ALONE, accelerator=SimpleNamespace(prepare_model=lambda network: network))
CASE = CASES["ResNet, stacked heads, AdamW"]
STEPS = range(8)
"""Two under each strategy of the chain single, HSDP, FSDP2, single; the last one is skipped, two are windows."""


def in_shards(rank: int, folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Go on with a run of one process under HSDP, then FSDP2. Train two steps in bf16, gathered in either precision."""
    runtime = a_runtime(rank, 4)
    found: dict[str, Any] = {"alphas": []}
    for strategy, steps in (("hsdp", STEPS[2:4]), ("fsdp2", STEPS[4:6])):
        engine = new_engine(strategy, CASE, runtime, checkpoint)
        found["alphas"] += train(engine, CASE, steps, runtime)
        checkpoint = write(engine, folder / strategy, runtime)
        again = new_engine(strategy, CASE, runtime, checkpoint)
        ends = []
        for one in (engine, again):
            train(one, CASE, STEPS[1:2], runtime)
            pieces = list(itertools.chain(one.model_pieces(), one.optimizer_pieces()))
            ends.append(whole(pieces, runtime))
        found[strategy, "resumes"] = all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
        found[strategy, "held"] = sum(p.to_local().numel() for p in engine.model.parameters() if isinstance(p, DTensor))
        found[strategy, "saved"] = sum(piece.values.numel() for piece in engine.model_pieces())
    for gather in ("fp32", "bf16"):
        engine = new_engine("hsdp", CASE, runtime, precision="bf16", gather=gather)
        seen: list[torch.dtype] = []
        norm = next(module for module in engine.model.modules() if isinstance(module, nn.GroupNorm))
        norm.register_forward_pre_hook(lambda module, _, seen=seen: seen.append(module.weight.dtype))
        found[gather, "alpha"] = torch.stack(train(engine, CASE, STEPS[1:2], runtime))
        found[gather, "gathered"] = seen[0]
        found[gather, "saved"] = {piece.values.dtype for piece in engine.model_pieces()}
    return found


@pytest.mark.slow
def test_a_run_moves_into_groups_and_back_and_ends_as_one_process_does(tmp_path: Path) -> None:
    expected = by_definition(CASE, STEPS)
    engine = new_engine("single", CASE, ALONE)
    alphas = train(engine, CASE, STEPS[:2], ALONE)
    first, *others = run_ranks(4, in_shards, tmp_path, write(engine, tmp_path / "single", ALONE), limit_seconds=240)
    assert all(torch.equal(*pair) for other in others for pair in zip(first["alphas"], other["alphas"], strict=True))
    engine = new_engine("single", CASE, ALONE, tmp_path / "fsdp2" / "step_00000001")
    alphas += [*first["alphas"], *train(engine, CASE, STEPS[6:], ALONE)]
    assert_equal((torch.stack(alphas), engine.predictor.state_dict()), expected, "moved")

    num_entries = sum(tensor.numel() for tensor in expected[1].values())
    for strategy, num_shards in (("hsdp", 2), ("fsdp2", 4)):
        assert first[strategy, "resumes"], strategy
        of_ranks = [found[strategy, "held"] for found in (first, *others)]
        assert sum(of_ranks) == num_entries * 4 // num_shards, strategy
        assert sum(found[strategy, "saved"] for found in (first, *others)) == num_entries, strategy

    for gather, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert (first[gather, "gathered"], first[gather, "saved"]) == (dtype, {torch.float32})
        assert float((first[gather, "alpha"] - expected[0][1:2]).abs().max()) <= 0.05, gather
