"""Where problems come from, one file a task; and what the trainer needs to know of a task."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Problem(Protocol):
    """Anything with a prompt; what else it holds is between the task and its verifier."""

    prompt: str


@dataclass
class Task:
    """Three functions: where problems come from, and how completions are judged."""

    draw: Callable[[random.Random], Problem]  # a random problem
    check_outcome: Callable[[Problem, str, bool], bool]  # (problem, completion, reached eos?): the verifiable reward
    is_faithful: Callable[[Problem, str], bool] | None = (
        None  # (problem, completion): for measurement and the oracle only
    )
