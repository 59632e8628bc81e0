"""Independent replicates of many jobs over processes, each with its own seed."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from rich.progress import track

Job = TypeVar("Job")

FEWEST = 16
"""Replicates before a standard error is believed."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def replicate(
    function: Callable[[Job, np.random.Generator], float | np.ndarray],
    jobs: Sequence[tuple[Job, int]],
    *,
    seed: int,
    processes: int,
    label: str,
    precision: float = 0.0,
) -> list[np.ndarray]:
    """Call `function` so many times for each job; return each job's results, one a row, in the jobs' order.

    Replicate k of job j draws from the seed (seed, j, k), whatever the number of processes. A job of plain numbers ends
    early, after FEWEST replicates or more, once its standard error is at most `precision` times its mean.
    """
    results: list[np.ndarray] = [np.empty(0)] * len(jobs)
    with one_thread_each(), ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(_several, function, job, count, seed, number, precision): number
            for number, (job, count) in enumerate(jobs)
        }
        for future in track(as_completed(futures), description=label, total=len(jobs)):
            results[futures[future]] = future.result()
    return results


def _several(
    function: Callable[[Job, np.random.Generator], float | np.ndarray],
    job: Job,
    count: int,
    seed: int,
    number: int,
    precision: float,
) -> np.ndarray:
    results: list[float | np.ndarray] = []
    for k in range(count):
        results.append(function(job, np.random.default_rng((seed, number, k))))
        if precision and k + 1 >= FEWEST and _relative_error(np.array(results)) <= precision:
            break
    return np.array(results)


def _relative_error(results_K: np.ndarray) -> float:
    return float(results_K.std(ddof=1) / len(results_K) ** 0.5 / abs(results_K.mean()))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let processes that start within the block use one thread each: the processes fill the cores already."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
