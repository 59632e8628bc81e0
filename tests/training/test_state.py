"""TrainState comes back from a checkpoint as it was, and anything else is refused in a sentence."""

from typing import Any

import pytest
import torch

from trainer.training.migrations import in_todays_format
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
def test_a_state_of_format_4_with_one_source_is_read(version: dict[str, int]) -> None:
    values = STATE.to_dict()
    old = values | values.pop("sources")[""] | version
    before = dict(old)
    assert TrainState.from_dict(in_todays_format(old, 4)) == STATE
    assert old == before, "it is not changed"


def test_a_state_of_format_4_with_a_version_of_its_own_is_read() -> None:
    assert TrainState.from_dict(in_todays_format(STATE.to_dict() | {"version": 2}, 4)) == STATE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 1}, "version: Extra inputs are not permitted"),
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
