"""Group Relative Policy Optimization as pure functions: advantages, the clipped policy loss, KL estimators.

GRPO (Shao et al. 2024, arXiv 2402.03300) is PPO without a value network: a rollout's advantage is its reward compared
with the other rollouts of the same prompt. Dr. GRPO, DAPO, GSPO and GMPO change one of three things about it: what
divides the advantage, which ratio is clipped, how token losses become one number. runs/recipes.py has their settings.
Left out: the value network, GAE, entropy bonus. Nothing here knows where the rewards come from.

B prompts, G rollouts per prompt, N = B * G rows (the G rows of a prompt adjacent), T completion tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SCALES = ("std", "batch", "none")
RATIOS = ("token", "sequence", "geometric_mean")
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "constant")
KL_KINDS = ("k1", "k2", "k3")


def group_advantages(rewards: Tensor, group_size: int, *, scale: str = "std", epsilon: float = 1e-6) -> Tensor:
    """Advantage of each rollout over its group, [N] float32 (float64 for float64 rewards), from rewards [N].

        A_i = (R_i - mean_g) / (std_g + epsilon)        DeepSeekMath, section 4.1.2; std with n - 1

    scale: "std" divides by the group's standard deviation, "batch" by that of the whole batch, "none" by nothing (Dr.
    GRPO, Liu et al. 2025: dividing favours prompts that are nearly always or nearly never solved).
    Equal rewards give exactly 0, and so do those that differ by rounding alone (4 units of their last place): divided
    by epsilon it may be 0.2. The arithmetic is float64, since in float32 the mean of sixteen times 0.9 is not 0.9.

    >>> group_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), group_size=2)
    tensor([ 0.7071, -0.7071,  0.0000,  0.0000])
    """
    assert rewards.ndim == 1 and len(rewards) % group_size == 0, f"rewards must be [B * {group_size}]: {rewards.shape}"
    assert rewards.isfinite().all(), "rewards must be finite"
    assert scale in SCALES, f"{scale=} must be one of {SCALES}"
    grouped = rewards.cpu().double().view(-1, group_size)  # [B, G]; on the CPU, since not every accelerator has float64
    advantages = grouped - grouped.mean(1, keepdim=True)
    if scale == "std" and group_size > 1:
        advantages = advantages / (grouped.std(1, keepdim=True) + epsilon)
    if scale == "batch" and len(rewards) > 1:
        advantages = advantages / (grouped.std() + epsilon)
    dtype = torch.promote_types(rewards.dtype, torch.float32)
    spread, largest = grouped.amax(1, keepdim=True) - grouped.amin(1, keepdim=True), grouped.abs().amax(1, keepdim=True)
    equal = spread <= 4 * torch.finfo(dtype).eps * largest  # [B, 1]
    advantages = advantages.masked_fill(equal, 0.0)  # after the division, which without an epsilon was 0 / 0
    return advantages.flatten().to(rewards.device, dtype)


def token_weights(
    mask: Tensor, aggregation: str = "token_mean", max_length: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weights [N, T] that turn the token losses of a batch into one number: loss = sum(weights * token_loss).

    |y_i| is the number of tokens of row i, M that of all rows, N+ the number of rows that have any.

        token_mean      1 / M                  every token counts the same (DAPO; the default of verl and of CLIPO)
        sequence_mean   1 / (N+ |y_i|)         every rollout counts the same (GRPO as published)
        sequence_sum    1 / N+                 long rollouts count more
        constant        1 / (N max_length)     Dr. GRPO: the weight of a token does not depend on any length drawn

    A batch that is cut into micro-batches sums weights * token_loss of each part, with the weights of the whole batch.
    """
    assert aggregation in AGGREGATIONS, f"{aggregation=} must be one of {AGGREGATIONS}"
    mask = mask.to(dtype)
    lengths = mask.sum(1, keepdim=True)  # [N, 1]
    rows = (lengths > 0).sum().clamp(min=1)
    if aggregation == "token_mean":
        return mask / lengths.sum().clamp(min=1)
    if aggregation == "sequence_mean":
        return mask / (rows * lengths.clamp(min=1))
    if aggregation == "sequence_sum":
        return mask / rows
    assert max_length, "aggregation 'constant' needs max_length, the most tokens that a completion may have"
    return mask / (len(mask) * max_length)


def aggregate(token_loss: Tensor, weights: Tensor) -> Tensor:
    """One number from token losses [N, T] and their `token_weights` [N, T]. Values of weight 0 are never read."""
    assert token_loss.shape == weights.shape, f"found token_loss {token_loss.shape}, weights {weights.shape}"
    return (weights * token_loss.masked_fill(weights == 0, 0.0)).sum()


