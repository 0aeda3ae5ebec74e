"""What the prompt contrast pays for given completions: by kind, once learned, and against which other prompts.

N completions (one per problem), T tokens, K other prompts.
"""

import random
from dataclasses import replace
from pathlib import Path

import torch
from attack_completions import COMPLETIONS, another, attack_problems, written
from textbooks import start
from torch import Tensor

from minclipo.extensions.micro_batches import rollout_logprobs
from minclipo.extensions.prompt_contrast import LIMIT, draw_other_prompts, logprobs_under, prompt_contrast
from minclipo.logprobs import completion_logprobs
from minclipo.model import GPT
from minclipo.sampler import Rollouts, pad_right
from minclipo.tasks.chain import MAX_TOTAL, OPERANDS, ChainProblem, check_outcome, random_problem
from minclipo.toy import EOS, pretrain, toy_tokenizer

OTHERS = 2  # K
TEACH_BATCH, TEACH_RATE = 64, 1e-3  # solutions per step and learning rate where a policy is taught one way to write


@torch.no_grad()
def as_rollouts(model: GPT, problems: list[ChainProblem], texts: list[str]) -> Rollouts:
    """One finished rollout per problem, with the model's log-probs."""
    tokenizer = toy_tokenizer()
    prompts = tokenizer.encode_batch([problem.prompt for problem in problems])
    completions, lengths = pad_right(tokenizer.encode_batch([f"{text} {EOS}" for text in texts]))  # [N, T], [N]
    mask = torch.arange(completions.shape[1]) < lengths[:, None]  # [N, T]
    logprobs, _ = completion_logprobs(model, prompts, completions, mask)  # [N, T]
    N, D = len(prompts), model.config.hidden_size
    return Rollouts(prompts, 1, completions, mask, logprobs, torch.zeros(N, D), torch.ones(N, dtype=torch.bool))


def token_gains(rollouts: Rollouts, other_logprobs: Tensor) -> Tensor:
    """The pay of each token by itself, [N, T], 0 at padding: every token is made a completion."""
    alone = lambda x: x.flatten(-2)[..., None]  # [..., N, T] -> [..., N * T, 1]
    gains = prompt_contrast(alone(rollouts.logprobs), alone(other_logprobs), alone(rollouts.mask))  # [N * T]
    return gains.view_as(rollouts.mask)


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's tokens, [N] from [N, T]."""
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)


def pay(model: GPT, problems: list[ChainProblem], texts: list[str], seed: int) -> dict[str, Tensor]:
    """The gain of each completion, the mean probability of its tokens under its own prompt and under K others, and the
    share of its tokens whose gain is at the limit: they are as good as impossible under the other prompts. [N] each."""
    rollouts = as_rollouts(model, problems, texts)
    others = draw_other_prompts(len(problems), OTHERS, torch.Generator().manual_seed(seed))  # [K, N]
    other_logprobs, mask = logprobs_under(model, rollouts, others), rollouts.mask  # [K, N, T], [N, T]
    return {
        "gain": prompt_contrast(rollouts.logprobs, other_logprobs, mask),
        "own": row_means(rollouts.logprobs.exp(), mask),
        "others": row_means(other_logprobs.exp().mean(0), mask),
        "at_limit": row_means((token_gains(rollouts, other_logprobs) >= LIMIT).float(), mask),
    }


# ---- by kind of completion ----


def price_list(model: GPT, problems: list[ChainProblem], seed: int) -> dict[str, dict[str, float]]:
    """For each kind: means of what `pay` returns, share of right answers, and share of the problems on which it is paid
    more than the faithful completion."""
    found, reference = {}, pay(model, problems, written("faithful", problems, seed), seed)["gain"]
    for kind in COMPLETIONS:
        texts = written(kind, problems, seed)
        paid = pay(model, problems, texts, seed)
        right = [check_outcome(problem, text, True) for problem, text in zip(problems, texts)]
        found[kind] = {name: values.mean().item() for name, values in paid.items()}
        found[kind]["right"] = sum(right) / len(right)
        found[kind]["beats_faithful"] = (paid["gain"] > reference).float().mean().item()
    return found


