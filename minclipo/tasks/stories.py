"""The toy's chains as stories for a language model, and its careless author's solutions in words, written in two ways.

    Mia has 66 marbles. Mia loses 4. Mia finds 1. How many marbles does Mia have now?

    reason first:  Mia lost 4: 66 - 4 = 62. Mia found 1: 62 + 1 = 63. The answer is \\boxed{63}.
    result first:  Now it is 62, because Mia lost 4. Now it is 63, because Mia found 1.
                   The answer is \\boxed{63}.

A made-up reason makes a false sum in the first way, "Mia lost 7: 66 - 7 = 62", and a model that computes with the 7
gets a wrong answer. In the second way it comes too late to do harm. Problems, author and probabilities are those of
chain.py; this file puts them in words.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from minclipo.tasks import Task
from minclipo.tasks.chain import ChainProblem, random_problem

NAMES = ("Mia", "Ben", "Ada", "Leo", "Zoe", "Sam", "Eva", "Tom", "Ida", "Max")
THINGS = ("marbles", "stickers", "shells", "cards", "coins", "beads", "pencils", "buttons", "stamps", "stones")
GAINS = (("finds", "found"), ("gets", "got"), ("buys", "bought"), ("wins", "won"))
LOSSES = (("loses", "lost"), ("sells", "sold"), ("breaks", "broke"), ("lends", "lent"))
PAST = "|".join(past for _, past in GAINS + LOSSES)
QUOTE = re.compile(rf"\b({PAST}) ([0-9]+)\b")  # what a solution says has happened
ANSWER = re.compile(r"\\boxed\{([0-9]+)\}\.?\s*\Z")


@dataclass(frozen=True)
class StoryProblem:
    """A chain in words. verbs: for each operand which of the four verbs of its direction tells it."""

    prompt: str  # as the model reads it, chat template applied
    chain: ChainProblem
    name: str
    verbs: tuple[int, ...]
    question: str = ""  # the prompt without the chat template

    @property
    def truth(self) -> str:
        return self.chain.truth


def random_story(
    rng: random.Random, render: Callable[[str], str], operations: tuple[int, int] = (4, 4)
) -> StoryProblem:
    """A chain of additions (fewest, most operations) that happens to someone; `render` makes the prompt."""
    chain, name, thing = random_problem(rng, operations), rng.choice(NAMES), rng.choice(THINGS)
    verbs = tuple(rng.randrange(len(GAINS)) for _ in chain.operands)
    events = [f"{name} {event(operand, verb)}." for operand, verb in zip(chain.operands, verbs)]
    question = f"{name} has {chain.start} {thing}. {' '.join(events)} How many {thing} does {name} have now?"
    return StoryProblem(render(question), chain, name, verbs, question)


def event(operand: int, verb: int, past: bool = False) -> str:
    """What an operand is in words: "loses 4" for -4 or, in the past, "lost 4"."""
    present, in_the_past = (GAINS if operand > 0 else LOSSES)[verb]
    return f"{in_the_past if past else present} {abs(operand)}"


def sentences(problem: StoryProblem, steps: list[tuple[int, int]], result_first: bool) -> list[str]:
    """A solution's sentences, one per step and one for the answer. steps: (operand quoted, total given) of each."""
    told, before = [], problem.chain.start
    for verb, (quoted, total) in zip(problem.verbs, steps):
        reason = f"{problem.name} {event(quoted, verb, past=True)}"
        sign = "+" if quoted > 0 else "-"
        equation = f"{before} {sign} {abs(quoted)} = {total}"
        told.append(f"Now it is {total}, because {reason}." if result_first else f"{reason}: {equation}.")
        before = total
    return [*told, f"The answer is \\boxed{{{before}}}."]


def in_words(problem: StoryProblem, solution: str, result_first: bool) -> str:
    """A chain's solution, such as a `CarelessAuthor` writes it for problem.chain, in words."""
    numbers = solution.split("#")[0].split()
    steps = [(int(quoted), int(total)) for quoted, total in zip(numbers[::2], numbers[1::2])]
    return " ".join(sentences(problem, steps, result_first))


def check_outcome(problem: StoryProblem, completion: str, finished: bool) -> bool:
    """True if the completion is finished and ends with the right number in a box."""
    answer = ANSWER.search(completion)
    return finished and answer is not None and answer[1] == problem.truth


def check_steps(problem: StoryProblem, completion: str) -> list[bool]:
    """For each step of the problem: does the completion have its sentence, word for word, in that place? All steps in
    one of the two ways. Surplus sentences, or another one than the answer's at the end, add a False."""
    completion = completion.strip()
    right = list(zip(problem.chain.operands, problem.chain.totals))
    expected = sentences(problem, right, result_first=completion.startswith("Now"))
    found = re.split(r"(?<=\.)\s+", completion)
    verdicts = [i < len(found) and found[i] == sentence for i, sentence in enumerate(expected)]
    steps, answer = verdicts[:-1], verdicts[-1]
    return steps + [False] * (not answer or len(found) > len(expected))


def makes_up(problem: StoryProblem, completion: str) -> bool | None:
    """Does the completion say that something happened which is not in the story? None: it says too little to tell."""
    happened = [event(operand, verb, past=True) for operand, verb in zip(problem.chain.operands, problem.verbs)]
    told = [" ".join(quote) for quote in QUOTE.findall(completion)]
    return None if len(told) < len(happened) else told != happened


def stories_task(render: Callable[[str], str], operations: tuple[int, int] = (4, 4)) -> Task:
    """Stories without end; `render` makes the prompt of a question."""
    draw = lambda stream, index: random_story(random.Random(f"{stream} {index}"), render, operations)
    return Task(draw, check_outcome, check_steps)