@dataclass
class PolicyLoss:
    """The number to differentiate, and what a learner wants to watch (detached)."""

    loss: Tensor  # scalar. Its value is not a metric: on-policy it is -mean(advantage), about 0 whatever happens
    clip_fraction: Tensor  # share of tokens whose gradient the clip has cut off
    dual_clip_fraction: Tensor  # share of tokens whose gradient the dual clip has cut off
    kl: Tensor  # mean of old - new log-probs: k1 estimate of KL(old || new), how far this update has moved already


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio: str = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """The clipped token losses of PPO, GRPO, GSPO and GMPO as one number, to be minimised.

        d_t = logprob_t - old_logprob_t
        L_t = max(-A r_t, -A clip(r_t, 1 - clip_low, 1 + clip_high))     Schulman et al. 2017, eq. 7
        L_t = min(L_t, -A dual_clip)  where A < 0                        Ye et al. 2020 (dual clip); 0: without

    ratio: what r_t is.
        token            exp(d_t)                                        PPO, GRPO, DAPO
        sequence         exp(mean of the rollout's d_t), at every token  GSPO, arXiv 2507.18071, section 4.1
        geometric_mean   the same mean, of d_t clipped one by one:       GMPO, arXiv 2507.20673
                         d_t < clip_high where A > 0, d_t > -clip_low where A < 0; r_t itself is not clipped

    logprobs (with gradient), old_logprobs, mask: [N, T], the log-probs at the sampling temperature; advantages [N].
    clip_high above clip_low is DAPO's clip-higher. weights [N, T]: how the token losses become one number, see
    `token_weights`; None: their mean. The fractions and the KL are means over the mask whatever the weights.
    """
    assert logprobs.shape == old_logprobs.shape == mask.shape, "logprobs, old_logprobs and mask must all be [N, T]"
    assert advantages.shape == mask.shape[:1], f"advantages must be [N] = [{len(mask)}], found {advantages.shape}"
    assert ratio in RATIOS, f"{ratio=} must be one of {RATIOS}"
    assert min(clip_low, clip_high) >= 0, f"the clip range must not be negative, found {clip_low=}, {clip_high=}"
    assert not dual_clip or dual_clip > 1, f"dual_clip must be above 1 (0: off), found {dual_clip}"
    mask = mask.bool()
    advantage = advantages[:, None]  # [N, 1]
    log_ratio = (logprobs - old_logprobs.detach()).masked_fill(~mask, 0.0)  # [N, T]
    log_ratio = log_ratio.clamp(-20, 20)  # keeps exp() finite in float32 when a policy has run away
    if ratio == "geometric_mean":
        bounded = torch.where(advantage > 0, log_ratio.clamp(max=clip_high), log_ratio.clamp(min=-clip_low))
        token_loss = -advantage * sequence_log_ratio(bounded, mask).exp()
        cut = (bounded != log_ratio) & (advantage != 0)
    else:
        unclipped = (log_ratio if ratio == "token" else sequence_log_ratio(log_ratio, mask)).exp()
        clipped = unclipped.clamp(1 - clip_low, 1 + clip_high)
        token_loss = torch.maximum(-advantage * unclipped, -advantage * clipped)
        cut = -advantage * clipped > -advantage * unclipped
    dual = torch.zeros_like(mask)
    if dual_clip:
        limit = -advantage * dual_clip
        dual = (advantage < 0) & (token_loss > limit)
        token_loss = torch.where(advantage < 0, torch.minimum(token_loss, limit), token_loss)
    return PolicyLoss(
        loss=aggregate(token_loss, token_weights(mask, dtype=token_loss.dtype) if weights is None else weights),
        clip_fraction=masked_mean(cut.float(), mask),
        dual_clip_fraction=masked_mean(dual.float(), mask),
        kl=masked_mean(-log_ratio.detach(), mask),
    )


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The mean log-ratio of each rollout, at every one of its tokens; [N, T] from [N, T].

        s_t = sg[mean of d] + d_t - sg[d_t]        GSPO, section 4.3 (the token form); sg: no gradient

    The value is the mean, the gradient goes to the token itself. Where the tokens of a rollout weigh the same (they do
    in every aggregation here), their sum has the gradient of the mean; where they do not, each token keeps its weight.
    """
    mean = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)  # [N, 1]
    return mean.detach() + (log_ratio - log_ratio.detach())  # in this order: the parenthesis is exactly 0


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, kind: str = "k3", mask: Tensor | None = None) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens drawn by the policy (Schulman 2020, a note).

    d = logprob - ref_logprob, same shape in and out. Outside the mask (None: everything counts) it is 0 and nothing is
    read: a slope of inf there, times the weight 0 of `aggregate`, would be a gradient of NaN.

        k1   d                   unbiased, may be negative. As a loss it teaches nothing: its gradient is 0 on average
        k2   d^2 / 2             biased value, but its gradient is the gradient of the true KL
        k3   exp(-d) + d - 1     unbiased, never negative; GRPO's choice (DeepSeekMath eq. 4). As a loss its gradient is
                                 on average that of KL(reference || policy)
    """
    assert logprobs.shape == ref_logprobs.shape, f"found logprobs {logprobs.shape}, ref_logprobs {ref_logprobs.shape}"
    assert kind in KL_KINDS, f"{kind=} must be one of {KL_KINDS}"
    d = logprobs - ref_logprobs.detach()
    if mask is not None:
        d = d.masked_fill(~mask.bool(), 0.0)
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    return torch.expm1(-d) + d  # expm1: exp(-d) - 1 without cancellation for small d


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values over the mask; NaN where the mask is empty, since nothing has no mean."""
    return values.masked_fill(~mask.bool(), 0.0).sum() / mask.sum()
