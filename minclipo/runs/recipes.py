"""Every named bundle of settings, once: algorithms, the toy and its methods, real models, the paper's two recipes.

A bundle is a dict of options of TrainConfig (and of train_llm.py's own); the command line wins over all of them.
runs/README.md says where each number of the paper comes from.
"""

import dataclasses

from minclipo.config import TrainConfig

# ---- the algorithms: --algorithm (runs/README.md has them as a table) ----
# What a paper says about model, data, batch or learning rate is not part of its algorithm, so it is not here.

NAMES = {
    "grpo": "GRPO",
    "grpo_published": "GRPO as published",
    "dr_grpo": "Dr. GRPO",
    "dapo": "DAPO",
    "gspo": "GSPO",
    "gmpo": "GMPO",
}


def _algorithm(**settings) -> dict:
    """All options of the algorithm's group: those given, the others as TrainConfig has them."""
    fields = [field for field in dataclasses.fields(TrainConfig) if field.metadata["group"].startswith("algorithm")]
    return {field.name: field.default for field in fields} | settings


ALGORITHMS = {
    # As it is mostly run today: verl's defaults without its dual clip, CLIPO's baseline without its KL and dual clip.
    "grpo": _algorithm(),
    # DeepSeekMath (arXiv 2402.03300), eq. 3 and section 4.2, which says nothing of the clip range: 0.2 is PPO's.
    "grpo_published": _algorithm(aggregation="sequence_mean", kl_weight=0.04, kl_kind="k3"),
    # Dr. GRPO (arXiv 2503.20783), section 3: nothing is divided by a length or a standard deviation.
    "dr_grpo": _algorithm(aggregation="constant", advantage_scale="none"),
    # DAPO (arXiv 2503.14476), section 4.1. Its penalty of 1 is for rewards of 1 and -1, its buffer 4096 of 20480
    # tokens. The limit of 10 batches is verl's.
    "dapo": _algorithm(clip_high=0.28, dynamic_sampling=10, overlong_penalty=0.5, overlong_buffer=0.2),
    # GSPO (arXiv 2507.18071), section 5.1.
    "gspo": _algorithm(ratio="sequence", aggregation="sequence_mean", clip_low=3e-4, clip_high=4e-4),
    # GMPO (arXiv 2507.20673), section 4; the clip bounds are logarithms: ratios in (0.67, 1.49).
    "gmpo": _algorithm(ratio="geometric_mean", aggregation="sequence_mean", clip_low=0.4, clip_high=0.4),
}

# ---- CLIPO (arXiv 2603.10101) as its official scripts run it, whatever the model and the data ----

PAPER = dict(
    contrastive_weight=0.2,
    contrastive_loss="infonce",
    contrastive_level="group",
    contrastive_temperature=0.05,
    contrastive_center=False,
    kl_weight=0.001,
    dual_clip=3.0,
)
PAPER_WARMUP = 13 / 84  # of its first recipe's 84 steps the first 13 train the head only

# ---- the toy: train_toy.py ----

TOY = dict(steps=100, learning_rate=5e-4)
METHODS = {
    "baseline": {},
    "clipo": dict(contrastive_weight=0.1),
    "oracle": dict(process_penalty=0.5),
    "prompt_contrast": dict(prompt_contrast_weight=0.2),  # ours, not the paper's
    "clipo_paper": PAPER | dict(head_size=16),  # a quarter of the width, as 512 of 2048
}
# The option that makes a method what it is. What needs that option belongs to the method, too.
SWITCHES = {"clipo": "contrastive_weight", "oracle": "process_penalty", "prompt_contrast": "prompt_contrast_weight"}

# ---- real models: train_llm.py ----

LLM = dict(
    steps=100,
    row_seeds=True,
    prompts_per_step=16,
    group_size=8,
    max_new_tokens=256,
    learning_rate=1e-6,
    micro_batch_tokens=8192,
    head_size=512,
)
TRACK = PAPER | dict(
    group_size=16,
    learning_rate=1e-6,
    weight_decay=0.01,
    sampling_rows=128,  # this and the next two are ours: they affect memory only, not what is learnt
    micro_batch_tokens=8192,
    gradient_checkpointing=True,
)


def scaled_warmup(recipe: dict, steps: int) -> int:
    """The recipe's share of steps in which only the head learns, of another number of steps."""
    return round(recipe["head_warmup_steps"] * steps / recipe["steps"])


PRESETS = {
    "none": {},
    "track1": TRACK
    | dict(
        model="Qwen/Qwen2.5-3B-Instruct",
        data="openai/gsm8k:main/train-*",
        eval_data="openai/gsm8k:main/test-*",
        steps=84,
        prompts_per_step=512,
        num_mini_batches=2,
        max_new_tokens=2048,
        head_size=512,
        head_warmup_steps=13,
        eval_every=7,
        eval_problems=0,
    ),
    "track2": TRACK
    | dict(
        model="Qwen/Qwen2.5-7B-Instruct",
        data="EleutherAI/hendrycks_math:*/train-*",
        eval_data="HuggingFaceH4/MATH-500:test.jsonl",
        question_field="problem",
        answer_field="solution",
        steps=580,
        prompts_per_step=128,
        num_mini_batches=1,
        max_new_tokens=4096,
        head_size=2048,
        head_warmup_steps=57,
        eval_every=29,
        eval_problems=0,
        eval_samples=16,
    ),
}
