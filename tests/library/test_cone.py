"""UPGrad's projections, against the conditions that define them, on the gradients themselves.

Shapes: T tasks, N entries.
"""

import numpy as np
import pytest

from paretrain.rules import cone


def unit_gradients() -> dict[str, np.ndarray]:
    """(T, N) each: independent, more than dimensions, in pairs that are equal or opposite, and of sum 0."""
    generator = np.random.default_rng(0)
    free_TN = generator.standard_normal((40, 60))
    found = {
        "independent": free_TN,
        "alike": free_TN + 0.5,
        "low rank": generator.standard_normal((40, 12)),
        "equal pairs": np.repeat(free_TN[:20], 2, axis=0),
        "opposite pairs": np.concatenate([free_TN[:20], -free_TN[:20]]),
        "stationary": free_TN - free_TN.mean(axis=0),
        "one": free_TN[:1],
    }
    return {name: each_TN / np.linalg.norm(each_TN, axis=1, keepdims=True) for name, each_TN in found.items()}


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("pivoting did not end")


@pytest.mark.parametrize("method", ["pivoting", "active set"])
@pytest.mark.parametrize("gradients_TN", unit_gradients().values(), ids=unit_gradients())
def test_each_projection_opposes_no_task_and_is_the_nearest(
    method: str, gradients_TN: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "pivoting":
        monkeypatch.setattr(cone, "nnls", refuse)
    else:
        monkeypatch.setattr(cone, "ROUNDS", 0)
    v_TT = cone.project(gradients_TN @ gradients_TN.T)
    added_TT, products_TT = v_TT - np.eye(len(v_TT)), v_TT @ gradients_TN @ gradients_TN.T
    assert (added_TT >= 0).all()
    assert products_TT.min() > -1e-12
    assert np.abs(added_TT * products_TT).max() < 1e-12  # Only gradients on the cone's edge are added.


def test_a_gram_matrix_that_rounding_made_indefinite_has_projections() -> None:
    gradients_TN = unit_gradients()["low rank"]
    cosines_TT = (gradients_TN.astype(np.float32) @ gradients_TN.astype(np.float32).T).astype(np.float64)
    assert np.linalg.eigvalsh(cosines_TT).min() < -1e-8
    assert (cone.project(cosines_TT) @ cosines_TT).min() > -1e-4
