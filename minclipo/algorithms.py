"""The RLVR algorithms as settings. All of them share the sampler, the verifier, the contrastive part and the loop.

| name            | ratio    | clip                | mean over        | advantage    | besides                        |
|-----------------|----------|---------------------|------------------|--------------|--------------------------------|
| grpo            | token    | 0.2, 0.2            | tokens           | / std        |                                |
| grpo_published  | token    | 0.2, 0.2            | rollouts, tokens | / std        | k3 KL to the start, 0.04       |
| dr_grpo         | token    | 0.2, 0.2            | N * max_length   | not divided  |                                |
| dapo            | token    | 0.2, 0.28           | tokens           | / std        | dynamic sampling, overlong     |
| gspo            | sequence | 3e-4, 4e-4          | rollouts         | / std        |                                |
| gmpo            | geometric mean | 0.4, 0.4 (logs) | rollouts       | / std        |                                |

What a paper says about model, data, batch or learning rate is no part of its algorithm and not in here.
"""

from minclipo.config import TrainConfig

NAMES = {
    "grpo": "GRPO",
    "grpo_published": "GRPO as published",
    "dr_grpo": "Dr. GRPO",
    "dapo": "DAPO",
    "gspo": "GSPO",
    "gmpo": "GMPO",
}
ALGORITHM_FIELDS = (
    "ratio",
    "clip_low",
    "clip_high",
    "dual_clip",
    "aggregation",
    "advantage_scale",
    "kl_weight",
    "kl_kind",
    "dynamic_sampling",
    "overlong_penalty",
    "overlong_buffer",
)


def _algorithm(**settings) -> dict:
    """All of ALGORITHM_FIELDS: those given, the others as TrainConfig has them."""
    return {name: getattr(TrainConfig, name) for name in ALGORITHM_FIELDS} | settings


ALGORITHMS = {
    # As it is mostly run today: verl's defaults without its dual clip, CLIPO's baseline without its KL and dual clip.
    "grpo": _algorithm(),
    # DeepSeekMath (arXiv 2402.03300), eq. 3 and section 4.2, which says nothing of the clip range: 0.2 is PPO's.
    "grpo_published": _algorithm(aggregation="sequence_mean", kl_weight=0.04, kl_kind="k3"),
    # Dr. GRPO (arXiv 2503.20783), section 3: neither lengths nor standard deviations weigh anything.
    "dr_grpo": _algorithm(aggregation="constant", advantage_scale="none"),
    # DAPO (arXiv 2503.14476), section 4.1. Its penalty of 1 is for rewards of 1 and -1; its buffer 4096 of 20480 tokens.
    # The limit of 10 batches is verl's.
    "dapo": _algorithm(clip_high=0.28, dynamic_sampling=10, overlong_penalty=0.5, overlong_buffer=0.2),
    # GSPO (arXiv 2507.18071), section 5.1.
    "gspo": _algorithm(ratio="sequence", aggregation="sequence_mean", clip_low=3e-4, clip_high=4e-4),
    # GMPO (arXiv 2507.20673), section 4; the clip bounds are logarithms: ratios in (0.67, 1.49).
    "gmpo": _algorithm(ratio="geometric_mean", aggregation="sequence_mean", clip_low=0.4, clip_high=0.4),
}
