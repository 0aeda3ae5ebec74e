"""A real model on held-out problems as training goes on: OUT/evaluation.jsonl, curves.png, a line, examples."""

from functools import partial
from pathlib import Path

from tqdm import tqdm

from minclipo.checkpoint.files import read_lines, write_lines
from minclipo.model import GPT
from minclipo.runs.console import WIDTH, say, wrapped
from minclipo.runs.intervals import share_interval
from minclipo.runs.measure import evaluate, number, show_examples
from minclipo.runs.plots import plot_evaluation
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
    ):
        self.evaluate = partial(
            evaluate,
            model,
            tokenizer,
            task,
            problems=evaluation_size(problems, task),
            max_new_tokens=max_new_tokens,
            seed=0,  # the same problems, whatever the seed of the run
            sampling_rows=sampling_rows,
            progress=partial(tqdm, desc="evaluation", leave=False, disable=None),
        )
        self.samples, self.temperature, self.top_p = samples, temperature, top_p
        self.lines: list[dict] | None = None  # of evaluation.jsonl; None: not read yet

    def measure(self) -> dict[str, dict]:
        """{"greedy": found, "sampled": found}, what `evaluate` returns each."""
        found = {"greedy": self.evaluate(temperature=0.0)}
        if self.samples:
            found["sampled"] = self.evaluate(samples=self.samples, temperature=self.temperature, top_p=self.top_p)
        return found

    def after_step(self, step: int, *, every: int, last: int, out: Path, show: int) -> None:
        """Measure every `every` steps (0: never) and after the `last`, unless that has been done; write and show it."""
        path = out / "evaluation.jsonl"
        if self.lines is None:  # a resumed run forgets what was measured after the state that it goes on from
            self.lines = [line for line in read_lines(path, "step", "greedy") if line["step"] <= step]
        due = every and (step % every == 0 or step == last)
        if not due or step in [line["step"] for line in self.lines]:
            return
        found = self.measure()
        say(f"step {step}: {evaluation_line(found)}")
        show_examples(found["greedy"]["examples"][:show])
        without = lambda result: {name: value for name, value in result.items() if name != "examples"}
        self.lines.append({"step": step} | {name: without(result) for name, result in found.items()})
        write_lines(path, self.lines)
        plot_evaluation(read_lines(out / "metrics.jsonl"), self.lines, out / "curves.png")


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
