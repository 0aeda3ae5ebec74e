"""How sure is a toy model of what it writes, and how blind is the outcome to what it makes up?

Sharpness: the entropy of its predictions where it writes operands and where it writes totals, and what it writes when it
always takes the likeliest word (greedily). Blindness: how often an answer is right although an operand was made up,
beside how often it is right when none was. Equal shares: the outcome is blind.
"""

from collections.abc import Callable

import torch

from minclipo.logprobs import completion_logprobs
from minclipo.model import GPT
from minclipo.runs.measure import evaluate
from minclipo.tasks import Problem, Task
from minclipo.tasks.chain import ChainProblem
from minclipo.toy import toy_tokenizer

STREAM = 900_000  # seed of the problems: a stream that neither training nor evaluation draws from


def look(model: GPT, task: Task, max_new_tokens: int, problems: int = 500) -> dict[str, float | None]:
    """Shares of `problems` problems, one completion each at temperature 1, and one greedily; entropies in nats."""
    size = dict(problems=problems, max_new_tokens=max_new_tokens, seed=STREAM)
    sampled = evaluate(model, toy_tokenizer(), task, **size)
    greedy = evaluate(model, toy_tokenizer(), task, temperature=0.0, **size)
    return {
        "accuracy": sampled["accuracy"],
        "hallucination_rate": sampled["hallucination_rate"],
        "greedy_accuracy": greedy["accuracy"],
        "greedy_hallucination_rate": greedy["hallucination_rate"],
        **blindness(sampled["examples"], makes_up),
        **entropies(model, [(problem.prompt, text) for problem, text, _ in sampled["examples"]]),
    }


def makes_up(problem: ChainProblem, completion: str) -> bool:
    """Does the completion quote an operand that the problem does not have in that place? Operands have a sign."""
    quoted = [word for word in completion.split() if word[0] in "+-"]
    return any(word != f"{operand:+d}" for word, operand in zip(quoted, problem.operands))


def blindness(examples: list[tuple[Problem, str, bool]], makes_up: Callable) -> dict[str, float | None]:
    """How often the answer is right, with a made-up operand and without; None where there are no such completions.
    examples: (problem, completion, is the answer right?); makes_up(problem, completion): is an operand made up?"""
    found = {}
    for name, wanted in (("right_if_made_up", True), ("right_if_faithful", False)):
        verdicts = [right for problem, text, right in examples if makes_up(problem, text) == wanted]
        found[name] = sum(verdicts) / len(verdicts) if verdicts else None
    return found | {"made_up": sum(makes_up(problem, text) for problem, text, _ in examples) / len(examples)}


@torch.no_grad()
def entropies(model: GPT, texts: list[tuple[str, str]]) -> dict[str, float | None]:
    """Mean entropy of the predictions in whose place the model has written an operand, and a total before #."""
    tokenizer = toy_tokenizer()
    prompts = tokenizer.encode_batch([prompt for prompt, _ in texts])
    words = [completion.split() for _, completion in texts]
    ids = tokenizer.encode_batch([completion for _, completion in texts])
    width = max(map(len, ids))
    completions = torch.tensor([row + [0] * (width - len(row)) for row in ids])  # [N, T]
    lengths = torch.tensor([len(row) for row in ids])
    mask = torch.arange(width) < lengths[:, None]  # [N, T]
    _, entropy = completion_logprobs(model, prompts, completions, mask)  # [N, T]
    kinds = [[kind(row, place) for place in range(width)] for row in words]
    found = {}
    for name in ("operand", "total"):
        chosen = torch.tensor([[value == name for value in row] for row in kinds]) & mask
        found[f"{name}_entropy"] = entropy[chosen].mean().item() if chosen.any() else None
    return found


def kind(words: list[str], place: int) -> str:
    """operand, total, or neither of them: what the word in that place of a completion is."""
    if place >= len(words) or "#" in words[: place + 1]:
        return "neither"
    return "operand" if words[place][0] in "+-" else "total" if words[place].isdigit() else "neither"
