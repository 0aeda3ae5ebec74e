"""Part 2 of separation.py: how much of the contrastive loss reaches the reward, and in how many groups?

B prompts, G rollouts per prompt, N = B * G rows.
"""

import torch
import torch.nn.functional as F
from separation_auc import loss_of, mean, mean_auc, random_heads
from separation_states import SETTINGS, States
from torch import Tensor

from minclipo.config import TrainConfig
from minclipo.contrastive import ContrastiveHead, center_by_group, contrastive_reward
from minclipo.runs.measure import spread


def signals(states: States, head_number: int, seed: int) -> dict:
    """Everything that part 2 says about one model."""
    by_group = [states.correct[states.group == b] for b in states.group.unique()]
    shares = states.shares
    accuracy = shares["clean"] + shares["hallucinated"]
    by_setting = {}
    for name, config in SETTINGS.items():
        heads = random_heads(states.pooled.shape[1], config.head_size, head_number, seed)
        by_setting[name] = signal(states, config, heads, seed)
    return {
        "accuracy": accuracy,
        "hallucination_rate": shares["hallucinated"] / accuracy if accuracy else None,
        "both_verdicts": mean([float(group.any() and not group.all()) for group in by_group]),
        "cosine": {name: cosines(states, center=center) for name, center in (("as it is", False), ("centred", True))},
        "settings": by_setting,
    }


def signal(states: States, config: TrainConfig, heads: list[ContrastiveHead], seed: int) -> dict[str, float | None]:
    """How the contrastive reward of one setting tells correct rollouts apart. Means over the heads.

    differ: share of groups whose correct rollouts differ in contrastive reward (by more than 1e-6).
    compared: share of the correct rollouts that have a contrastive loss at all.
    at_floor: share of those whose reward is the floor.
    loss_low, loss_median, loss_high: 5%, 50% and 95% quantiles of their losses.
    reward_spread: largest minus smallest reward within a group, mean over all groups.
    reward_auc: AUC within a group: do hallucinated rollouts earn less than clean ones? Ties count half.
    """
    found = [signal_of_head(states, config, head, seed + i) for i, head in enumerate(heads)]
    return {name: mean([one[name] for one in found]) for name in found[0]}


def signal_of_head(states: States, config: TrainConfig, head: ContrastiveHead, seed: int) -> dict[str, float | None]:
    """The numbers of `signal` for one head."""
    G = int((states.group == states.group[0]).sum())
    found = loss_of(
        states,
        head,
        center=config.contrastive_center,
        seed=seed,
        loss=config.contrastive_loss,
        level=config.contrastive_level,
        temperature=config.contrastive_temperature,
    )
    reward = contrastive_reward(
        found.loss, states.correct, weight=config.contrastive_weight, floor=config.contrastive_floor
    )  # [N]
    spreads = spread(reward.view(-1, G), states.correct.view(-1, G))  # [B]
    losses = found.loss[found.anchors]  # [anchors]
    quantiles = losses.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist() if len(losses) else [None] * 3
    return {
        "differ": share(spreads > 1e-6),
        "compared": share(found.anchors[states.correct]),
        "at_floor": share(reward[found.anchors] <= config.contrastive_floor),
        **dict(zip(("loss_low", "loss_median", "loss_high"), quantiles)),
        "reward_spread": spreads.mean().item(),
        "reward_auc": mean_auc(-reward, states, found.anchors)[0],
    }


def share(rows: Tensor) -> float | None:
    """Share of the rows [n] that are true; None if there are no rows."""
    return rows.float().mean().item() if len(rows) else None


def cosines(states: States, *, center: bool) -> dict[str, float | None]:
    """Mean cosine between the pooled states of two rollouts of one prompt: of any two, and by kind.

    Centred states that are exactly 0 (all rollouts of the prompt are the same) have no direction and are left out.
    """
    pooled = center_by_group(states.pooled, states.group) if center else states.pooled  # [N, D]
    z = F.normalize(pooled, dim=1)
    cosine = z @ z.T  # [N, N]
    pairs = states.group[:, None] == states.group[None, :]
    pairs &= ~torch.eye(len(z), dtype=torch.bool)
    directed = pooled.any(1)  # [N]
    pairs &= directed[:, None] & directed[None, :]
    of_kinds = lambda a, b: pairs & states.kinds[a][:, None] & states.kinds[b][None, :]
    chosen = {"any two": pairs}
    chosen["clean, clean"] = of_kinds("clean", "clean")
    chosen["clean, hallucinated"] = of_kinds("clean", "hallucinated")
    return {name: cosine[which].mean().item() if which.any() else None for name, which in chosen.items()}
