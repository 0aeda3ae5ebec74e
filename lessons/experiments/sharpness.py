"""How sure is a toy model of what it writes, and how blind is the outcome to what it makes up?

Sharpness: the entropy of its predictions of operands and of totals, and what it writes when it always takes the
likeliest word (greedily). Blindness: how often the answer is right where an operand was made up, beside how often it is
right where none was. Equal shares mean a blind outcome, if all problems have equally many operations.
"""

from collections.abc import Callable

import torch

from minclipo.logprobs import completion_logprobs
from minclipo.model import GPT
from minclipo.runs.measure import evaluate
from minclipo.sampler import pad_right
from minclipo.tasks import Problem, Task
from minclipo.tasks.chain import ChainProblem
from minclipo.toy import toy_tokenizer

STREAM = 900_000  # seed of the problems: a stream that neither training nor evaluation draws from


def look(model: GPT, task: Task, max_new_tokens: int, problems: int = 500) -> dict[str, float | None]:
    """Shares over `problems` problems, one completion each at temperature 1, and one greedily; entropies in nats."""
    size = dict(problems=problems, max_new_tokens=max_new_tokens, seed=STREAM)
    sampled = evaluate(model, toy_tokenizer(), task, **size)
    greedy = evaluate(model, toy_tokenizer(), task, temperature=0.0, **size)
    found = {
        "accuracy": sampled["accuracy"],
        "hallucination_rate": sampled["hallucination_rate"],
        "greedy_accuracy": greedy["accuracy"],
        "greedy_hallucination_rate": greedy["hallucination_rate"],
        **blindness(sampled["examples"], makes_up),
        **entropies(model, [(problem.prompt, text) for problem, text, _ in sampled["examples"]]),
    }
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def makes_up(problem: ChainProblem, completion: str) -> bool | None:
    """Is one of the operands that the completion quotes not the problem's? None: it quotes too few to say."""
    quoted = [word for word in completion.split() if word[0] in "+-"]
    if len(quoted) < len(problem.operands):
        return None
    return quoted != [f"{operand:+d}" for operand in problem.operands]


def blindness(examples: list[tuple[Problem, str, bool]], makes_up: Callable) -> dict[str, float | None]:
    """How often the answer is right, with a made-up operand and without; None where there are no such completions.

    examples: (problem, completion, is the answer right?); makes_up(problem, completion): is an operand made up? A
    completion for which it says None is left out.
    """
    verdicts = [(makes_up(problem, completion), right) for problem, completion, right in examples]
    mean = lambda values: sum(values) / len(values) if values else None
    return {
        "right_if_made_up": mean([right for made_up, right in verdicts if made_up is True]),
        "right_if_not_made_up": mean([right for made_up, right in verdicts if made_up is False]),
        "made_up": mean([made_up for made_up, _ in verdicts if made_up is not None]),
    }


@torch.no_grad()
def entropies(model: GPT, texts: list[tuple[str, str]]) -> dict[str, float | None]:
    """Mean entropy in nats of the predictions of operands and of totals, as the model wrote them before #.

    texts: (prompt, completion) of each.
    """
    tokenizer, device = toy_tokenizer(), model.embed_tokens.weight.device
    prompts = tokenizer.encode_batch([prompt for prompt, _ in texts])
    ids = tokenizer.encode_batch([completion for _, completion in texts])
    completions, lengths = pad_right(ids, device)  # [N, T], [N]
    places = torch.arange(completions.shape[1], device=device)
    _, entropy = completion_logprobs(model, prompts, completions, places < lengths[:, None])  # [N, T]
    words = [completion.split() for _, completion in texts]
    kinds = [[kind(row, place) for place in range(completions.shape[1])] for row in words]
    found = {}
    for name in ("operand", "total"):
        chosen = torch.tensor([[value == name for value in row] for row in kinds], device=device)
        found[f"{name}_entropy"] = entropy[chosen].mean().item() if chosen.any() else None
    return found


def kind(words: list[str], place: int) -> str:
    """operand, total, or neither of them: what the word in that place of a completion is."""
    if place >= len(words) or "#" in words[: place + 1]:
        return "neither"
    return "operand" if words[place][0] in "+-" else "total" if words[place].isdigit() else "neither"
