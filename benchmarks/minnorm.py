"""Time the min-norm solver and its peers with one thread, side by side:  python -m benchmarks.minnorm [--quick]

The structures of the T gradients are those that occur in multi-task training. A warm solve starts from the last support
after every gradient has changed by 5 %. All answers are compared in float64 by gap / (trace(M) / T). The solvers
alternate on the same matrix; times are the best turn of each in CPU milliseconds, which other load affects least. The
last line printed is one JSON object.
"""

import argparse
import json
import math
import time
from collections.abc import Callable

import numpy as np
import quadprog
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torchjd.aggregation import MGDAWeighting

from paretrain.minnorm import solve

SIZES = (2, 10, 40, 100, 400, 1000, 4096)
QUICK_SIZES = (2, 10, 40, 100, 400, 1000)
# A peer that failed or spent this long (seconds) at one size is left out at the larger ones.
PATIENCE_SECONDS = {True: 0.1, False: 0.3}
REPEAT_SECONDS = {True: 0.02, False: 0.3}
OWN_REPEATS = 4  # measure our solver at least this often: at T = 1000 one repeat uses up the quick budget

Solver = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def orthogonal(rng: np.random.Generator, T: int) -> np.ndarray:
    return np.diag(rng.uniform(0.5, 2.0, T))


def independent(rng: np.random.Generator, T: int) -> np.ndarray:
    return rng.standard_normal((T, 2 * T))


def correlated(rng: np.random.Generator, T: int) -> np.ndarray:
    return rng.standard_normal((T, 2 * T)) + 2 * rng.standard_normal(2 * T)


def scales(rng: np.random.Generator, T: int) -> np.ndarray:
    """Return gradients with norms over six decades, so a Gram matrix over twelve."""
    return independent(rng, T) * 10 ** np.clip(rng.standard_normal((T, 1)), -3, 3)


def low_rank_inside(rng: np.random.Generator, T: int) -> np.ndarray:
    """Return gradients of rank T/4 with zero in their hull: the value is 0 and the answer is not unique."""
    return rng.standard_normal((T, math.ceil(T / 4)))


def low_rank_outside(rng: np.random.Generator, T: int) -> np.ndarray:
    rank = math.ceil(T / 4)
    return rng.standard_normal((T, rank)) + 2 * rng.standard_normal(rank)


def duplicated(rng: np.random.Generator, T: int) -> np.ndarray:
    distinct = independent(rng, T)[: math.ceil(T / 4)] + 0.5 * rng.standard_normal(2 * T)
    return distinct[rng.integers(0, len(distinct), T)]


def collinear(rng: np.random.Generator, T: int) -> np.ndarray:
    return rng.standard_normal(2 * T) + 1e-4 * rng.standard_normal((T, 2 * T))


def zero_rows(rng: np.random.Generator, T: int) -> np.ndarray:
    gradients = independent(rng, T)
    gradients[::7] = 0.0
    return gradients


STRUCTURES = (
    orthogonal,
    independent,
    correlated,
    scales,
    low_rank_inside,
    low_rank_outside,
    duplicated,
    collinear,
    zero_rows,
)


