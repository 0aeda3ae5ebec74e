"""What separation.py looks at: rollouts' pooled states, what each rollout is, and the settings that are compared.

N rows (the G rollouts of a prompt are adjacent), D width of the pooled states.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from variants import CLIPO, CLIPO_PAPER

from minclipo.config import TrainConfig
from minclipo.model import GPT
from minclipo.runs.recipes import TOY
from minclipo.sampler import sample
from minclipo.tasks.chain import ChainProblem
from minclipo.toy import TASK, toy_tokenizer

PAPERS, OURS = TrainConfig(**TOY | CLIPO_PAPER), TrainConfig(**TOY | CLIPO)
SETTINGS = {
    "paper's setting": PAPERS,
    "paper's, but cross level": replace(PAPERS, contrastive_level="cross"),
    "ours, but group level": replace(OURS, contrastive_level="group"),
    "our setting": OURS,
}


@dataclass
class States:
    """Pooled states of rollouts, and what each rollout is."""

    pooled: Tensor  # [N, D]
    group: Tensor  # [N], which prompt a row answers
    correct: Tensor  # [N] bool, the outcome check's verdict
    faithful: Tensor  # [N] bool, the step check's verdict on correct rows; no method that is looked at here knows it
    solution: Tensor  # [N], the first row of the same prompt with the same text

    @property
    def kinds(self) -> dict[str, Tensor]:
        """The rows of each kind, [N] bool."""
        clean, hallucinated = self.correct & self.faithful, self.correct & ~self.faithful
        return {"clean": clean, "hallucinated": hallucinated, "wrong": ~self.correct}

    @property
    def shares(self) -> dict[str, float]:
        return {kind: rows.float().mean().item() for kind, rows in self.kinds.items()}


def look(model: GPT, problems: list[ChainProblem], group_size: int, seed: int) -> States:
    """Sample `group_size` rollouts per problem, with a generator of their own, and check them."""
    tokenizer = toy_tokenizer()
    rollouts = sample(
        model,
        tokenizer.encode_batch([problem.prompt for problem in problems]),
        group_size,
        OURS.max_new_tokens,
        eos_ids=tokenizer.eos_ids,
        generator=torch.Generator().manual_seed(seed),
    )
    texts = tokenizer.decode_batch(rollouts.completion_ids())
    correct = TASK.outcomes(problems, texts, rollouts.finished.tolist())
    faithful = [verdicts is not None and all(verdicts) for verdicts in TASK.steps(problems, texts, correct)]
    first: dict[tuple[int, str], int] = {}  # row of each solution of a prompt
    solution = [first.setdefault(key, row) for row, key in enumerate(zip(rollouts.group.tolist(), texts))]
    return States(rollouts.pooled, rollouts.group, *map(torch.tensor, (correct, faithful, solution)))
