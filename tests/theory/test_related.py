"""The program in docs/related.md runs, and does what the page says."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "related.md"


@pytest.fixture(scope="module")
def program():
    names = {"__name__": "related"}
    exec(
        compile(re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1], PAGE, "exec"), names
    )
    return names


@pytest.mark.long
def test_the_penalty_makes_signs_agree(program):
    without, with_penalty = (program["sign_disagreement"](program["train"](strength)) for strength in (0.0, 1.0))

    assert with_penalty < 0.1 * without


def test_the_penalty_is_the_sum_over_pairs(program):
    torch = program["torch"]
    weights_TD = torch.tensor([[1.0, -2.0], [3.0, 1.0], [-1.0, -1.0]])

    assert program["sign_disagreement"](weights_TD) == pytest.approx(2 + 1 + 3 + 1)
