"""What a training step and a model are worth, as numbers: metrics of a step, the log line, evaluation of a model.

runs/README.md explains each metric. A mean or a share of nothing has no value: NaN while it is a tensor, then None,
which is null in JSON and "-" on the screen. B prompts, G rollouts per prompt, N = B * G rows.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import comb, isnan

import torch
from torch import Tensor

from minclipo.config import TrainConfig
from minclipo.extensions.processes import every, numbered, share
from minclipo.extensions.sharding import whole
from minclipo.grpo import masked_mean
from minclipo.model import GPT
from minclipo.runs.console import WIDTH
from minclipo.sampler import sample
from minclipo.tasks import Problem, Task
from minclipo.trainer import Step, Trainer

# ---- a training step ----


def timed_step(trainer: Trainer) -> dict[str, float | None]:
    """One training step and its metrics."""
    started = time.perf_counter()
    step = trainer.step()
    metrics = {"step": step.number} | rollout_metrics(step)
    if trainer.task.check_steps is not None:
        verdicts = step.step_verdicts or trainer.task.steps(step.problems, step.texts, step.correct.tolist())
        step.step_verdicts = verdicts  # for rollouts.jsonl
        metrics |= faithfulness(verdicts)
    metrics |= step.metrics | {"seconds": time.perf_counter() - started}
    return {name: None if value is not None and isnan(value) else value for name, value in metrics.items()}


def rollout_metrics(step: Step) -> dict[str, float]:
    """What the rollouts of one step say."""
    rollouts, correct = step.rollouts, step.correct
    by_group = correct.view(-1, rollouts.group_size)  # [B, G]
    metrics = {
        "reward": step.rewards.mean().item(),
        "accuracy": correct.float().mean().item(),
        "informative_prompts": (by_group.any(1) & ~by_group.all(1)).float().mean().item(),
        "completion_length": rollouts.mask.sum(1).float().mean().item(),
        "finished": rollouts.finished.float().mean().item(),
    }
    if "contrastive_loss" in step.metrics:
        differences = spread(step.contrastive_rewards.view_as(by_group), by_group)  # [B]
        metrics["contrastive_signal"] = (differences > 1e-6).float().mean().item()
        metrics["contrastive_penalty"] = masked_mean(-step.contrastive_rewards, correct).item()
    return metrics


def reward_parts(metrics: dict[str, float | None]) -> dict[str, float]:
    """The mean reward of a step's metrics in its parts: outcome, contrastive, and the extra of penalties and oracle."""
    outcome = metrics["accuracy"]
    contrastive = -(metrics.get("contrastive_penalty") or 0) * outcome  # the penalty is a mean over the right ones
    return {"outcome": outcome, "contrastive": contrastive, "extra": metrics["reward"] - outcome - contrastive}


def spread(values: Tensor, chosen: Tensor) -> Tensor:
    """Largest minus smallest of the chosen values of each row, [B] from [B, G]; 0 where fewer than two are chosen."""
    high = values.masked_fill(~chosen, -torch.inf).amax(1)
    low = values.masked_fill(~chosen, torch.inf).amin(1)
    return (high - low).clamp(min=0)


def faithfulness(verdicts: list[list[bool] | None]) -> dict[str, float | None]:
    """What `Task.steps` says of a batch: verdicts on the steps of each right completion, None for the wrong ones.

    faithful: number of right completions without a wrong step; hallucination_rate: share of the right ones that have
    one; faithful_accuracy: share of all that are right throughout; steps_checked: steps found in a right one, on
    average. A completion without any counts as faithful, so a rate means little where few steps are checked. Where
    nothing is right, or no step is found in what is, there is no rate: 0 would be the best there is.
    """
    right = [steps for steps in verdicts if steps is not None]
    faithful, checked = sum(all(steps) for steps in right), sum(map(len, right))
    return {
        "faithful": faithful,
        "faithful_accuracy": faithful / len(verdicts),
        "hallucination_rate": (len(right) - faithful) / len(right) if checked else None,
        "steps_checked": checked / len(right) if right else None,
    }


COLUMNS = (  # of the log line, the most important first: metric, how it is called there, how it is written
    ("accuracy", "acc", "5.3f"),
    ("accuracy_sampled", "all", "5.3f"),
    ("reward", "reward", "5.3f"),
    ("hallucination_rate", "halluc", "5.3f"),
    ("finished", "fin", "4.2f"),
    ("contrastive_signal", "contrast", "4.2f"),
    ("batches_sampled", "batches", "2d"),
    ("informative_prompts", "inform", "4.2f"),
    ("prompt_contrast", "prompt", "4.2f"),
    ("completion_length", "len", "5.1f"),
    ("kl_reference", "klref", "6.4f"),
    ("entropy", "ent", "5.3f"),
    ("gradient_norm", "grad", "5.2f"),
    ("kl", "kl", "6.4f"),
    ("clip_fraction", "clip", "5.3f"),
)


def log_line(description: str, metrics: dict[str, float | None], config: TrainConfig) -> str:
    """The step in one line of at most WIDTH columns. What the step does not have, what says nothing with these settings
    and what does not fit is left out; metrics.jsonl has all of it."""
    line = f"{description} {metrics['step']:>3}/{config.steps}"
    if "seconds" in metrics:
        line += f" {metrics['seconds']:6.2f} s"
    idle = idle_metrics(config)
    for name, label, form in COLUMNS:
        if name in metrics and name not in idle:
            cell = f" {label} {number(metrics[name], form)}"
            if len(line + cell) > WIDTH:
                break
            line += cell
    return line


