"""Where problems come from and how completions are judged: one file per task, no torch. README.md has more.

A task of your own is a `Task` of two or three functions; sums.py is a short example.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Problem(Protocol):
    """Anything with a prompt; what else it holds is between the task and its verifier.

    Two more are shown to people where a problem has them, as field or property: `truth`, the expected answer, and
    `question`, the prompt without the tokens of a chat template. Nothing is trained on them.
    """

    prompt: str


@dataclass(frozen=True)
class Task:
    """Three functions: where problems come from, and how a completion is judged."""

    # (stream, index): problem number `index` of a stream such as "training 0". Equal arguments give equal problems,
    # so the number of problems drawn so far is all that a run needs to remember of its data.
    draw: Callable[[str, int], Problem]
    check_outcome: Callable[[Problem, str, bool], bool]  # (problem, completion, reached eos?): the verifiable reward
    # (problem, completion): verdict on each step found in it; for measurement and the oracle only
    check_steps: Callable[[Problem, str], list[bool]] | None = None
    size: int | None = None  # number of different problems; None: unlimited

    def outcomes(self, problems: list[Problem], texts: list[str], finished: list[bool]) -> list[bool]:
        """Is each completion's answer right? Every problem has equally many completions, one after another.

        ValueError for a verdict that is neither True nor False (1 and 0 will do): a function without return, a match, a
        grade of 0.5 would each count as something else than was meant.
        """
        verdicts = [self.check_outcome(*row) for row in zip(self._repeated(problems, texts), texts, finished)]
        for verdict in verdicts:
            if verdict not in (True, False):
                raise ValueError(f"check_outcome must return True or False (bool(...) makes it so), found {verdict!r}")
        return [bool(verdict) for verdict in verdicts]

    def steps(self, problems: list[Problem], texts: list[str], correct: list[bool]) -> list[list[bool] | None]:
        """The verdicts on the steps of each completion whose answer is right, None for the others; as in `outcomes`."""
        rows = zip(self._repeated(problems, texts), texts, correct)
        verdicts = [self.check_steps(problem, text) if right else None for problem, text, right in rows]
        for steps, right in zip(verdicts, correct):
            if right and not isinstance(steps, list):
                raise ValueError(f"check_steps must return a list with a verdict per step, found {steps!r}")
        return verdicts

    @staticmethod
    def _repeated(problems: list[Problem], texts: list[str]) -> list[Problem]:
        """The problem of each text."""
        assert len(texts) % len(problems) == 0, f"{len(texts)} texts do not belong to {len(problems)} problems"
        return [problem for problem in problems for _ in range(len(texts) // len(problems))]
