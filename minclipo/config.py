"""Every option of a training run: its default, its sentence, its bounds, what it needs, all on its own line."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

from minclipo.contrastive import HEADS, LEVELS, LOSSES, SIMILARITIES
from minclipo.grpo import AGGREGATIONS, KL_KINDS, RATIOS, SCALES

LARGEST = 10**9  # of a number without a bound of its own: one with more digits is a slip of the finger


def option(
    default,
    sentence: str,
    *,
    group: str,
    choices=None,
    at_least=None,
    above=None,
    at_most=None,
    needs="",
    later=False,
    common=False,
):
    """A dataclass field with everything there is to say about an option.

    group: its heading in --help. choices, above, at_least, at_most: which values it may have. needs: the option without
    which it does nothing. later: a run that is resumed may change it, since it does not change what is learnt. common:
    --help has it; the others are in --help-all.
    """
    bounds = {"choices": choices, "at_least": at_least, "above": above, "at_most": at_most}
    metadata = bounds | {"help": sentence, "group": group, "needs": needs, "later": later, "common": common}
    return dataclasses.field(default=default, metadata=metadata)


def check(config) -> None:
    """ValueError naming the first field whose value its `option` does not allow, and what was found."""
    for field in dataclasses.fields(config):
        value, allowed = getattr(config, field.name), field.metadata
        if allowed["choices"] is not None and value not in allowed["choices"]:
            raise ValueError(f"{field.name} must be one of {', '.join(allowed['choices'])}; found {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} must be a finite number, found {value}")
        if allowed["above"] is not None and value <= allowed["above"]:
            raise ValueError(f"{field.name} must be above {allowed['above']}, found {value}")
        if isinstance(value, (int, float)):
            low = -LARGEST if allowed["at_least"] is None else allowed["at_least"]
            high = LARGEST if allowed["at_most"] is None else allowed["at_most"]
            if value < low:
                raise ValueError(f"{field.name} must be at least {low}, found {value}")
            if value > high:
                raise ValueError(f"{field.name} must be at most {high}, found {value}")


_divides = dict(above=0, at_least=1e-6)  # a divisor: by 1e-38, a float32 number overflows
_rollouts = partial(option, group="rollouts")
_update = partial(option, group="update")
_algorithm = partial(option, group="algorithm (set by --algorithm)")
_clipo = partial(option, group="CLIPO", needs="contrastive_weight")
_prompt_contrast = partial(option, group="prompt contrast, our own extension", needs="prompt_contrast_weight")
_run = partial(option, group="run", later=True)


@dataclass
class TrainConfig:
    """Everything a run depends on besides model, tokenizer and task."""

    steps: int = _run(60, "training steps, head warm-up included", at_least=1, common=True)
    seed: int = _run(
        0,
        "seed of problems, sampling, head and adapters",
        at_least=0,
        at_most=2**63 - 1,
        later=False,
        common=True,
    )
    save_every: int = _run(20, "steps between two copies of model and training state on disk", at_least=1)
    keep_states: int = _run(2, "training states kept on disk for --resume; 0: none, earlier ones go", at_least=0)
    # As save_every. A rollout takes a kilobyte or a few, so that all those that are kept of Track I, 8192 per kept step,
    # take less room than one of its training states.
    keep_rollouts: int = _run(
        20, "the rollouts of step 1 and of every n-th step are kept in rollouts.jsonl; 0: none", at_least=0
    )

    prompts_per_step: int = _rollouts(32, "prompts per step (B)", at_least=1, at_most=100_000, common=True)
    group_size: int = _rollouts(
        16, "rollouts per prompt (G), compared with each other", at_least=2, at_most=10_000, common=True
    )
    max_new_tokens: int = _rollouts(16, "longest completion, in tokens", at_least=1, common=True)
    temperature: float = _rollouts(1.0, "sampling temperature of the rollouts, and of all log-probs", **_divides)
    sampling_rows: int = _rollouts(
        0,
        "maximum number of rollouts sampled in parallel; affects memory only; 0: no limit",
        at_least=0,
        later=True,
        common=True,
    )

    row_seeds: bool = _rollouts(
        False,
        "a rollout's random numbers follow from seed, problem and row, whatever else is sampled; several processes need it",
    )

    learning_rate: float = _update(3e-4, "AdamW's learning rate for the policy", above=0, common=True)
    learning_rate_schedule: str = _update(
        "constant", "how it goes on after its warm-up", choices=("constant", "linear", "cosine"), common=True
    )
    learning_rate_warmup: int = _update(
        0, "first steps, in which it rises; head warm-up counts", at_least=0, common=True
    )
    weight_decay: float = _update(0.0, "AdamW's weight decay for the policy", at_least=0)
    max_grad_norm: float = _update(1.0, "the policy's gradient is scaled down to this L2 norm if it is longer", above=0)
    num_mini_batches: int = _update(2, "optimizer steps that a step's rollouts are split into", at_least=1, common=True)
    micro_batch_tokens: int = _update(
        0,
        "most tokens per forward and backward pass; affects memory only; 0: no limit",
        at_least=0,
        later=True,
        common=True,
    )

    ratio: str = _algorithm("token", "what is clipped: sequence is GSPO's, geometric_mean GMPO's", choices=RATIOS)
    clip_low: float = _algorithm(
        0.2, "ratios below 1 - this are clipped (geometric_mean: logs below -this)", at_least=0
    )
    clip_high: float = _algorithm(
        0.2, "ratios above 1 + this are clipped (geometric_mean: logs above this)", at_least=0
    )
    dual_clip: float = _algorithm(
        0.0, "ratio (above 1) that bounds the loss of negative advantages; 0: off", at_least=0
    )
    aggregation: str = _algorithm("token_mean", "how token losses become one number", choices=AGGREGATIONS)
    advantage_scale: str = _algorithm("std", "what divides advantages; none is Dr. GRPO's choice", choices=SCALES)
    advantage_epsilon: float = _update(1e-6, "added to what divides the advantages", at_least=0)
    kl_weight: float = _algorithm(
        0.0, "weight of a KL penalty to the initial policy, in the loss; 0: none", at_least=0, common=True
    )
    kl_kind: str = _algorithm("k3", "estimator of that KL penalty", choices=KL_KINDS, needs="kl_weight")
    dynamic_sampling: int = _algorithm(
        0,
        "most batches sampled per step to fill it with prompts that are neither always nor never solved; 0: off",
        at_least=0,
        at_most=1000,
    )
    overlong_penalty: float = _algorithm(
        0.0, "what a completion of max_new_tokens loses in reward; 0: nothing", at_least=0
    )
    overlong_buffer: float = _algorithm(
        0.2,
        "share of max_new_tokens, at the end, over which that penalty grows",
        **_divides,
        at_most=1,
        needs="overlong_penalty",
    )

    contrastive_weight: float = _clipo(
        0.0, "lambda, weight of the contrastive loss in the reward; 0: off", at_least=0, needs="", common=True
    )
    contrastive_loss: str = _clipo("soft_nn", "which contrastive loss", choices=LOSSES, common=True)
    contrastive_level: str = _clipo("cross", "where positives and negatives come from", choices=LEVELS, common=True)
    contrastive_temperature: float = _clipo(0.5, "tau, divides the similarities", **_divides, common=True)
    contrastive_similarity: str = _clipo("cosine", "similarity of two embeddings", choices=SIMILARITIES)
    contrastive_anchors: str = _clipo("correct", "rollouts that train the head", choices=("correct", "all"))
    contrastive_center: bool = _clipo(True, "subtract the mean pooled state of the prompt's group before the head")
    contrastive_floor: float = _clipo(-0.5, "lowest contrastive reward", at_most=0)
    head_kind: str = _clipo("linear", "shape of the contrastive head", choices=HEADS)
    head_size: int = _clipo(32, "width of the embeddings", at_least=1, at_most=65_536)
    head_learning_rate: float = _clipo(1e-3, "AdamW's learning rate for the head; 0 freezes it", at_least=0)
    head_weight_decay: float = _clipo(0.01, "AdamW's weight decay for the head", at_least=0)
    head_warmup_steps: int = _clipo(0, "first steps, in which only the head learns", at_least=0, common=True)

    prompt_contrast_weight: float = _prompt_contrast(
        0.0,
        "reward of a right answer for being likelier under its own prompt; 0: off",
        at_least=0,
        needs="",
    )
    prompt_contrast_others: int = _prompt_contrast(2, "other prompts that it is compared with (K)", at_least=1)

    process_penalty: float = option(
        0.0, "what a wrong step costs a correct rollout; 0: off", group="oracle, which sees steps", at_least=0
    )

    def __post_init__(self):
        check(self)
        rollouts = self.prompts_per_step * self.group_size
        if rollouts > 1_000_000:
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} times group_size {self.group_size} must be at most 1000000 "
                "rollouts"
            )
        if self.num_mini_batches > rollouts:
            raise ValueError(
                f"num_mini_batches {self.num_mini_batches} must be at most the number of rollouts, prompts_per_step "
                f"{self.prompts_per_step} times group_size {self.group_size}"
            )
        if self.ratio != "geometric_mean" and self.clip_low > 1:
            raise ValueError(f"clip_low must be at most 1, found {self.clip_low}: no ratio is below 0")
        if 0 < self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1, or 0 for off; found {self.dual_clip}")
        if self.prompt_contrast_weight and self.prompt_contrast_others >= self.prompts_per_step:
            raise ValueError(
                f"prompt_contrast_others {self.prompt_contrast_others} must be below prompts_per_step "
                f"{self.prompts_per_step}: the others come from the same batch"
            )
        compared = self.group_size if self.contrastive_level == "group" else rollouts
        if self.contrastive_weight and compared < 3:
            raise ValueError(
                f"contrastive_weight does nothing where {compared} rollouts are compared: a right one needs another "
                "right one and a wrong one. Raise group_size to at least 3"
            )
        if self.contrastive_weight and self.contrastive_floor == 0:
            raise ValueError("contrastive_floor 0 cuts every contrastive reward to 0; it must be below 0")
        if self.learning_rate_warmup > self.steps:
            raise ValueError(
                f"learning_rate_warmup must be at most the number of steps, {self.steps}, or the learning rate is never "
                f"reached; found {self.learning_rate_warmup}"
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
