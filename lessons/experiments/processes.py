"""Independent runs side by side: one process each, so that runs too small for the machine share it."""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch


def in_processes(work: Callable, jobs: Iterable[tuple], processes: int, threads: int) -> None:
    """work(*job) for each job, `processes` at a time with `threads` CPU threads each. Raises what a job has raised, and
    begins no other job then; 1 process: here, one after the other."""
    torch.set_num_threads(threads)
    if processes == 1:
        for job in jobs:
            work(*job)
        return
    fresh = multiprocessing.get_context("spawn")  # a forked process that inherits threads, or a GPU, may hang
    pool = ProcessPoolExecutor(processes, fresh, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        for done in as_completed([pool.submit(work, *job) for job in jobs]):
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)
