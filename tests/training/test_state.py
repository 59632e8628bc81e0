"""TrainState comes back from a checkpoint as it was, and anything else is refused in a sentence."""

from typing import Any

import pytest
import torch

from trainer.training.state import BadSamplesState, CursorState, LossScaleState, SourceState, TrainState

BAD = BadSamplesState(total={"torn": 1}, in_epoch={}, first="a sample")
STATE = TrainState(
    step=3,
    samples=120,
    global_batch=40,
    seconds=1.5,
    sources={"": SourceState(cursor=CursorState(epoch=1, samples=40), bad_samples=BAD)},
    fingerprint="f",
    weighting={"reference_T": torch.ones(2), "steps": 3},
    loss_scale=LossScaleState(value=2.0**16, num_sound_steps=3),
    damaged_checkpoints=1,
)


def test_a_state_comes_back_as_it_was() -> None:
    values = STATE.to_dict()
    assert values["weighting"] is STATE.weighting, "tensors are not copied"
    assert TrainState.from_dict(values) == STATE


@pytest.mark.parametrize("version", [{}, {"version": 1}])
def test_a_state_of_the_first_version_has_one_source_without_a_name(version: dict[str, int]) -> None:
    values = STATE.to_dict()
    del values["version"]
    assert TrainState.from_dict(values | values.pop("sources")[""] | version) == STATE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 3}, "it has version 3, this version of paretrain reads 2"),
        ({"version": "1"}, "version: Input should be 2"),
        ({"step": -1}, "step: Input should be greater than or equal to 0"),
        ({"step": 3.0}, "step: Input should be a valid integer"),
        ({"sources": {"a": {"cursor": {"epoch": 0}}}}, "sources.a.cursor.samples: Field required"),
        ({"seconds": float("nan")}, "seconds: Input should be a finite number"),
        ({"speed": 1}, "speed: Extra inputs are not permitted"),
    ],
)
def test_any_other_state_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainState.from_dict(STATE.to_dict() | change)
