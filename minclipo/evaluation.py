"""How good is a model? One or several completions for each of many held-out problems."""

from math import comb

import torch
from tqdm import tqdm

from minclipo.model import GPT
from minclipo.sampler import Rollouts, sample
from minclipo.tasks import Task
from minclipo.tokenizer import Tokenizer


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k completions is right, estimated from n samples of which c are right.

        pass@k = 1 - C(n - c, k) / C(n, k)        Chen et al. 2021 (Codex), eq. 1; unbiased, unlike 1 - (1 - c/n)^k

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"need 1 <= k <= samples and 0 <= correct <= samples, found {k=}, {samples=}, {correct=}")
    return 1 - comb(samples - correct, k) / comb(samples, k)


@torch.no_grad()
def evaluate(
    model: GPT,
    tokenizer: Tokenizer,
    task: Task,
    *,
    problems: int,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float | None = None,
    samples: int = 1,
    rows_at_once: int = 2048,
) -> dict:
    """Shares and counts of right completions, `samples` for each of `problems` held-out problems.

    Temperature 0 is greedy. accuracy: mean over all completions (avg@k); pass_at: {k: estimate} for k = 1, 2, 4 ...
    samples; with a step check also how many of the right ones are faithful, right in every step, and how many steps
    were checked. examples: (problem, completion, is it right?) of all. At most `rows_at_once` completions grow at the
    same time, which bounds memory.
    """
    drawn = [task.draw(f"evaluation {seed}", index) for index in range(problems)]
    generator = torch.Generator(model.embed_tokens.weight.device).manual_seed(seed)
    prompts = tokenizer.encode_batch([problem.prompt for problem in drawn])
    at_once = max(1, rows_at_once // samples)  # problems
    texts, finished, tokens = [], [], 0
    for start in tqdm(range(0, problems, at_once), desc="evaluation", leave=False, disable=None):
        rollouts: Rollouts = sample(
            model,
            prompts[start : start + at_once],
            samples,
            max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            eos_ids=tokenizer.eos_ids,
            generator=generator,
        )
        texts += tokenizer.decode_batch(rollouts.completion_ids())
        finished += rollouts.finished.tolist()
        tokens += int(rollouts.mask.sum())
    rows = [problem for problem in drawn for _ in range(samples)]
    correct = [task.check_outcome(*row) for row in zip(rows, texts, finished)]
    by_problem = [sum(correct[i : i + samples]) for i in range(0, len(correct), samples)]
    found = {
        "problems": problems,
        "samples": samples,
        "correct": sum(correct),
        "accuracy": sum(correct) / len(rows),
        "pass_at": {
            k: sum(pass_at_k(samples, count, k) for count in by_problem) / problems
            for k in (2**i for i in range(samples.bit_length()))
        },
        "completion_length": tokens / len(rows),
        "finished": sum(finished) / len(rows),
    }
    if task.check_steps is not None:
        found |= step_counts(task, rows, texts, correct)
    return found | {"examples": list(zip(rows, texts, correct))}


def step_counts(task: Task, problems: list, texts: list[str], correct: list[bool]) -> dict:
    """What the step check says of the right completions."""
    verdicts = [task.check_steps(problem, text) for problem, text, right in zip(problems, texts, correct) if right]
    faithful = sum(all(steps) for steps in verdicts)
    return {
        "faithful": faithful,
        "faithful_accuracy": faithful / len(problems),
        "hallucination_rate": (len(verdicts) - faithful) / max(1, len(verdicts)),
        "steps_checked": sum(len(steps) for steps in verdicts) / max(1, len(verdicts)),
    }
