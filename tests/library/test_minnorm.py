"""The min-norm solver against independent oracles, on every structure that gradients take.

Shapes: T tasks, S the tasks of a support, N supports, K = S + 1.

The file is long because each kind of Gram matrix is solved under the same certificates.
"""

from itertools import combinations

import numpy as np
import pytest
import quadprog
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from benchmarks.minnorm import STRUCTURES, grams
from paretrain.minnorm import MinNorm, search, solve


def touching(rng: np.random.Generator, T: int) -> np.ndarray:
    """Zero lies on the boundary of the hull, in low rank: degenerate in every way."""
    gradients = rng.standard_normal((T, max(2, T // 4)))
    gradients[:, 0] = np.abs(gradients[:, 0])
    gradients[: max(2, T // 2), 0] = 0.0
    return gradients


def halfspace(rng: np.random.Generator, T: int) -> np.ndarray:
    """Low rank, zero barely outside the hull."""
    gradients = rng.standard_normal((T, max(2, T // 4)))
    gradients[:, 0] = np.abs(gradients[:, 0]) + 0.1
    return gradients


def critical(rng: np.random.Generator, T: int) -> np.ndarray:
    """Rank T/2, where random gradients contain zero with probability one half (Wendel 1962): the hardest rank."""
    return rng.standard_normal((T, max(1, T // 2)))


def opposed(rng: np.random.Generator, T: int) -> np.ndarray:
    half = rng.standard_normal(((T + 1) // 2, 2 * T))
    return np.concatenate([half, -half + 1e-3 * rng.standard_normal(half.shape)])[:T]


def nearly_equal_pairs(rng: np.random.Generator, T: int) -> np.ndarray:
    half = rng.standard_normal(((T + 1) // 2, 2 * T)) + 0.5 * rng.standard_normal(2 * T)
    return np.concatenate([half, half])[:T] + 1e-8 * rng.standard_normal((T, 2 * T))


def scaled_low_rank(rng: np.random.Generator, T: int) -> np.ndarray:
    return rng.standard_normal((T, max(1, T // 4))) * 10 ** rng.uniform(-3, 3, (T, 1))


HARD = (touching, halfspace, critical, opposed, nearly_equal_pairs, scaled_low_rank)


def scale_of(gram_TT: np.ndarray) -> float:
    return float(np.trace(gram_TT)) / len(gram_TT)


def assert_certified(gram_TT: np.ndarray, answer: MinNorm, tolerance: float = 1e-12) -> None:
    """Recomputes everything that the answer claims."""
    alpha_T = answer.alpha_T
    assert alpha_T.dtype == np.float64
    assert alpha_T.min() >= 0
    assert alpha_T.sum() == pytest.approx(1, abs=1e-12)
    product_T = gram_TT @ alpha_T
    gap = alpha_T @ product_T - product_T.min()
    rounding = 1e-14 * scale_of(gram_TT)
    assert gap <= tolerance * scale_of(gram_TT) + rounding
    assert answer.gap == pytest.approx(max(gap, 0), abs=rounding)
    assert answer.value == pytest.approx(alpha_T @ product_T, abs=rounding)
    assert answer.certified
    assert (answer.support == np.flatnonzero(alpha_T)).all()


def value_by_enumeration(gram_TT: np.ndarray) -> float:
    """The smallest value over all supports, each with the minimum of its equality-constrained problem if feasible."""
    gram_TT = gram_TT / (unit := scale_of(gram_TT) or 1.0)
    best = gram_TT.diagonal().min()
    for size in range(2, len(gram_TT) + 1):
        supports_NS = np.array(list(combinations(range(len(gram_TT)), size)))
        kkt_NKK = np.ones((len(supports_NS), size + 1, size + 1))
        kkt_NKK[:, :size, :size] = blocks_NSS = gram_TT[supports_NS[:, :, None], supports_NS[:, None, :]]
        kkt_NKK[:, size, size] = 0.0
        alpha_NS = np.linalg.pinv(kkt_NKK, rcond=1e-12, hermitian=True)[:, :size, size]
        feasible_N = alpha_NS.min(axis=1) >= -1e-9
        alpha_NS = np.maximum(alpha_NS[feasible_N], 0)
        alpha_NS /= alpha_NS.sum(axis=1, keepdims=True)
        values_N = np.einsum("ns,nst,nt->n", alpha_NS, blocks_NSS[feasible_N], alpha_NS)
        best = min(best, values_N.min(initial=np.inf))
    return float(best) * unit


@pytest.mark.long
@pytest.mark.parametrize("structure", STRUCTURES + HARD, ids=lambda structure: structure.__name__)
@pytest.mark.parametrize("T", [1, 2, 3, 5, 8, 12])
def test_value_is_the_best_over_all_supports(structure, T):
    gram_TT, _ = grams(structure, T)
    answer = solve(gram_TT)
    assert_certified(gram_TT, answer)
    assert answer.value == pytest.approx(value_by_enumeration(gram_TT), rel=1e-9, abs=1e-11 * scale_of(gram_TT))


@pytest.mark.long
@pytest.mark.parametrize("structure", STRUCTURES + HARD, ids=lambda structure: structure.__name__)
@pytest.mark.parametrize("T", [17, 40, 100, 400])
def test_certified_on_every_structure_cold_and_warm(structure, T):
    before_TT, gram_TT = grams(structure, T)
    before = solve(before_TT)
    assert_certified(before_TT, before)
    cold, warm = solve(gram_TT), solve(gram_TT, support=before.support)
    assert_certified(gram_TT, cold)
    assert_certified(gram_TT, warm)
    assert warm.value == pytest.approx(cold.value, abs=4e-12 * scale_of(gram_TT))
    assert max(cold.iterations, warm.iterations, before.iterations) <= 3 * T + 100


@pytest.mark.long
def test_certified_at_a_thousand_tasks():
    before_TT, gram_TT = grams(STRUCTURES[2], 1000)
    answer = solve(before_TT)
    assert_certified(before_TT, answer)
    assert_certified(gram_TT, solve(gram_TT, support=answer.support))


@pytest.mark.long
@pytest.mark.parametrize(
    "structure",
    [structure for structure in STRUCTURES if structure.__name__ not in ("collinear", "zero_rows")],
    ids=lambda structure: structure.__name__,
)
def test_float32_factors_lose_no_digit(structure, monkeypatch):
    """Sizes at which the linear systems are factored in float32 and refined."""
    T = 560
    before_TT, gram_TT = grams(structure, T)
    before = solve(before_TT)
    assert_certified(before_TT, before)
    warm = solve(gram_TT, support=before.support)
    assert_certified(gram_TT, warm)
    assert (warm.alpha_T == solve(gram_TT, support=before.support).alpha_T).all()
    monkeypatch.setattr(search, "SINGLE_FROM", T + 1)
    in_double = solve(gram_TT, support=before.support)
    assert warm.value == pytest.approx(in_double.value, abs=4e-12 * scale_of(gram_TT))


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_float32_factors_bear_any_unit_and_an_immediate_answer(unit):
    for gram_TT in (unit * np.eye(600), unit * np.diag(np.linspace(1, 2, 600))):
        answer = solve(gram_TT)
        assert_certified(gram_TT, answer)
        np.testing.assert_allclose(answer.alpha_T * gram_TT.diagonal(), answer.value, rtol=1e-9)


def test_agrees_with_quadprog():
    T = 60
    gradients = np.random.default_rng(0).standard_normal((T, 90)) + 0.3
    gram_TT = gradients @ gradients.T
    constraints = np.concatenate([np.ones((T, 1)), np.eye(T)], axis=1)
    expected_T = quadprog.solve_qp(gram_TT, np.zeros(T), constraints, np.eye(T + 1)[0], 1)[0]
    np.testing.assert_allclose(solve(gram_TT).alpha_T, expected_T, atol=1e-9)


def test_agrees_with_slsqp():
    T = 12
    gradients = np.random.default_rng(1).standard_normal((T, 20)) + 0.2
    gram_TT = gradients @ gradients.T
    expected = minimize(
        lambda alpha_T: alpha_T @ gram_TT @ alpha_T,
        np.full(T, 1 / T),
        jac=lambda alpha_T: 2 * gram_TT @ alpha_T,
        bounds=[(0, 1)] * T,
        constraints={"type": "eq", "fun": lambda alpha_T: alpha_T.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    answer = solve(gram_TT)
    np.testing.assert_allclose(answer.alpha_T, expected.x, atol=1e-5)
    assert answer.value <= expected.fun + 1e-10


def test_orthogonal_gradients_have_the_known_answer():
    squared_T = np.array([1.0, 2.0, 4.0, 1e-6, 1e6])
    answer = solve(np.diag(squared_T))
    np.testing.assert_allclose(answer.alpha_T, (1 / squared_T) / (1 / squared_T).sum(), rtol=1e-9)
    assert answer.value == pytest.approx(1 / (1 / squared_T).sum(), rel=1e-9)


@pytest.mark.parametrize(
    ("gram_TT", "expected_T"),
    [
        ([[3.0]], [1.0]),
        ([[2.0, 0.0], [0.0, 1.0]], [1 / 3, 2 / 3]),
        ([[1.0, 1.0], [1.0, 4.0]], [1.0, 0.0]),
        ([[4.0, 1.0], [1.0, 1.0]], [0.0, 1.0]),
        ([[1.0, -1.0], [-1.0, 1.0]], [0.5, 0.5]),
    ],
)
def test_one_and_two_tasks_in_closed_form(gram_TT, expected_T):
    answer = solve(np.array(gram_TT))
    np.testing.assert_allclose(answer.alpha_T, expected_T, atol=1e-15)
    assert answer.method == "closed_form"
    assert answer.iterations == 0


def test_zero_gradients_take_the_weight_and_a_zero_matrix_shares_it():
    gradients = np.random.default_rng(2).standard_normal((20, 40))
    gradients[7] = 0.0
    answer = solve(gradients @ gradients.T)
    assert answer.alpha_T[7] == 1
    assert answer.value == answer.gap == 0
    nothing = solve(np.zeros((3, 3)))
    np.testing.assert_array_equal(nothing.alpha_T, np.full(3, 1 / 3))
    assert nothing.certified
    assert nothing.value == nothing.gap == 0


def test_short_gradients_are_solved_to_their_own_scale():
    """Beside gradients a million times longer, the direction must still descend the short tasks."""
    rng = np.random.default_rng(3)
    gradients = rng.standard_normal((60, 120))
    gradients[20:] *= 1e6
    gram_TT = gradients @ gradients.T
    answer = solve(gram_TT)
    assert (gram_TT @ answer.alpha_T)[:20].min() >= answer.value * (1 - 1e-6)


@pytest.mark.parametrize("rank", [20, 60, 400])
def test_a_float32_gram_is_certified_to_its_own_precision(rank):
    """Summed in float32, a low-rank Gram is indefinite by about 1e-7."""
    gradients = np.random.default_rng(4).standard_normal((200, rank)).astype(np.float32)
    gram_TT = (gradients @ gradients.T).astype(np.float64)
    assert_certified(gram_TT, solve(gram_TT, tolerance=1e-6), tolerance=1e-6)
    exact = gradients.astype(np.float64) @ gradients.T.astype(np.float64)
    assert solve(gram_TT, tolerance=1e-6).value == pytest.approx(solve(exact).value, abs=4e-6 * scale_of(exact))


def test_an_indefinite_matrix_ends_and_an_unreachable_tolerance_is_admitted():
    rng = np.random.default_rng(5)
    symmetric = rng.standard_normal((50, 50))
    symmetric = symmetric + symmetric.T
    np.fill_diagonal(symmetric, np.abs(symmetric.diagonal()))
    answer = solve(symmetric)
    assert answer.alpha_T.sum() == pytest.approx(1)
    assert answer.certified == (answer.gap <= 1e-12 * scale_of(symmetric))
    gradients = rng.standard_normal((50, 60))
    assert not solve(gradients @ gradients.T, tolerance=0.0).certified


@pytest.mark.parametrize(
    ("gram_TT", "message"),
    [
        (np.zeros((2, 3)), "square"),
        (np.zeros(4), "square"),
        (np.zeros((0, 0)), "square"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "finite"),
        (np.array([[1.0, 0.0], [0.0, np.inf]]), "finite"),
        (np.array([[1.0, -np.inf, np.inf], [-np.inf, 1.0, 0.0], [np.inf, 0.0, 1.0]]), "finite"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (np.array([[1.0, 0.0], [0.0, -1.0]]), "diagonal"),
    ],
)
def test_refuses_what_is_no_gram(gram_TT, message):
    with pytest.raises(ValueError, match=message):
        solve(gram_TT)


def test_a_support_of_other_tasks_is_refused():
    with pytest.raises(IndexError):
        solve(np.eye(3) + 0.1, support=np.array([1, 3]))


def test_leaves_the_gram_alone_and_repeats_itself():
    gram_TT, _ = grams(STRUCTURES[1], 300)
    untouched_TT = gram_TT.copy()
    first, second = solve(gram_TT), solve(gram_TT)
    np.testing.assert_array_equal(gram_TT, untouched_TT)
    np.testing.assert_array_equal(first.alpha_T, second.alpha_T)


@st.composite
def gradients(draw) -> np.ndarray:
    """Small integers: exact duplicates, zero rows, opposed rows and exact ties are common."""
    T, D = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    entries = draw(st.lists(st.integers(-3, 3), min_size=T * D, max_size=T * D))
    return np.array(entries, dtype=float).reshape(T, D)


@pytest.mark.long
@settings(max_examples=200)
@given(gradients())
def test_any_small_problem_is_certified_and_optimal(rows):
    gram_TT = rows @ rows.T
    answer = solve(gram_TT)
    assert_certified(gram_TT, answer)
    assert answer.value == pytest.approx(value_by_enumeration(gram_TT), abs=1e-9)


@pytest.mark.long
@settings(max_examples=100)
@given(gradients(), st.randoms(use_true_random=False))
def test_permuted_tasks_permute_the_answer(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    gram_TT = rows @ rows.T
    permuted_TT = gram_TT[np.ix_(order, order)]
    answer, permuted = solve(gram_TT), solve(permuted_TT)
    # alpha may differ where the optimum is not unique; the combined gradient never does.
    np.testing.assert_allclose(permuted.alpha_T @ rows[order], answer.alpha_T @ rows, atol=1e-5)
    if np.linalg.matrix_rank(gram_TT + 1) == len(rows):
        np.testing.assert_allclose(permuted.alpha_T, answer.alpha_T[order], atol=1e-6)


@pytest.mark.long
@settings(max_examples=100)
@given(gradients(), st.integers(-200, 200))
def test_the_unit_of_the_loss_does_not_matter(rows, exponent):
    gram_TT = rows @ rows.T
    answer, scaled = solve(gram_TT), solve(gram_TT * 2.0**exponent)
    np.testing.assert_allclose(scaled.alpha_T @ rows, answer.alpha_T @ rows, atol=1e-5)
    assert scaled.value / 2.0**exponent == pytest.approx(answer.value, abs=1e-9)
    assert scaled.certified


@pytest.mark.long
@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(-30, 30), st.integers(0, 6), st.data())
def test_few_tasks_of_any_scale_with_ties_are_optimal_cold_and_warm(T, seed, exponent, decades, data):
    """The sizes that the fewest numpy calls serve: copies, opposites and zeros among gradients of unequal length."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((T, data.draw(st.integers(1, 2 * T)))) * 10 ** rng.uniform(
        -decades / 2, decades / 2, (T, 1)
    )
    for _ in range(data.draw(st.integers(0, 3))):
        rows[rng.integers(T)] = data.draw(st.sampled_from([1.0, 1.0, -1.0, 0.0, 2.0])) * rows[rng.integers(T)]
    gram_TT = rows @ rows.T * 10.0**exponent
    best = value_by_enumeration(gram_TT)
    support = np.array(data.draw(st.lists(st.integers(0, T - 1), max_size=T)), dtype=int)
    for answer in (solve(gram_TT), solve(gram_TT, support=support)):
        assert_certified(gram_TT, answer)
        assert answer.value == pytest.approx(best, abs=1e-10 * scale_of(gram_TT))


@pytest.mark.long
@settings(max_examples=100)
@given(gradients(), st.data())
def test_a_duplicated_task_changes_nothing_for_the_encoder(rows, data):
    twin = data.draw(st.integers(0, len(rows) - 1))
    doubled = np.concatenate([rows, rows[twin : twin + 1]])
    answer, with_twin = solve(rows @ rows.T), solve(doubled @ doubled.T)
    np.testing.assert_allclose(with_twin.alpha_T @ doubled, answer.alpha_T @ rows, atol=1e-5)


@pytest.mark.long
@settings(max_examples=100)
@given(gradients(), st.data())
def test_any_warm_start_gives_the_same_point(rows, data):
    gram_TT = rows @ rows.T
    support = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1))), dtype=int)
    warm = solve(gram_TT, support=support)
    assert_certified(gram_TT, warm)
    np.testing.assert_allclose(warm.alpha_T @ rows, solve(gram_TT).alpha_T @ rows, atol=1e-5)
