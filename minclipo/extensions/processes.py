"""Several processes, one GPU each, train as one: what they divide, and what they tell each other.

Sampling and the passes through the model take nearly all of a step's time, so these are divided: of B prompts each
process samples its share, of a mini-batch's rows each passes its share. In between `gathered` gives every process the
whole batch, and everything else (rewards, contrast, advantages, metrics, the choice of DAPO) every one of them computes
alike. What is added up at the end is the gradient. So one process and many do the same but for rounding.

The processes are those of torch.distributed's process group (torchrun starts them, runs/launch.py joins them). Without a
group there is one process, and everything here does nothing.

B prompts, G rollouts per prompt, N = B * G rows, T completion tokens.
"""

import random
from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from minclipo.sampler import Rollouts


def several() -> bool:
    return count() > 1


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if several() else 0


def share(items, process: int | None = None):
    """The part of a sequence (or range, or tensor) that is this process's, or that of another one: adjacent items, and
    as many as the others have, give or take one."""
    process = rank() if process is None else process
    size, more = divmod(len(items), count())
    start = process * size + min(process, more)
    return items[start : start + size + (process < more)]


def every(thing) -> list:
    """Each process's thing (anything that can be pickled), in their order. Every process must call it."""
    if not several():
        return [thing]
    things = [None] * count()
    dist.all_gather_object(things, thing)
    return things


def row_numbers(config, numbers: Iterable[int], device=None) -> Tensor | None:
    """Random numbers for the rollouts of these problems of a training, if its TrainConfig asks for row_seeds."""
    if not config.row_seeds:
        return None
    return numbered(f"rollouts {config.seed}", numbers, (config.group_size, config.max_new_tokens)).to(device)


def numbered(stream: str, numbers: Iterable[int], shape: tuple[int, int]) -> Tensor:
    """Random numbers in [0, 1), [B * G, T] for B problems and a shape (G, T). They follow from the stream's name, the
    problem's number and the row: so a rollout is the same whichever process samples it, and beside whatever others."""

    def of_problem(number: int) -> Tensor:
        seed = random.Random(f"{stream} {number}").getrandbits(63)
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

    return torch.cat([of_problem(number) for number in numbers])


def gathered(rollouts: Rollouts, texts: list[str], correct: Tensor) -> tuple[Rollouts, list[str], Tensor]:
    """Rollouts, texts and verdicts of all processes as one batch, in their order: every process gets the same."""
    if not several():
        return rollouts, texts, correct
    device, parts = correct.device, every((moved(rollouts, "cpu"), texts, correct.cpu()))
    rollouts, texts, correct = zip(*parts)
    return moved(Rollouts.join(rollouts), device), sum(texts, []), torch.cat(correct).to(device)


def moved(rollouts: Rollouts, device) -> Rollouts:
    tensors = {name: value.to(device) for name, value in vars(rollouts).items() if isinstance(value, Tensor)}
    return replace(rollouts, **tensors)


def sum_gradients(weights: Iterable[Tensor]) -> None:
    """Add up the gradients of all processes, in place. Of those of a sharded model backward has left the mean."""
    if not several():
        return
    for weight in weights:
        if hasattr(weight, "full_tensor"):
            weight.grad *= count()
        else:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            dist.all_reduce(weight.grad)


def mean_gradients(weights: Iterable[Tensor]) -> None:
    """The mean of all processes' gradients, in place: where each has computed that of the whole batch, they all get
    the same, to the last bit, and what they train stays the same."""
    if several():
        weights = list(weights)
        sum_gradients(weights)
        for weight in weights:
            weight.grad /= count()


def summed(numbers: list[float]) -> list[float]:
    """Sums over all processes, of each number on its own."""
    return [sum(column) for column in zip(*every(numbers))] if several() else numbers


def added(values: Tensor) -> Tensor:
    """The sum of all processes' tensors of one shape, in place."""
    if several():
        dist.all_reduce(values)
    return values