def grams(structure: Callable[..., np.ndarray], T: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a Gram matrix, and that after a 5 % change of every gradient."""
    rng = np.random.default_rng(T)
    now = structure(rng, T)
    change = rng.standard_normal(now.shape)
    change *= 0.05 * np.linalg.norm(now, axis=1, keepdims=True) / np.linalg.norm(change, axis=1, keepdims=True)
    later = now + change
    return now @ now.T, later @ later.T


def paretrain(gram_TT: np.ndarray, support: np.ndarray | None) -> np.ndarray:
    return solve(gram_TT, support=support).alpha_T


def goldfarb_idnani(gram_TT: np.ndarray, support: np.ndarray | None) -> np.ndarray:
    T = len(gram_TT)
    scale = np.trace(gram_TT) / T or 1.0
    constraints = np.concatenate([np.ones((T, 1)), np.eye(T)], axis=1)
    bounds = np.zeros(T + 1)
    bounds[0] = 1.0
    # quadprog needs a positive definite matrix; 1e-12 is the smallest ridge with which it survives these structures.
    hessian = gram_TT / scale + 1e-12 * np.eye(T)
    return quadprog.solve_qp(hessian, np.zeros(T), constraints, bounds, 1)[0]


def lawson_hanson(gram_TT: np.ndarray, support: np.ndarray | None) -> np.ndarray:
    T = len(gram_TT)
    scale = np.trace(gram_TT) / T or 1.0
    factor = np.linalg.cholesky(gram_TT / scale + 1.0 + 1e-12 * np.eye(T))
    x, _ = nnls(factor.T, np.linalg.solve(factor, np.ones(T)))
    return x / x.sum()


mgda = MGDAWeighting()


def torchjd(gram_TT: np.ndarray, support: np.ndarray | None) -> np.ndarray:
    return mgda(torch.from_numpy(gram_TT)).numpy()


PEERS: dict[str, Solver] = {"quadprog": goldfarb_idnani, "nnls": lawson_hanson, "torchjd": torchjd}


def relative_gap(gram_TT: np.ndarray, alpha_T: np.ndarray) -> float:
    alpha_T = np.maximum(alpha_T, 0.0)
    alpha_T = alpha_T / alpha_T.sum()
    product_T = gram_TT @ alpha_T
    scale = np.trace(gram_TT) / len(gram_TT) or 1.0
    return max(0.0, float(alpha_T @ product_T - product_T.min())) / scale


def measure(
    solvers: dict[str, Solver], gram_TT: np.ndarray, support: np.ndarray | None, budget_seconds: float
) -> dict[str, tuple[float, float] | str]:
    """Return the best CPU milliseconds and the relative gap of each solver, or its error.

    Each solver repeats until it has used the budget.
    """
    times: dict[str, list[float]] = {name: [] for name in solvers}
    answers: dict[str, np.ndarray] = {}
    found: dict[str, tuple[float, float] | str] = {}
    least = {name: OWN_REPEATS if name == "paretrain" else 1 for name in solvers}
    while waiting := [
        name
        for name in solvers
        if name not in found and (len(times[name]) < least[name] or sum(times[name]) < budget_seconds)
    ]:
        for name in waiting:
            started = time.process_time()
            try:
                answers[name] = solvers[name](gram_TT, support)
            except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
                found[name] = f"failed: {error}"
            times[name].append(time.process_time() - started)
    for name in answers.keys() - found.keys():
        found[name] = 1e3 * min(times[name]), relative_gap(gram_TT, answers[name])
    return found


def run(quick: bool, console: Console) -> list[dict]:
    rows: list[dict] = []
    for structure in STRUCTURES:
        title = structure.__name__.replace("_", " ")
        table = Table("T", "start", "paretrain", *PEERS, title=f"{title}: CPU ms (relative gap)", title_justify="left")
        tired: set[str] = set()
        for T in QUICK_SIZES if quick else SIZES:
            cold_TT, warm_TT = grams(structure, T)
            support = solve(cold_TT).support
            for start, gram_TT, before in (("cold", cold_TT, None), ("warm", warm_TT, support)):
                console.print(f"{title}: T={T} {start} ...", end="\r", style="dim")
                # The peers have no warm start, so their cold row is enough.
                peers = {name: peer for name, peer in PEERS.items() if start == "cold" and name not in tired}
                found = measure({"paretrain": paretrain, **peers}, gram_TT, before, REPEAT_SECONDS[quick])
                cells = []
                for name in ("paretrain", *PEERS):
                    result = found.get(name, "")
                    if isinstance(result, str):
                        cells.append(result[:24])
                        if result:
                            tired.add(name)
                        continue
                    ms, gap = result
                    if name in PEERS and ms > 1e3 * PATIENCE_SECONDS[quick]:
                        tired.add(name)
                    cells.append(f"{ms:.3f} ({gap:.0e})")
                    rows.append(
                        {"structure": title, "T": T, "start": start, "solver": name, "ms": round(ms, 4), "gap": gap}
                    )
                table.add_row(str(T), start, *cells)
        console.print(table)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.minnorm", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="sizes up to 1000, few repeats: under 40 seconds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = run(quick, Console(width=120))
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
