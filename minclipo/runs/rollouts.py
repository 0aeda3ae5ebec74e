"""What a model wrote: on the screen, in OUT/rollouts.jsonl (training) and in OUT/evaluations (held-out problems).

One JSON object per completion, as text in UTF-8. runs/README.md explains each field.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from minclipo.checkpoint.files import replacing
from minclipo.runs.console import say
from minclipo.runs.measure import Answers
from minclipo.tasks import Problem
from minclipo.trainer import Step

LONGEST, MOST_LINES = 600, 16  # of a text on the screen: characters, lines


# ---- in files ----


class RolloutLog:
    """A callback that appends to a file the rollouts of step 1 and of every `every`-th step; 0: of none.

    Only one step's rollouts are in memory. What a full disk has left of a step is cut off before the next one.
    """

    def __init__(self, path: Path, every: int):
        self.path, self.every = path, every
        self.size = 0  # bytes of the file that are whole steps

    def start(self, step: int) -> None:
        """Forget what is from after `step`: a run that goes back to that state does the later steps again."""
        self.size = 0
        if not self.path.is_file():
            return
        with open(self.path, "rb+") as file:
            for line in file:
                if not line.endswith(b"\n") or self.step_of(line) > step:
                    break
                self.size += len(line)
            file.truncate(self.size)
        if not self.size:
            self.path.unlink()

    def step_of(self, line: bytes) -> int:
        try:
            return json.loads(line)["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: {line[:60]!r} is no rollout; move the file away to go on") from error

    def after_step(self, step: Step, metrics: dict) -> None:
        if not self.every or step.number > 1 and step.number % self.every:
            return
        with open(self.path, "ab") as file:
            file.truncate(min(self.size, file.seek(0, 2)))
            file.writelines(map(json_line, rollout_records(step)))
            file.flush()
            self.size = file.tell()


def rollout_records(step: Step) -> Iterator[dict]:
    """One record per rollout of a training step. reward = outcome + contrastive + extra."""
    rollouts, outcome = step.rollouts, step.correct.float()
    extra = step.rewards - outcome - step.contrastive_rewards
    numbers = dict(
        reward=step.rewards,
        outcome=outcome,
        contrastive=step.contrastive_rewards,
        extra=extra,
        advantage=step.advantages,
    )
    columns = {name: values.tolist() for name, values in numbers.items()}
    finished, tokens = rollouts.finished.tolist(), rollouts.mask.sum(1).tolist()
    for row, (text, correct) in enumerate(zip(step.texts, step.correct.tolist())):
        group = row // rollouts.group_size
        record = completion_record(step.problems[group], text, correct, finished[row], tokens[row])
        if step.step_verdicts is not None:
            record["step_verdicts"] = step.step_verdicts[row]
        values = {name: round(column[row], 6) for name, column in columns.items()}
        yield {"step": step.number, "group": group} | record | values


def answer_records(answers: Answers, decoding: str) -> Iterator[dict]:
    """One record per completion of an evaluation. decoding: greedy or sampled."""
    rows = zip(answers.problems, answers.texts, answers.correct, answers.finished, answers.tokens)
    for row, (problem, *written) in enumerate(rows):
        record = {"problem": row // answers.samples, "decoding": decoding} | completion_record(problem, *written)
        if answers.step_verdicts is not None:
            record["step_verdicts"] = answers.step_verdicts[row]
        yield record


def completion_record(problem: Problem, text: str, correct: bool, finished: bool, tokens: int) -> dict:
    """tokens: how many, eos included."""
    record = {"prompt": problem.prompt, "completion": text, "truth": truth_of(problem)}
    return record | {"correct": correct, "finished": finished, "tokens": tokens}


def truth_of(problem: Problem) -> str | None:
    """The expected answer, None for a task whose problems do not say it."""
    truth = getattr(problem, "truth", None)
    return truth if truth is None or isinstance(truth, str) else str(truth)


def write_records(path: Path, records: Iterable[dict]) -> None:
    """JSONL, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.writelines(map(json_line, records))


def json_line(record: dict) -> bytes:
    """The record as a line of UTF-8. Half a character, which UTF-8 has not got, becomes JSON's own \\ud83d."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


# ---- on the screen ----


def show_examples(examples: list[tuple[Problem, str, bool]]) -> None:
    """Print (problem, completion, is it right?) examples: numbers hide what a model has really learnt to do."""
    for problem, text, right in examples:
        question, truth = getattr(problem, "question", ""), truth_of(problem)
        fields = {"question": question} if question else {"prompt": problem.prompt}
        fields |= {"completion": text} | ({} if truth is None else {"expected": truth})
        fields |= {"verdict": "right" if right else "wrong"}
        shown = [
            f"  {name:10} " + (readable(value) or "(empty)").replace("\n", "\n" + 13 * " ")
            for name, value in fields.items()
        ]
        say("\n".join(shown) + "\n")


def readable(text: str) -> str:
    """A text that is safe to print and not too long: its middle is left out. Control characters, which could move the
    cursor, colour the screen or turn the direction of writing, are shown as escapes; lines stay lines."""
    text = cut(text.strip(), LONGEST, "characters")
    text = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return "\n".join(cut(text.split("\n"), MOST_LINES, "lines"))


def cut(whole, most: int, unit: str):
    """The text or list without its middle, if it is longer than `most`. The end stays: the answer is there."""
    if len(whole) <= most:
        return whole
    gap = f"[... {len(whole) - most} {unit} ...]"
    gap = f" {gap} " if isinstance(whole, str) else [gap]
    return whole[: most // 2] + gap + whole[-(most // 2) :]
