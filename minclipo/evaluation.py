"""How good is a model? One completion for each of many fresh problems."""

import random

import torch

from minclipo.model import GPT
from minclipo.sampler import sample
from minclipo.tasks import Task
from minclipo.tokenizer import Tokenizer


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
) -> dict:
    """Shares and counts of right completions, one for each of `problems` fresh problems.

    With a step check also how many of the right ones are faithful: right in every step. `examples` holds (problem,
    completion, is it right?) of all, to look at.
    """
    rng = random.Random(f"evaluation {seed}")  # a string seeds apart from every training run's number
    drawn = [task.draw(rng) for _ in range(problems)]
    generator = torch.Generator(model.embed_tokens.weight.device).manual_seed(seed)
    prompts = tokenizer.encode_batch([problem.prompt for problem in drawn])
    rollouts = sample(
        model, prompts, 1, max_new_tokens, temperature=temperature, eos_ids=tokenizer.eos_ids, generator=generator
    )
    texts = tokenizer.decode_batch(rollouts.completion_ids())
    correct = [task.check_outcome(*row) for row in zip(drawn, texts, rollouts.finished.tolist())]
    found = {"problems": problems, "correct": sum(correct), "accuracy": sum(correct) / problems}
    if task.is_faithful is not None:
        faithful = sum(task.is_faithful(drawn[i], texts[i]) for i in range(problems) if correct[i])
        found["faithful"] = faithful
        found["faithful_accuracy"] = faithful / problems
        found["hallucination_rate"] = (sum(correct) - faithful) / max(1, sum(correct))
    return found | {"examples": list(zip(drawn, texts, correct))}
