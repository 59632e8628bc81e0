"""Independent replicates of many jobs over processes, each with its own seed."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from rich.progress import track

Job = TypeVar("Job")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def replicate(
    function: Callable[[Job, np.random.Generator], float | np.ndarray],
    jobs: Sequence[tuple[Job, int]],
    *,
    seed: int,
    processes: int,
    label: str,
) -> list[np.ndarray]:
    """Call `function` so many times for each job; return each job's results, one a row, in the jobs' order.

    Replicate k of job j draws from the seed (seed, j, k), whatever the number of processes.
    """
    results: list[np.ndarray] = [np.empty(0)] * len(jobs)
    with one_thread_each(), ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(_several, function, job, count, seed, number): number
            for number, (job, count) in enumerate(jobs)
        }
        for future in track(as_completed(futures), description=label, total=len(jobs)):
            results[futures[future]] = future.result()
    return results


def _several(
    function: Callable[[Job, np.random.Generator], float | np.ndarray], job: Job, count: int, seed: int, number: int
) -> np.ndarray:
    return np.array([function(job, np.random.default_rng((seed, number, k))) for k in range(count)])


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let processes that start within the block use one thread each: the processes fill the cores already."""
    with environment(dict.fromkeys(_THREAD_VARIABLES, "1")):
        yield


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Give environment variables to the processes that start within the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
