"""A network starts from that of another run: heads are found by the names of their tasks, stacked or one by one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import Classification, MultiTaskModel, Tower, build_encoder, build_model
from trainer.errors import UserError
from trainer.training.network.from_run import start_network

RUN = Path("runs/other")
CLASSES = {"a": 2, "b": 2, "c": 3}


def a_network(tasks: str, *, width: int = 4, towers: bool = False) -> MultiTaskModel:
    """A network of random weights. Its heads are stacked where all tasks have as many classes."""
    encoder = build_encoder("mlp", {"hidden": [width]}, (5,))
    described = [Classification(task, CLASSES[task]) for task in tasks]
    return build_model(encoder, described, "linear", {}, Tower("linear", {}, 1.0) if towers else None)


def logits(network: MultiTaskModel, tasks: str) -> dict[str, Tensor]:
    found = network.eval()(torch.arange(5.0)[None])
    return dict(zip(tasks, found.unbind(1) if isinstance(found, Tensor) else found, strict=True))


@pytest.mark.parametrize("towers", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [("ab", "ab"), ("ba", "ab"), ("b", "ab"), ("abc", "cab"), ("ca", "cab")])
def test_each_task_takes_the_head_of_its_name(ours: str, theirs: str, towers: bool) -> None:
    other, network = a_network(theirs, towers=towers), a_network(ours, towers=towers)
    start_network(network, ours, other.state_dict(), theirs, RUN)
    expected = logits(other, theirs)
    for task, found in logits(network, ours).items():
        torch.testing.assert_close(found, expected[task])


def test_what_does_not_fit_is_refused_with_what_to_type() -> None:
    for ours, width, said in (("abc", 4, "has no heads for 1: c; it has 2: a, b"), ("ab", 3, "holds another network")):
        with pytest.raises(UserError, match=said) as caught:
            start_network(a_network(ours, width=width), ours, a_network("ab").state_dict(), "ab", RUN)
        assert "model.encoder.weights=runs/other" in str(caught.value)
