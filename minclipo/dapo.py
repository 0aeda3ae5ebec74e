"""What DAPO (Yu et al. 2025, arXiv 2503.14476) adds around the loss: which prompts to train on, and a price on length.

Its other two changes are settings of `minclipo.grpo`: clip_high above clip_low, and the mean over tokens.
Left out: overlong filtering (no loss on truncated completions), the warm-up of its learning rate.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from minclipo.sampler import Rollouts, join
from minclipo.tasks import Problem

Batch = tuple[list[Problem], Rollouts, Tensor]  # B problems, G rollouts of each, verdict on each rollout [B * G]


def informative_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Which prompts can teach anything: [B] bool from rewards [B * G]; those whose rollouts do not all earn the same.

    Dynamic sampling (DAPO, section 3.2: 0 < number of right rollouts < G) drops the others and samples on: with these
    rewards alone all their advantages would be 0. A group of one has nothing to be compared with and is kept, as in
    verl.
    """
    if rewards.ndim != 1 or group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"rewards must be [B * {group_size}], found shape {tuple(rewards.shape)}")
    if group_size == 1:
        return torch.ones_like(rewards, dtype=torch.bool)
    grouped = rewards.view(-1, group_size)  # [B, G]
    return grouped.amax(1) != grouped.amin(1)  # exact, where a standard deviation of equal floats can be 1e-17


def dynamic_sampling(collect: Callable[[], Batch], limit: int) -> tuple[Batch, dict[str, float]]:
    """A batch whose problems are all solved sometimes but not always, and metrics of the search for them.

    collect() samples and verifies a batch; it is called until as many informative problems have been found as the first
    batch holds, at most `limit` times. Then problems that teach nothing fill the batch up, and the log says so: verl
    stops with an error there, which would end a training that has solved nearly everything.
    """
    found, spare, batches, right, wanted = [], None, 0, 0.0, 1
    while batches < limit and sum(len(part[0]) for part in found) < wanted:
        problems, rollouts, correct = batch = collect()
        informative = informative_groups(correct.float(), rollouts.group_size)  # [B]
        found.append(_part(batch, informative.nonzero()[:, 0].tolist()))
        if spare is None:  # the first batch holds as many others as can ever be missing
            wanted, spare = len(problems), _part(batch, (~informative).nonzero()[:, 0].tolist())
        batches, right = batches + 1, right + correct.float().mean().item()
    missing = wanted - sum(len(part[0]) for part in found)
    if missing > 0:
        tqdm.write(
            f"dynamic sampling gives up: of {batches} batches {wanted - missing} problems are solved sometimes but not "
            f"always; {missing} others fill the batch"
        )
        found.append(spare)
    found = [part for part in found if part[0]]
    problems = [problem for part in found for problem in part[0]]
    whole = (problems, join([part[1] for part in found]), torch.cat([part[2] for part in found]))
    return _part(whole, list(range(wanted))), {"batches_sampled": batches, "accuracy_sampled": right / batches}


def _part(batch: Batch, places: list[int]) -> Batch:
    """Some of the batch's problems, by their places, with their rollouts and verdicts."""
    problems, rollouts, correct = batch
    return (
        [problems[p] for p in places],
        rollouts.select(places),
        correct.view(-1, rollouts.group_size)[places].flatten(),
    )


def overlong_penalty(lengths: Tensor, max_length: int, *, buffer: float, penalty: float) -> Tensor:
    """Soft overlong punishment, [N] float32, 0 or less, to be added to the rewards; lengths [N] in tokens.

        p_i = -penalty * clip((|y_i| - (max_length - buffer)) / buffer, 0, 1)        DAPO, eq. 13

    It grows over the last `buffer` tokens before max_length. The paper's penalty of 1 goes with rewards of 1 and -1;
    with rewards of 1 and 0 the same is 0.5.

    >>> overlong_penalty(torch.tensor([16, 18, 20]), 20, buffer=4, penalty=1.0)
    tensor([-0.0000, -0.5000, -1.0000])
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer must be above 0 and at most max_length {max_length}, found {buffer}")
    if not penalty >= 0:
        raise ValueError(f"penalty must be 0 or more, found {penalty}")
    return -penalty * ((lengths.float() - (max_length - buffer)) / buffer).clamp(0, 1)