def idle_metrics(config: TrainConfig) -> set[str]:
    """Metrics whose value these settings fix."""
    paid = (config.contrastive_weight, config.prompt_contrast_weight, config.process_penalty, config.overlong_penalty)
    idle = set() if any(paid) else {"reward"}  # it is the accuracy
    if config.dynamic_sampling:
        idle.add("informative_prompts")  # all of them are
    return idle if config.num_mini_batches > 1 else idle | {"kl", "clip_fraction"}  # 0: every ratio is 1


def number(value: float | None, form: str) -> str:
    """The value as text, None as "-"; what rounds to 0 has no sign."""
    if value is None:
        return "-".rjust(int(form.partition(".")[0] or 0))
    text = f"{value:{form}}"
    return text if text.strip("-0. ") else text.replace("-", "")


# ---- a model ----


@dataclass
class Answers:
    """Completions of held-out problems, `samples` of each problem one after another: a list has an entry for each."""

    samples: int
    problems: list[Problem]
    texts: list[str]
    correct: list[bool]
    finished: list[bool]
    tokens: list[int]  # eos included
    step_verdicts: list[list[bool] | None] | None  # None: the task has no step check

    def examples(self) -> list[tuple[Problem, str, bool]]:
        """(problem, completion, is it right?) of all."""
        return list(zip(self.problems, self.texts, self.correct))


@torch.no_grad()
def answer(
    model: GPT,
    tokenizer,
    task: Task,
    *,
    problems: int,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float | None = None,
    samples: int = 1,
    sampling_rows: int = 2048,
    row_seeds: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Answers:
    """`samples` completions of each of `problems` held-out problems, with the verdicts on them.

    Temperature 0 is greedy. At most `sampling_rows` completions are sampled at a time, which bounds the memory for keys
    and values; tokens and pooled states of all stay until the end. `progress` may wrap those parts in a progress bar.
    Several processes take a share of the problems each, and get the answers to all; row_seeds as in TrainConfig.
    """
    model, device = whole(model), model.embed_tokens.weight.device
    stream, numbers = f"evaluation {seed}", share(range(problems))
    drawn = [task.draw(stream, number) for number in range(problems)]

    def judged(own: list[Problem]) -> tuple[list, ...]:
        """Texts, verdicts, which have ended, their lengths, and verdicts on steps if the task has a step check."""
        rollouts = sample(
            model,
            tokenizer.encode_batch([problem.prompt for problem in own]),
            samples,
            max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            eos_ids=tokenizer.eos_ids,
            generator=torch.Generator(device).manual_seed(seed),
            uniform=numbered(stream, numbers, (samples, max_new_tokens)).to(device) if row_seeds else None,
            sampling_rows=sampling_rows,
            progress=progress,
        )
        texts, finished = tokenizer.decode_batch(rollouts.completion_ids()), rollouts.finished.tolist()
        correct = task.outcomes(own, texts, finished)
        steps = task.steps(own, texts, correct) if task.check_steps is not None else []
        return texts, correct, finished, rollouts.mask.sum(1).tolist(), steps

    parts = every(judged(share(drawn)) if numbers else ([], [], [], [], []))  # none: more processes than problems
    *columns, steps = (sum(column, []) for column in zip(*parts))
    repeated = [problem for problem in drawn for _ in range(samples)]
    return Answers(samples, repeated, *columns, steps if task.check_steps is not None else None)


def score(answers: Answers) -> dict:
    """Shares and counts of right completions. accuracy: mean over all completions (avg@k); pass_at: {k: estimate} for
    k = 1, 2, 4 ... samples; with a step check also what `faithfulness` says."""
    samples, correct, completions = answers.samples, answers.correct, len(answers.correct)
    by_problem = [sum(correct[i : i + samples]) for i in range(0, completions, samples)]
    found = {
        "problems": len(by_problem),
        "samples": samples,
        "correct": sum(correct),
        "accuracy": sum(correct) / completions,
        "pass_at": {
            k: sum(pass_at_k(samples, count, k) for count in by_problem) / len(by_problem)
            for k in (2**i for i in range(samples.bit_length()))
        },
        "completion_length": sum(answers.tokens) / completions,
        "finished": sum(answers.finished) / completions,
    }
    return found | (faithfulness(answers.step_verdicts) if answers.step_verdicts is not None else {})


def evaluate(model: GPT, tokenizer, task: Task, **options) -> dict:
    """`score` of what `answer` finds with these options; examples: (problem, completion, is it right?) of all."""
    answers = answer(model, tokenizer, task, **options)
    return score(answers) | {"examples": answers.examples()}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k completions is right, estimated from n samples of which c are right.

        pass@k = 1 - C(n - c, k) / C(n, k)        Chen et al. 2021 (Codex), eq. 1; unbiased, unlike 1 - (1 - c/n)^k

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    assert 1 <= k <= samples and 0 <= correct <= samples, f"impossible: {k=}, {samples=}, {correct=}"
    return 1 - comb(samples - correct, k) / comb(samples, k)