def learned_prices(seed: int, problems: list[ChainProblem], count: int, out: Path) -> dict[str, dict[str, float]]:
    """What each kind with a right answer is paid by a policy that writes nothing else. `price_list` gives the prices of
    a policy that hardly ever writes like that; these are the ones that it would end up with."""
    found = {}
    for kind in COMPLETIONS:
        if not kind.startswith("wrong"):
            paid = pay(taught(kind, seed, count, out), problems, written(kind, problems, seed), seed)
            found[kind] = {name: values.mean().item() for name, values in paid.items()}
    return found


def taught(kind: str, seed: int, count: int, out: Path) -> GPT:
    """The pretrained model after `count` steps on solutions of this kind alone."""
    model, tokenizer, rng = start("toy", seed, out), toy_tokenizer(), random.Random(f"taught {kind} {seed}")

    def page() -> tuple[list[list[int]], list[list[int]]]:
        problems = [random_problem(rng) for _ in range(TEACH_BATCH)]
        texts = [f"{COMPLETIONS[kind](problem, rng)} {EOS}" for problem in problems]
        return tokenizer.encode_batch([problem.prompt for problem in problems]), tokenizer.encode_batch(texts)

    pretrain(model, page, steps=count, learning_rate=TEACH_RATE)
    return model.eval()


# ---- by the other prompts ----


def neighbour(problem: ChainProblem, kept: list[int], same_start: bool, rng: random.Random) -> ChainProblem:
    """A problem with the same operands in the places `kept`, other ones elsewhere, and the same or another start."""
    while True:
        first = problem.start if same_start else another(problem.start, range(MAX_TOTAL + 1), rng)
        operands = [n if i in kept else another(n, OPERANDS, rng) for i, n in enumerate(problem.operands)]
        found = ChainProblem(first, tuple(operands))
        if all(0 <= total <= MAX_TOTAL for total in found.totals):
            return found


def neighbours(model: GPT, seed: int, count: int) -> list[dict[str, float | None]]:
    """The pay of faithful completions against K prompts that share 0 .. 4 of their operands, one row per case: its mean
    over all tokens, over operands that the other prompts call for as well, over the other operands, over the totals."""
    rng = random.Random(f"neighbours {seed}")
    mean = lambda values: values.mean().item() if values.numel() else None
    problems = attack_problems(seed, count, margin=20)  # nearer to the ends, some have no neighbour with the same start
    rollouts, rows = as_rollouts(model, problems, written("faithful", problems, seed)), []
    operations = len(problems[0].operands)
    for same_start in (False, True):
        for shared in range(operations + 1):
            kept = [rng.sample(range(operations), shared) for _ in problems]
            near = [[neighbour(*row, same_start, rng) for row in zip(problems, kept)] for _ in range(OTHERS)]
            gains = token_gains(rollouts, under(model, rollouts, near))  # [N, T]
            coincides = torch.tensor([[i in places for i in range(operations)] for places in kept])  # [N, operations]
            operands, totals = gains[:, 0 : 2 * operations : 2], gains[:, 1 : 2 * operations : 2]  # [N, operations]
            rows.append(
                {"same_start": same_start, "shared": shared, "gain": mean(gains), "totals": mean(totals)}
                | {"shared_operands": mean(operands[coincides]), "other_operands": mean(operands[~coincides])}
            )
    return rows


def under(model: GPT, rollouts: Rollouts, others: list[list[ChainProblem]]) -> Tensor:
    """Log-probs [K, N, T] of the rollouts under the prompts of K lists of N problems."""
    prompts = [toy_tokenizer().encode_batch([problem.prompt for problem in problems]) for problems in others]
    return torch.stack([rollout_logprobs(model, replace(rollouts, prompts=some)) for some in prompts])
