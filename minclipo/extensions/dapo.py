"""What DAPO (Yu et al. 2025, arXiv 2503.14476) adds around the loss: a choice of prompts and a penalty on length.

Its other two changes are settings of `minclipo.grpo`: clip_high above clip_low, and the mean over tokens.
Left out: overlong filtering (no loss on truncated completions), the warm-up of its learning rate.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minclipo.sampler import Rollouts
from minclipo.tasks import Problem

# B problems, G rollouts of each; of each rollout its text and whether it is right, [B * G]
Batch = tuple[list[Problem], Rollouts, list[str], Tensor]


def informative_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Which prompts can teach anything: [B] bool from rewards [B * G]; those whose rollouts do not all earn the same.

    Dynamic sampling (DAPO, section 3.2: 0 < number of right rollouts < G) drops the others and samples on: with these
    rewards alone all their advantages would be 0. A group of one has nothing to be compared with and is kept, as in
    verl.
    """
    assert rewards.ndim == 1 and len(rewards) % group_size == 0, f"rewards must be [B * {group_size}]: {rewards.shape}"
    if group_size == 1:
        return torch.ones_like(rewards, dtype=torch.bool)
    grouped = rewards.view(-1, group_size)  # [B, G]
    return grouped.amax(1) != grouped.amin(1)  # exact, where a standard deviation of equal floats can be 1e-17


def dynamic_sampling(collect: Callable[[], Batch], limit: int) -> tuple[Batch, dict[str, float]]:
    """A batch whose problems are all solved sometimes but not always, and metrics of the search for them.

    collect() samples and verifies a batch. It is called until there are as many informative problems as the first batch
    has problems, but at most `limit` times. Then problems that teach nothing fill the batch up; the metric `filled_up`
    says how many. (verl stops with an error there, which would end a training that has solved nearly everything.)
    """
    kept, spare, batches, right, wanted = [], None, 0, 0.0, 1
    while batches < limit and sum(len(part[0]) for part in kept) < wanted:
        problems, rollouts, _, correct = batch = collect()
        informative = informative_groups(correct.float(), rollouts.group_size)  # [B]
        kept.append(select(batch, informative.nonzero()[:, 0].tolist()))
        if spare is None:  # the first batch has as many others as can ever be missing
            wanted, spare = len(problems), select(batch, (~informative).nonzero()[:, 0].tolist())
        batches, right = batches + 1, right + correct.float().mean().item()
    missing = max(0, wanted - sum(len(part[0]) for part in kept))
    metrics = {"batches_sampled": batches, "accuracy_sampled": right / batches, "filled_up": missing}
    problems, rollouts, texts, correct = zip(*(part for part in [*kept, spare] if part[0]))
    whole = (sum(problems, []), Rollouts.join(rollouts), sum(texts, []), torch.cat(correct))
    return select(whole, list(range(wanted))), metrics


def select(batch: Batch, places: list[int]) -> Batch:
    """Some of the batch's problems, by their places, with their rollouts, texts and verdicts."""
    problems, rollouts, texts, correct = batch
    rows = [place * rollouts.group_size + i for place in places for i in range(rollouts.group_size)]
    of_rows = torch.tensor(rows, dtype=torch.long, device=correct.device)
    tensors = (rollouts.completions, rollouts.mask, rollouts.logprobs, rollouts.pooled, rollouts.finished)
    kept = Rollouts(
        [rollouts.prompts[place] for place in places],
        rollouts.group_size,
        *(tensor.index_select(0, of_rows) for tensor in tensors),
    )
    return [problems[place] for place in places], kept, [texts[row] for row in rows], correct.index_select(0, of_rows)


def overlong_penalty(lengths: Tensor, max_length: int, *, buffer: float, penalty: float) -> Tensor:
    """Soft overlong punishment, [N] float32, 0 or less, to be added to the rewards; lengths [N] in tokens.

        p_i = -penalty * clip((|y_i| - (max_length - buffer)) / buffer, 0, 1)        DAPO, eq. 13

    It grows over the last `buffer` tokens before max_length. The paper's penalty of 1 goes with rewards of 1 and -1;
    with rewards of 1 and 0 the same is 0.5.

    >>> overlong_penalty(torch.tensor([16, 18, 20]), 20, buffer=4, penalty=1.0)
    tensor([-0.0000, -0.5000, -1.0000])
    """
    assert 0 < buffer <= max_length, f"buffer must be above 0 and at most max_length {max_length}, found {buffer}"
    assert penalty >= 0, f"penalty must be 0 or more, found {penalty}"
    return -penalty * ((lengths.float() - (max_length - buffer)) / buffer).clamp(0, 1)
