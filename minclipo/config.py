"""Every option of a training run: a field, its default, one sentence."""

from dataclasses import dataclass

from minclipo.contrastive import HEADS, LEVELS, LOSSES, SIMILARITIES
from minclipo.grpo import AGGREGATIONS, KL_KINDS, RATIOS, SCALES
from minclipo.options import check_options, option


@dataclass
class TrainConfig:
    """Everything a run depends on besides model, tokenizer and task."""

    steps: int = option(60, "training steps, head warm-up included", at_least=1)
    prompts_per_step: int = option(32, "prompts of a step (B)", at_least=1)
    group_size: int = option(16, "rollouts of each prompt (G)", at_least=1)
    max_new_tokens: int = option(16, "longest completion, in tokens", at_least=1)
    temperature: float = option(1.0, "sampling temperature of the rollouts, and of all log-probs", above=0)
    seed: int = option(
        0, "seed of the problems, of the sampling and of the head's weights", at_least=0, at_most=2**63 - 1
    )

    learning_rate: float = option(3e-4, "AdamW's learning rate for the policy", above=0)
    weight_decay: float = option(0.0, "AdamW's weight decay for the policy", at_least=0)
    max_grad_norm: float = option(1.0, "the policy's gradient is scaled down to this L2 norm if it is longer", above=0)
    mini_batches: int = option(2, "optimizer steps that a step's rollouts are split into", at_least=1)
    sampling_rows: int = option(
        0, "most rollouts that grow at the same time; changes memory, not quality; 0: no limit", at_least=0
    )
    micro_batch_tokens: int = option(
        0, "most tokens of one forward and backward pass; changes memory, not the gradient; 0: no limit", at_least=0
    )
    advantage_scale: str = option("std", "what divides advantages; none is Dr. GRPO's choice", choices=SCALES)
    advantage_epsilon: float = option(1e-6, "added to that divisor", at_least=0)
    ratio: str = option("token", "what is clipped: sequence is GSPO's, geometric_mean GMPO's", choices=RATIOS)
    clip_low: float = option(0.2, "ratios below 1 - this are clipped (geometric_mean: logs below -this)", at_least=0)
    clip_high: float = option(0.2, "ratios above 1 + this are clipped (geometric_mean: logs above this)", at_least=0)
    dual_clip: float = option(0.0, "ratio (above 1) that bounds the loss of negative advantages; 0: none", at_least=0)
    aggregation: str = option("token_mean", "how token losses become one number", choices=AGGREGATIONS)
    kl_weight: float = option(0.0, "weight of a KL penalty to the initial policy, in the loss; 0: none", at_least=0)
    kl_kind: str = option("k3", "estimator of that KL penalty", choices=KL_KINDS)
    dynamic_sampling: int = option(
        0,
        "most batches sampled a step, to fill it with prompts that are neither always nor never solved; 0: take the "
        "first batch as it is",
        at_least=0,
    )
    overlong_penalty: float = option(0.0, "what a completion of max_new_tokens loses in reward; 0: none", at_least=0)
    overlong_buffer: float = option(
        0.2, "share of max_new_tokens, at the end, over which that penalty grows", above=0, at_most=1
    )

    contrastive_weight: float = option(0.0, "lambda, weight of the contrastive loss in the reward; 0: GRPO", at_least=0)
    contrastive_loss: str = option("soft_nn", "which contrastive loss", choices=LOSSES)
    contrastive_level: str = option("cross", "where positives and negatives come from", choices=LEVELS)
    contrastive_temperature: float = option(0.5, "tau, divides the similarities", above=0)
    contrastive_similarity: str = option("cosine", "similarity of two embeddings", choices=SIMILARITIES)
    contrastive_anchors: str = option("correct", "rollouts that train the head", choices=("correct", "all"))
    contrastive_center: bool = option(True, "subtract the mean pooled state of the prompt's group before the head")
    contrastive_floor: float = option(-0.5, "lowest contrastive reward", at_most=0)
    contrastive_constant: float = option(0.0, "added to the contrastive reward of every rollout")
    head_kind: str = option("linear", "shape of the contrastive head", choices=HEADS)
    head_size: int = option(32, "width of the embeddings", at_least=1)
    head_learning_rate: float = option(1e-3, "AdamW's learning rate for the head; 0 freezes it", at_least=0)
    head_weight_decay: float = option(0.01, "AdamW's weight decay for the head", at_least=0)
    head_warmup_steps: int = option(0, "first steps, in which only the head learns", at_least=0)

    prompt_contrast_weight: float = option(
        0.0, "ours, not the paper's: reward of a right answer for being likelier under its own prompt", at_least=0
    )
    prompt_contrast_others: int = option(2, "other prompts that it is compared with (K)", at_least=1)

    process_penalty: float = option(
        0.0, "the oracle: what a wrong step costs a correct rollout; 0: never looks", at_least=0
    )
    save_every: int = option(20, "steps between two copies of model and training state on disk", at_least=1)
    keep_states: int = option(2, "training states that stay on disk for --resume; 0: none is written", at_least=0)

    def __post_init__(self):
        check_options(self)
        if self.ratio != "geometric_mean" and self.clip_low > 1:
            raise ValueError(f"clip_low must be at most 1, found {self.clip_low}: no ratio is below 0")
        if 0 < self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1, or 0 for none; found {self.dual_clip}")
        if self.prompt_contrast_weight and self.prompt_contrast_others >= self.prompts_per_step:
            raise ValueError(
                f"prompt_contrast_others {self.prompt_contrast_others} must be below prompts_per_step "
                f"{self.prompts_per_step}: the others come from the same batch"
            )
        if self.head_warmup_steps >= self.steps:
            raise ValueError(f"head_warmup_steps {self.head_warmup_steps} leaves the policy none of {self.steps} steps")
        if self.head_warmup_steps and not self.contrastive_weight:
            raise ValueError(f"head_warmup_steps is {self.head_warmup_steps}, but contrastive_weight 0 has no head")
        if self.head_warmup_steps and (self.head_kind == "none" or self.head_learning_rate == 0):
            raise ValueError(f"head_warmup_steps is {self.head_warmup_steps}, but this head does not learn")
        if self.dynamic_sampling == 1:
            raise ValueError(
                "dynamic_sampling must be 0 (off) or at least 2 batches: with 1 there is nothing to choose"
            )


# An option that does nothing unless another one is set: (that other one, how the options begin that need it).
SWITCHES = (
    ("contrastive_weight", ("contrastive_", "head_")),
    ("prompt_contrast_weight", ("prompt_contrast_",)),
    ("kl_weight", ("kl_kind",)),
    ("overlong_penalty", ("overlong_",)),
)


def refuse_idle(given: dict, chosen: dict) -> None:
    """ValueError naming the first given option that does nothing with these settings. given, chosen: {option: value}."""
    for switch, beginnings in SWITCHES:
        idle = [name for name in given if name.startswith(beginnings) and name != switch]
        if idle and not chosen.get(switch):
            raise ValueError(f"--{idle[0].replace('_', '-')} does nothing without --{switch.replace('_', '-')}")
