"""An encoder that returns several tensors: its heads take one of them, or all; lazy and 16-bit encoders."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import Classification, Segmentation, Tower, build_encoder, build_model
from paretrain import Balancer
from tests.support.oracle import min_norm_by_enumeration


class Pyramid(nn.Module):
    """Two maps, the second half as fine."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.width, self.stride = (6, 4), (2, 4)
        self.fine = nn.Conv2d(image_shape[0], 6, 2, 2)
        self.coarse = nn.Conv2d(6, 4, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(x)
        return fine, self.coarse(fine.tanh())


class Both(nn.Module):
    """A head that reads all levels."""

    def __init__(self, width: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(width), outputs)

    def forward(self, z: tuple[Tensor, Tensor]) -> Tensor:
        out: Tensor = self.linear(torch.cat([level.mean((2, 3)) for level in z], dim=1))
        return out


TASKS = [Segmentation("masks", ("a", "b", "c")), Classification("kind", 5)]


def test_each_head_takes_the_tensor_that_it_is_told_to() -> None:
    encoder = build_encoder(Pyramid, {}, (1, 8, 8))
    model = build_model(encoder, TASKS, "linear", {}, Tower(), takes={"masks": 0, "kind": 1})
    x = torch.randn(3, 1, 8, 8)
    fine, coarse = encoder(x)
    found = model(x)
    torch.testing.assert_close(found.heads[0], model.heads.main[0](fine))
    torch.testing.assert_close(found.towers[1], model.heads.towers[1](coarse))
    assert [tuple(output.shape) for output in model.eval()(x)] == [(3, 3, 8, 8), (3, 5)]


def test_alpha_is_that_of_all_tensors_together() -> None:
    torch.manual_seed(0)
    tasks = [Classification("a", 2), Classification("b", 3)]
    encoder = build_encoder(Pyramid, {}, (1, 8, 8)).double()
    model = build_model(encoder, tasks, Both, {}).double()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    levels = [level.detach().requires_grad_() for level in encoder(x)]
    gradients = [torch.autograd.grad(head(levels).square().sum() / 4, levels) for head in model.heads]
    flat_TN = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in gradients])
    expected = min_norm_by_enumeration((flat_TN @ flat_TN.T).numpy())[0]
    balancer = Balancer(2)
    outputs = model(x, balancer)
    balancer.total(sums=[output.square().sum() for output in outputs], counts=[4, 4]).backward()
    torch.testing.assert_close(balancer.alpha, torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("head", "takes", "message"),
    [
        ("linear", None, "model.head.takes"),
        ("linear", 2, "one number from 0 to 1"),
        ("linear", {"mask": 0}, "Did you mean 'masks'"),
        ("shared", 0, "a z that is a vector"),
    ],
)
def test_a_head_that_cannot_take_it_is_refused(head: str, takes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(build_encoder(Pyramid, {}, (1, 8, 8)), TASKS, head, {}, None, takes=takes)


class Half(nn.Module):
    """Computes in bfloat16."""

    width = 4

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(shape[0], 4).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(x.bfloat16())
        return z


def test_heads_compute_in_their_own_precision_behind_a_16_bit_encoder() -> None:
    model = build_model(build_encoder(Half, {}, (3,)), [Classification("a", 2), Classification("b", 2)], "linear", {})
    model(torch.randn(5, 3), Balancer(2)).sum()
    output = model(torch.randn(5, 3))
    assert output.dtype == torch.float32
    output.sum().backward()
    assert model.encoder.layer.weight.grad.dtype == torch.bfloat16
