"""A real model on held-out problems as training goes on: numbers, answers and a picture in OUT, a line, examples."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from minclipo.checkpoint.files import read_lines, write_lines
from minclipo.extensions.processes import rank
from minclipo.model import GPT
from minclipo.runs.console import WIDTH, say, wrapped
from minclipo.runs.intervals import share_interval
from minclipo.runs.measure import Answers, answer, number, score
from minclipo.runs.plots import Curves
from minclipo.runs.rollouts import answer_records, show_examples, write_records
from minclipo.tasks import Task


class Evaluator:
    """Measures a model on `problems` held-out problems: greedily, and with `samples` completions each if that is not 0.

    temperature, top_p: of those samples; sampling_rows: completions sampled at a time, which bounds memory.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer,
        task: Task,
        *,
        problems: int,
        max_new_tokens: int,
        samples: int,
        temperature: float,
        top_p: float,
        sampling_rows: int,
        row_seeds: bool = True,
        progress: Callable[[Iterable], Iterable] = iter,
    ):
        self.max_new_tokens = max_new_tokens
        self.answer = partial(
            answer,
            model,
            tokenizer,
            task,
            problems=evaluation_size(problems, task),
            max_new_tokens=max_new_tokens,
            seed=0,  # the same problems, whatever the seed of the run
            sampling_rows=sampling_rows,
            row_seeds=row_seeds,
            progress=progress,
        )
        self.samples, self.temperature, self.top_p = samples, temperature, top_p
        self.lines: list[dict] | None = None  # of evaluation.jsonl; None: not read yet
        self.listeners: list[Callable[[dict], None]] = []  # called with each new line
        self.before_writing: Callable[[], None] = lambda: None

    def measure(self) -> dict[str, Answers]:
        """{"greedy": answers}, and {"sampled": answers} if samples are asked for."""
        answers = {"greedy": self.answer(temperature=0.0)}
        if self.samples:
            answers["sampled"] = self.answer(samples=self.samples, temperature=self.temperature, top_p=self.top_p)
        return answers

    def after_step(self, step: int, *, every: int, last: int, out: Path, show: int) -> None:
        """Measure every `every` steps (0: never) and after the `last`, unless that has been done; write and show it.

        OSError if something could not be written; the rest is."""
        if self.lines is None:
            self.lines = lines_until(step, out)
        due = every and (step % every == 0 or step == last)
        if not due or step in [line["step"] for line in self.lines]:
            return
        answers = self.measure()
        line = {"step": step} | scores(answers)
        show_evaluation(line, answers, show, f"step {step}: ")
        self.lines.append(line)
        listeners = [partial(listener, line) for listener in self.listeners]
        files = [
            self.before_writing,
            partial(write_answers, answers, answers_path(out, step)),
            *listeners,
            partial(write_lines, out / "evaluation.jsonl", self.lines),  # later: a line means that all this is done
            Curves(out, every=every, last=last, max_new_tokens=self.max_new_tokens).draw,
        ]
        try_all(files if rank() == 0 else listeners)


def lines_until(step: int, out: Path) -> list[dict]:
    """The evaluations up to this step. A resumed run forgets what was measured after the state that it goes on from."""
    lines = read_lines(out / "evaluation.jsonl", "step", "greedy")
    kept = [line for line in lines if line["step"] <= step]
    if rank() > 0:  # the first process writes
        return kept
    for path in (out / "evaluations").glob("step_*.jsonl"):
        if path.stem[5:].isdigit() and int(path.stem[5:]) > step:
            path.unlink()
    if len(kept) < len(lines):
        write_lines(out / "evaluation.jsonl", kept)
    return kept


def try_all(writes: Iterable[Callable[[], None]]) -> None:
    """Do them all: what cannot be written does not keep the others from it. The first OSError is raised at the end."""
    failed = None
    for write in writes:
        try:
            write()
        except OSError as error:
            failed = failed or error
    if failed is not None:
        raise failed


def answers_path(out: Path, step: int) -> Path:
    return out / "evaluations" / f"step_{step:06}.jsonl"


def write_answers(answers: dict[str, Answers], path: Path) -> None:
    write_records(path, (record for decoding, some in answers.items() for record in answer_records(some, decoding)))


def scores(answers: dict[str, Answers]) -> dict[str, dict]:
    return {decoding: score(some) for decoding, some in answers.items()}


def show_evaluation(found: dict[str, dict], answers: dict[str, Answers], show: int, before: str = "") -> None:
    """An evaluation on the screen, with the first `show` greedy answers."""
    say(before + evaluation_line(found))
    show_examples(answers["greedy"].examples()[:show])


def evaluation_size(problems: int, task: Task) -> int:
    """Number of problems of an evaluation; 0: all there are."""
    if not problems and task.size is None:
        raise ValueError("--eval-problems 0 means all there are, but this task makes problems without end")
    return min(problems or task.size, task.size or problems)


def evaluation_line(found: dict[str, dict]) -> str:
    """An evaluation in a line, or as many as it takes."""
    greedy = found["greedy"]
    interval = share_interval(greedy["correct"], greedy["problems"])
    bounds = f"95% interval {interval.low:.3f} to {interval.high:.3f}"
    words = [f"greedy accuracy {greedy['accuracy']:.3f} of {greedy['problems']} held-out problems ({bounds})"]
    if "hallucination_rate" in greedy:
        rate, checked = number(greedy["hallucination_rate"], ".3f"), number(greedy["steps_checked"], ".1f")
        words.append(f"hallucination rate {rate} ({checked} steps checked per right answer)")
    words += [f"length {greedy['completion_length']:.1f}", f"finished {greedy['finished']:.2f}"]
    if "sampled" in found:
        sampled = found["sampled"]
        words.append(f"avg@{sampled['samples']} {sampled['accuracy']:.3f}")
        words += [f"pass@{k} {value:.3f}" for k, value in sampled["pass_at"].items() if int(k) > 1]
    return wrapped(words, WIDTH - len("step 100000: "))
