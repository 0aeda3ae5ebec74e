"""Independent runs side by side: one process each, so that runs too small for the machine share it."""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice

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
    waiting, running = iter(jobs), set()
    try:
        while True:  # the pool cannot take back what it has been given, so it is given no more than it can run
            running |= {pool.submit(work, *job) for job in islice(waiting, processes - len(running))}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
    finally:
        pool.shutdown()
