"""Patterns over the names of parameters."""

import pytest

from trainer.errors import UserError
from trainer.training.network.patterns import matching

NAMES = ["encoder.stem.weight", "encoder.blocks.0.weight", "encoder.blocks.1.weight", "heads.0.bias"]


def test_a_star_matches_dots_too() -> None:
    assert matching("encoder.*", NAMES, "key") == set(NAMES[:3])
    assert matching("*.bias", NAMES, "key") == {"heads.0.bias"}


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("encoder.blocks", r"'encoder.blocks.\*' for all of encoder.blocks"),
        ("encoder.stemm.*", r"encoder.stem.\*"),
        ("heads.0.bia", "heads.0.bias"),
        ("x", r"encoder.\*"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_what_is_near(pattern: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"model.freeze: no parameter's name matches .*{hint}"):
        matching(pattern, NAMES, "model.freeze")
