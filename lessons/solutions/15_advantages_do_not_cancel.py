"""Solution: the rows lay sample by sample, and the groups were taken prompt by prompt.

`list(prompts) * group_size` gives a, b, a, b, while `group_advantages` takes
neighbours for a group: a, a, b, b. So a rollout was compared with those of other
prompts: all of an easy prompt came out good, all of a hard one bad. That is still a
policy gradient, with a bad baseline (lesson 4), so it learns; it is only noisier.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minclipo.grpo import group_advantages


def collect(
    prompts: list, group_size: int, draw: Callable, grade: Callable
) -> tuple[list, list, Tensor]:
    """Rollouts of each prompt, and how much better each was than its prompt's others.

    draw(prompts): one completion for each of the prompts it is given, in one batch.
    grade(prompt, completion): the reward of a completion. Returns N = B * group_size
    rows: (prompts [N], completions [N], advantages [N]).
    """
    rows = [prompt for prompt in prompts for _ in range(group_size)]  # N prompts
    completions = draw(rows)
    rewards = torch.tensor([grade(*row) for row in zip(rows, completions)])  # [N]
    return rows, completions, group_advantages(rewards, group_size)
