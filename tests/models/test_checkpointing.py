"""Activation checkpointing: the same step bit for bit, from fewer saved tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import build_encoder, checkpoint_activations

ENCODERS = {
    "resnet18": ({"stem": "cifar"}, (3, 16, 16)),
    "mlp": ({"hidden": [8, 8], "dropout": 0.5}, (6,)),
    "vit": ({"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}, (3, 8, 8)),
    "transformers": (
        {
            "config": {
                "model_type": "vit",
                "patch_size": 4,
                "hidden_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "hidden_dropout_prob": 0.5,
            }
        },
        (3, 8, 8),
    ),
}


def step(name: str, checkpointed: bool) -> tuple[nn.Module, Tensor, int]:
    """The encoder after a backward, its z, and the bytes that the forward kept for it."""
    options, shape = ENCODERS[name]
    torch.manual_seed(0)
    encoder = build_encoder(name, options, shape)
    if checkpointed:
        checkpoint_activations(encoder)
    x = torch.randn(4, *shape)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        z = encoder(x)
    loss = z.square().sum()
    # As the parameter space has it: several backwards of one forward.
    torch.autograd.grad(loss, list(encoder.parameters()), retain_graph=True)
    loss.backward()
    return encoder, z, sum(kept.values())


@pytest.mark.long
@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_and_statistics_are_the_same_from_less_memory(name: str) -> None:
    plain, z, num_bytes = step(name, checkpointed=False)
    encoder, checkpointed_z, fewer_bytes = step(name, checkpointed=True)
    assert torch.equal(checkpointed_z, z)
    expected = dict(plain.named_parameters())
    assert [name for name, _ in encoder.named_parameters()] == list(expected)
    for key, parameter in encoder.named_parameters():
        assert torch.equal(parameter.grad, expected[key].grad), key
    # BatchNorm's running statistics, among them how many batches it saw.
    for key, buffer in plain.named_buffers():
        assert torch.equal(encoder.get_buffer(key), buffer), key
    assert fewer_bytes < 0.75 * num_bytes


@pytest.mark.long
def test_nothing_is_computed_again_at_evaluation() -> None:
    encoder = build_encoder("resnet18", {"stem": "cifar"}, (3, 16, 16)).eval()
    calls: list[Any] = []
    encoder.blocks[0].residual.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_activations(encoder)
    with torch.no_grad():
        encoder(torch.randn(1, 3, 16, 16))
    assert len(calls) == 1
    encoder(torch.randn(1, 3, 16, 16)).sum().backward()
    assert len(calls) == 3


@pytest.mark.long
def test_a_compiled_encoder_counts_a_batch_once_too() -> None:
    encoder = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()))
    checkpoint_activations(encoder)
    torch.compile(encoder, backend="aot_eager")(torch.randn(5, 3)).sum().backward()
    assert encoder[0][1].num_batches_tracked == 1
    assert encoder[0][0].weight.grad is not None


def test_an_encoder_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="LeNet has no blocks"):
        checkpoint_activations(build_encoder("lenet", {}, (1, 16, 16)))
