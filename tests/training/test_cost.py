"""The floating-point operations of a sample, against those counted by hand; and their share of a device's peak."""

import pytest
import torch

from models import Classification, build_encoder, build_model
from trainer.training.cost import StepCost, memory_mib, peak_memory_mib, peak_tflops
from trainer.training.network.trial import try_out

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_operations_of_an_mlp_are_those_counted_by_hand(precision: str) -> None:
    torch.manual_seed(0)
    network = build_model(
        build_encoder("mlp", {"hidden": [16, 12]}, (10,)), [Classification(name, 2) for name in "abc"], "linear", {}
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    # A product of a sample with an (m, n) weight takes 2 m n; its backward takes that for the weight and for its input,
    # which the first layer's has none of.
    first, others = 10 * 16, 16 * 12 + 3 * 12 * 2
    assert try_out(network, (10,), CPU, precision).flops_per_sample == 2 * (2 * first + 3 * others)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_share_of_the_peak_is_told_where_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = StepCost(flops_per_sample=2 * 10**9, peak_tflops=4.0)
    assert cost.of_speed(1000, world_size=2) == {"tflops_per_process": 1.0, "mfu_percent": 25.0}
    assert StepCost(10**9, None).of_speed(1000, 1) == {"tflops_per_process": 1.0}
    assert peak_tflops(CPU, "bf16") is None
    for name, peak in {"NVIDIA H100 80GB HBM3": 989.0, "NVIDIA H100 PCIe": 756.0, "Some GPU": None}.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_tflops(torch.device("cuda"), "bf16") == peak
    assert peak_tflops(torch.device("cuda"), "fp32") is None


def test_memory_is_that_of_this_process() -> None:
    assert 50 < memory_mib() <= peak_memory_mib() * 1.01
