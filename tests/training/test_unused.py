"""Parameters that no output depends on are found and named, whatever they are a part of."""

import pytest
import torch
from torch import Tensor, nn

from models import Classification, MultiTaskModel, build_model
from models.freezing import freeze
from trainer.errors import UserError
from trainer.training.network.trial import try_out
from trainer.training.network.unused import refuse_unused

CPU = torch.device("cpu")


class Spare(nn.Module):
    """Has a layer that its forward does not use, dropout, and running statistics."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.width = outputs
        self.used = nn.Sequential(nn.Linear(width, outputs), nn.BatchNorm1d(outputs), nn.Dropout(0.5))
        self.spare = nn.ModuleDict({"pool": nn.Linear(width, outputs)})

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.used(x)
        return z


def a_network() -> MultiTaskModel:
    tasks = [Classification("a", 2), Classification("b", 3)]
    return build_model(Spare(5, 4), tasks, Spare, {})


def test_unused_parameters_of_encoder_and_heads_are_found_and_nothing_else_changes() -> None:
    network = a_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    found = try_out(network, (5,), CPU, "fp32").unused
    parts = ["encoder", "heads.0", "heads.1"]
    assert found == [f"{part}.spare.pool.{name}" for part in parts for name in ("weight", "bias")]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    freeze(network, set(found))
    assert try_out(network, (5,), CPU, "bf16").unused == []


def test_only_ddp_refuses_them_and_says_how_to_leave_them_out() -> None:
    unused = ["encoder.spare.pool.weight", "encoder.spare.pool.bias"]
    for strategy, processes in (("ddp", 1), ("single", 1), ("fsdp2", 2), ("zero3", 2)):
        refuse_unused(unused, ["encoder.used.weight"], strategy, processes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"model.freeze=\[encoder.spare.\*\]"):
        refuse_unused(unused, ["encoder.used.weight"], "ddp", 2)


def test_a_forward_that_fails_is_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"a batch of 2 zero inputs \(7,\) cannot pass"):
        try_out(a_network(), (7,), CPU, "fp32")
    network = a_network()
    network.encoder = nn.Linear(5, 6)
    network.encoder.width = 4  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"z of the shape \(2, 6\), and its `width` is 4"):
        try_out(network, (5,), CPU, "fp32")
