"""Word problems from files: GSM8K, MATH, DAPO-Math-17k, or your own.

The caller names the fields of question and answer. The question is a text or a chat; the answer may be bare ("72"), a
GSM8K solution ("... #### 72") or a MATH one ("... \\boxed{72}").
"""

import functools
import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from minclipo.tasks import Task
from minclipo.tasks.data_files import records, without_commands
from minclipo.tasks.equations import check_equations
from minclipo.verifier import verify

MOST_KEPT = 2**31  # characters of questions and answers, all files together; a problem by itself counts like 200


@dataclass(frozen=True)
class WordProblem:
    prompt: str  # as the model reads it, chat template applied
    question: str
    truth: str  # the reference answer, or a worked solution that ends in it


class RawProblem(NamedTuple):
    place: str  # file and line, for messages
    question: str | list[dict]  # a text, or the messages of a chat
    truth: str

    def text(self) -> str:
        """All that the question says."""
        is_text = isinstance(self.question, str)
        return self.question if is_text else "\n".join(message["content"] for message in self.question)


def read_problems(paths: list[Path], question_field: str, answer_field: str) -> list[RawProblem]:
    """The problems of these files. A field "a.b" is b of the object in a. Errors name the file, the line, the field."""
    problems, kept = [], 0
    for place, record in (found for path in paths for found in records(path)):
        question = field_of(place, record, question_field)
        is_chat = isinstance(question, list) and all(isinstance(message, dict) for message in question)
        truth = text_in(place, answer_field, field_of(place, record, answer_field))
        question = (chat_in if is_chat else text_in)(place, question_field, question)
        problems.append(RawProblem(place, question, truth))
        kept += 200 + len(str(question)) + len(truth)  # a message may hold more than its content
        if kept > MOST_KEPT:
            raise ValueError(f"{place}: there is more text up to here than fits in memory: use a part of the files")
    if not problems:
        raise ValueError(f"{', '.join(map(str, paths))} holds no problems")
    return problems


def field_of(place: str, record: dict, field: str):
    """What stands in a field. A name with a dot that is no field itself leads into objects."""
    value, rest = record, field
    while rest and isinstance(value, dict):
        name, _, rest = (rest, "", "") if rest in value else rest.partition(".")
        value = value.get(name)
    if rest or value in (None, "", [], {}):
        found = printable(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{place}: no field {field!r} with something in it; found: {found}")
    return value


def printable(names: Iterable) -> str:
    """The names of fields as a message shows them, whatever a stranger's file calls them."""
    return without_commands(", ".join(map(str, names))[:200])


def text_in(place: str, field: str, value) -> str:
    """A text or a number, or a list of one of these. The Python text of anything else would be a silent mistake."""
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, float | Decimal) and math.isfinite(value) or type(value) is int:
        value = str(value)
    if isinstance(value, dict):
        inside = printable([f"{field}.{name}" for name in value])
        raise ValueError(f"{place}: field {field!r} is an object: name one of the fields in it, as {inside}")
    if not isinstance(value, str) or not value.strip():
        found = f"a list of {len(value)}" if isinstance(value, list) else f"{type(value).__name__} {value!r:.40}"
        raise ValueError(
            f"{place}: field {field!r} must be one text or number, found {found}. Write one value per problem"
        )
    return whole(place, field, value)


def chat_in(place: str, field: str, messages: list[dict]) -> list[dict]:
    """The messages of a chat in which it is the model's turn."""
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise ValueError(f"{place}: a message of the chat in {field!r} lacks a role, or a content that is a text")
        whole(place, field, message["content"])
    if messages[-1]["role"] != "user":
        raise ValueError(f"{place}: the chat in {field!r} must end with the user's message: take out what follows it")
    return messages


def whole(place: str, field: str, text: str) -> str:
    """The text, which must be one that a tokenizer can read: JSON can write half a character, such as \\ud83d."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ValueError(f"{place}: field {field!r} holds half a character, {half}: take it out of the file") from error
    return text


MARK = re.compile(r"####|\\(?:boxed|fbox)")  # what an answer follows
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def is_prose(truth: str) -> bool:
    """True for sentences without a mark: most likely a solution whose answer the verifier will not find."""
    return not MARK.search(truth) and len(WORD.findall(truth)) > 8


def shared_prompts(task: Task, other: Task) -> int:
    """How many problems of `other` are in `task`, too: no held-out problems, if that is what they should be."""
    prompts = {task.draw("all", index).prompt for index in range(task.size)}
    return sum(other.draw("all", index).prompt in prompts for index in range(other.size))


def word_problem_task(problems: list[WordProblem]) -> Task:
    """A Task of these problems. Every epoch of a stream goes through all of them once, in its own order.

    The step check looks at the equations that a solution writes down: 48 / 2 = 24 is right, 48 / 2 = 22 is not.
    """

    @functools.lru_cache(maxsize=4)
    def order(stream: str, epoch: int) -> list[int]:
        return random.Random(f"{stream} {epoch}").sample(range(len(problems)), len(problems))

    def draw(stream: str, index: int) -> WordProblem:
        epoch, place = divmod(index, len(problems))
        return problems[order(stream, epoch)[place]]

    return Task(draw, check_outcome, check_steps, size=len(problems))


def check_outcome(problem: WordProblem, completion: str, finished: bool) -> bool:
    """True if the final answer is right, whether or not the completion is finished: the answer comes before the end."""
    return verify(completion, problem.truth)


def check_steps(problem: WordProblem, completion: str) -> list[bool]:
    """The verdict on each equation of numbers that the completion writes down."""
    return check_equations(completion)
