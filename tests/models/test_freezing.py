"""What is frozen stays as it is, the running statistics of BatchNorm included."""

import torch
from torch import nn

from models.freezing import freeze, trained


def a_network() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.BatchNorm1d(4, affine=False))


def test_frozen_batch_norm_keeps_and_uses_its_running_statistics_in_training() -> None:
    network = a_network()
    with torch.no_grad():
        network[0][1].running_mean.fill_(2.0)
    freeze(network, {name for name in network.state_dict() if name.startswith("0.")})
    network.eval()
    network.train()
    x = torch.randn(8, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.testing.assert_close(network[0](x), (network[0][0](x) - 2.0) / (1 + 1e-5) ** 0.5)
    network(x)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_a_norm_whose_weight_alone_is_frozen_still_updates_its_statistics() -> None:
    network = a_network()
    freeze(network, {"0.1.weight"})
    assert trained(network).keys() == {"0.0.weight", "0.0.bias", "0.1.bias"}
    network.train()(torch.randn(8, 3))
    assert int(network[0][1].num_batches_tracked) == 1
