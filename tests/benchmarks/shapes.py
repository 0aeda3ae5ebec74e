"""What the benchmarks share: models of published shapes with random weights, and a training step of a known size."""

import random
from collections.abc import Callable

import memory_table
import torch

from minclipo.checkpoint import Tokenizer
from minclipo.config import TrainConfig
from minclipo.model import GPT, GPTConfig, init_weights
from minclipo.tasks import Task
from minclipo.tasks.sums import SumProblem
from minclipo.trainer import Trainer

SHAPES = {"tiny": (300, 64, 2, 4, 2, 128, True)} | memory_table.SHAPES  # tiny: to try a benchmark out


def shape_of(name: str) -> GPTConfig:
    V, D, layers, H, K, mlp, tied = SHAPES[name]
    return GPTConfig(V, D, layers, H, K, mlp, max_positions=32768, tie_embeddings=tied)


def random_model(shape: GPTConfig, device: torch.device, dtype: torch.dtype) -> GPT:
    """Speed and memory do not depend on the weights. They are made on the device, where that takes no time."""
    with torch.device(device):
        model = GPT(shape)
    return init_weights(model, torch.Generator(device).manual_seed(0)).to(dtype)


def even_task(write: Callable[[str], str]) -> Task:
    """Sums in words; `write` makes the prompt. Right is what random weights write as often as not, so that rewards
    differ."""

    def draw(stream: str, index: int) -> SumProblem:
        a, b = index % 10, index * 7 % 10
        return SumProblem(write(f"What is {a} + {b}?"), a, b)

    return Task(draw, lambda problem, text, finished: sum(map(ord, text)) % 2 == 0)


def one_update(prompts: int, group_size: int, tokens: int, micro_batch_tokens: int) -> TrainConfig:
    """A step of prompts x group_size rollouts of at most that many tokens, with one optimizer step."""
    return TrainConfig(
        prompts_per_step=prompts,
        group_size=group_size,
        max_new_tokens=tokens,
        num_mini_batches=1,
        learning_rate=1e-5,
        micro_batch_tokens=micro_batch_tokens,
    )


def endless_trainer(model: GPT, config: TrainConfig, prompt_tokens: int) -> Trainer:
    """Prompts are that many random words, one for each id of the model. No token ends a completion."""
    words = [f"w{i}" for i in range(model.config.vocab_size)]
    tokenizer = Tokenizer.from_words(words, words[0])
    tokenizer.eos_ids = []
    task = even_task(lambda question: " ".join(random.Random(question).choices(words, k=prompt_tokens)))
    return Trainer(model, tokenizer, task, config)
