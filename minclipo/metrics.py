"""What a step's rollouts say, as numbers for metrics.jsonl and the log line. The README explains each of them.

B prompts, G rollouts a prompt, N = B * G rows.
"""

import torch
from torch import Tensor

from minclipo.grpo import masked_mean
from minclipo.sampler import Rollouts


def spread(values: Tensor, chosen: Tensor) -> Tensor:
    """Largest minus smallest of the chosen values of each row, [B] from [B, G]; 0 where fewer than two are chosen."""
    high = values.masked_fill(~chosen, -torch.inf).amax(1)
    low = values.masked_fill(~chosen, torch.inf).amin(1)
    return (high - low).clamp(min=0)


def rollout_metrics(
    rollouts: Rollouts, correct: Tensor, rewards: Tensor, contrastive_rewards: Tensor
) -> dict[str, float]:
    """What the rollouts of one step say. correct, rewards, contrastive_rewards [N]."""
    G = rollouts.group_size
    by_group = correct.view(-1, G)  # [B, G]
    differences = spread(contrastive_rewards.view(-1, G), by_group)  # [B], among the correct rollouts of a prompt
    return {
        "reward": rewards.mean().item(),
        "accuracy": correct.float().mean().item(),
        "outcome_signal": (by_group.any(1) & ~by_group.all(1)).float().mean().item(),
        "contrastive_signal": (differences > 1e-6).float().mean().item(),
        "contrastive_penalty": masked_mean(-contrastive_rewards, correct).item(),
        "completion_length": rollouts.mask.sum(1).float().mean().item(),
        "finished": rollouts.finished.float().mean().item(),
    }


def faithfulness_metrics(correct: Tensor, faithful: Tensor, checked: Tensor) -> dict[str, float]:
    """Share of the correct with a wrong step, and share of all that are right throughout; correct, faithful [N] bool.

    checked [N]: the number of steps that the check found in each rollout. A rollout without any counts as faithful, so
    a hallucination rate means little where few steps are checked.
    """
    return {
        "hallucination_rate": masked_mean((~faithful).float(), correct).item(),
        "faithful_accuracy": (correct & faithful).float().mean().item(),
        "steps_checked": masked_mean(checked.float(), correct).item(),
    }


COLUMNS = (  # of the log line: metric, how it is called there, how it is written
    ("reward", "reward", ".3f"),
    ("accuracy", "acc", ".3f"),
    ("hallucination_rate", "halluc", ".3f"),
    ("outcome_signal", "signal: outcome", ".2f"),
    ("contrastive_signal", "contrast", ".2f"),
    ("contrastive_penalty", "penalty", ".3f"),
    ("kl", "kl", ".4f"),
    ("clip_fraction", "clip", ".3f"),
    ("gradient_norm", "grad", ".2f"),
    ("entropy", "entropy", ".3f"),
    ("completion_length", "length", ".1f"),
    ("seconds", "s", ".2f"),
)


def log_line(description: str, metrics: dict[str, float], steps: int) -> str:
    """The step in one line; a metric that this step does not have is left out."""
    fields = [f"{label} {metrics[name]:{form}}" for name, label, form in COLUMNS if name in metrics]
    return f"{description} {metrics['step']:>3}/{steps} " + " ".join(fields)
