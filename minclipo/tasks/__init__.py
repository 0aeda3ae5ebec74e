"""Where problems come from, one file a task; and what the trainer needs to know of a task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Problem(Protocol):
    """Anything with a prompt; what else it holds is between the task and its verifier."""

    prompt: str


@dataclass(frozen=True)
class Task:
    """Three functions: where problems come from, and how completions are judged."""

    # (stream, index): problem number `index` of a stream such as "training 0". Equal arguments give equal problems,
    # so the number of problems drawn so far is all that a run needs to remember of its data.
    draw: Callable[[str, int], Problem]
    check_outcome: Callable[[Problem, str, bool], bool]  # (problem, completion, reached eos?): the verifiable reward
    # (problem, completion): verdict on each step found in it; for measurement and the oracle only
    check_steps: Callable[[Problem, str], list[bool]] | None = None
    size: int | None = None  # number of different problems; None: as many as one likes
