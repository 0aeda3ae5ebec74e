"""Word problems from files: GSM8K, MATH, or your own.

A file is JSONL, one object per line, or parquet (if pyarrow is installed). The caller names the fields of question and
answer. The answer may be bare ("72"), a GSM8K solution ("... #### 72") or a MATH one ("... \\boxed{72}").
"""

import functools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minclipo.tasks import Task
from minclipo.tasks.equations import check_equations
from minclipo.verifier import verify


@dataclass(frozen=True)
class WordProblem:
    prompt: str  # as the model reads it, chat template applied
    question: str
    truth: str  # the reference answer, or a worked solution that ends in it


def read_problems(paths: list[Path], question_field: str, answer_field: str) -> list[tuple[str, str]]:
    """(question, answer) pairs of these files. Errors name the file, the line, and the fields that there are."""
    pairs = []
    for path in paths:
        for place, record in records(path):
            for field in (question_field, answer_field):
                if not isinstance(record, dict) or record.get(field) in (None, ""):
                    found = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                    raise ValueError(f"{place}: no field {field!r} with something in it; found: {found}")
            pairs.append((str(record[question_field]), str(record[answer_field])))
    if not pairs:
        raise ValueError(f"{', '.join(map(str, paths))} holds no problems")
    return pairs


def records(path: Path) -> Iterator[tuple[str, dict]]:
    """(where it stands, record) of everything in a file."""
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ValueError(f"{path}: parquet files need pyarrow: pip install pyarrow") from error
        for number, record in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1):
            yield f"{path}, row {number}", record
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (a compressed file? unpack it): {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error


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
