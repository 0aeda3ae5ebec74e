"""A tiny training step with each option, for tests/gpu and for a pretended GPU."""

import zlib

import torch
from conftest import small_gpt

from minclipo.config import TrainConfig
from minclipo.contrastive import HEADS, LEVELS, LOSSES
from minclipo.extensions.lora import adapter_weights, add_lora
from minclipo.model import GPT
from minclipo.runs.recipes import ALGORITHMS, METHODS
from minclipo.tasks import Task
from minclipo.toy import TASK, toy_tokenizer
from minclipo.trainer import Trainer

EASY = Task(  # a model of random weights is right half of the time
    TASK.draw,
    lambda problem, text, finished: zlib.crc32(text.encode()) % 2 == 0,
    lambda problem, text: [True, len(text) % 3 > 0],
)
TINY = dict(steps=9, prompts_per_step=6, group_size=8, learning_rate=1e-3)
OPTIONS = {f"algorithm {name}": options for name, options in ALGORITHMS.items()}
OPTIONS |= {f"method {name}": options for name, options in METHODS.items()}
OPTIONS |= {
    f"{loss} {level}": dict(contrastive_weight=0.1, contrastive_loss=loss, contrastive_level=level)
    for loss in LOSSES
    for level in LEVELS
}
OPTIONS |= {f"head {kind}": dict(contrastive_weight=0.1, head_kind=kind) for kind in HEADS}
OPTIONS |= {
    "l2": dict(contrastive_weight=0.1, contrastive_similarity="l2"),
    "KL penalty": dict(kl_weight=0.1),
    "micro-batches": dict(micro_batch_tokens=150),
    "one mini-batch": dict(num_mini_batches=1),
    "sampled in parts": dict(sampling_rows=16),
    "random numbers by row": dict(row_seeds=True),
    "adapters": dict(lora=True, kl_weight=0.01),
    "gradient checkpointing": dict(gradient_checkpointing=True, micro_batch_tokens=150),
}


def trainer_of(
    device: str, dtype=torch.float32, gradient_checkpointing=False, compiled=False, lora=False, **options
) -> Trainer:
    model = small_gpt(vocab_size=122, head_dim=64).to(device, dtype)  # fused attention needs a multiple of 8
    if lora:
        with_adapters(model)
    model.gradient_checkpointing, model.compiled = gradient_checkpointing, compiled
    return Trainer(model, toy_tokenizer(), EASY, TrainConfig(**TINY | options))


def with_adapters(model: GPT) -> GPT:
    """Of random numbers, so that they change what it says."""
    add_lora(model, rank=4, alpha=8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in adapter_weights(model).values():
            weight.add_(0.1)
    return model
