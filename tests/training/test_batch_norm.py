"""BatchNorm over few samples is warned of, whatever it is a part of."""

import pytest
from torch import nn

from trainer.training.network.batch_norm import few_samples


@pytest.mark.parametrize(
    ("module", "samples", "warned"),
    [
        (nn.BatchNorm2d(3), 4, True),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 1, True),
        (nn.BatchNorm2d(3), 8, False),
        (nn.SyncBatchNorm(3), 1, False),
        (nn.GroupNorm(1, 3), 1, False),
    ],
)
def test_few_samples_of_a_process_are_warned_of(module: nn.Module, samples: int, warned: bool) -> None:
    said = few_samples(module, samples)
    assert (said is not None) == warned
    if said:
        assert f"from {samples} sample" in said
