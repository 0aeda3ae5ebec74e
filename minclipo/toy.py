"""The toy in one place: its tokenizer, its model, its task, and its pretraining on the careless textbook."""

import random
from dataclasses import dataclass

import torch

from minclipo.model import GPT, GPTConfig, init_weights
from minclipo.options import check_options, option
from minclipo.pretrain import pretrain
from minclipo.tasks import Task
from minclipo.tasks.chain import OPERANDS, WORDS, CarelessAuthor, check_outcome, check_steps, random_problem
from minclipo.tokenizer import Tokenizer

EOS = "<eos>"


def toy_task(operations: tuple[int, int] = (4, 4), choices: tuple[int, ...] = OPERANDS) -> Task:
    """Chains of this many operations (fewest, most), with operands out of `choices`."""
    draw = lambda stream, index: random_problem(random.Random(f"{stream} {index}"), operations, choices)
    return Task(draw=draw, check_outcome=check_outcome, check_steps=check_steps)


TASK = toy_task()


# What the toy does otherwise than TrainConfig's defaults, and what makes each method what it is.
TOY = dict(steps=100, learning_rate=5e-4)
METHODS = {
    "baseline": {},
    "clipo": dict(contrastive_weight=0.1),
    "oracle": dict(process_penalty=0.5),
    "prompt_contrast": dict(prompt_contrast_weight=0.2),  # ours, not the paper's
    # The paper's contrastive options, KL, dual clip and share of warm-up steps (its Track I; scripts of the official
    # code). Model, task, batch and learning rate are the toy's.
    "clipo_paper": dict(
        contrastive_weight=0.2,
        contrastive_loss="infonce",
        contrastive_level="group",
        contrastive_temperature=0.05,
        contrastive_center=False,
        head_size=16,  # a quarter of the width, as 512 of 2048
        kl_weight=0.001,
        dual_clip=3.0,
    ),
}
PAPER_WARMUP = 13 / 84  # of Track I's 84 steps the first 13 train the head only: train_toy.py adds that


@dataclass
class ToyConfig:
    """The toy's model, textbook and pretraining."""

    num_layers: int = option(2, "blocks of the model", at_least=1)
    hidden_size: int = option(64, "width of the model", at_least=1)
    num_heads: int = option(4, "attention heads", at_least=1)
    intermediate_size: int = option(192, "width of the gated MLP", at_least=1)
    hallucinate: float = option(
        0.15, "probability a step that the textbook quotes a made-up operand", at_least=0, at_most=1
    )
    slip: float = option(0.08, "probability a step that the textbook adds wrongly", at_least=0, at_most=1)
    shared_step: float = option(
        0.0, "probability a solution that the textbook quotes +1 in step 2, right or not", at_least=0, at_most=1
    )
    total_first: float = option(
        0.0, "probability a solution that the textbook writes totals before operands", at_least=0, at_most=1
    )
    pretrain_steps: int = option(2000, "optimizer steps on the textbook", at_least=1)
    pretrain_batch: int = option(128, "solutions a step", at_least=1)
    pretrain_learning_rate: float = option(3e-3, "AdamW's highest learning rate on the textbook", above=0)
    eval_problems: int = option(2000, "fresh problems of the final evaluation", at_least=1)

    def __post_init__(self):
        check_options(self)


def toy_tokenizer() -> Tokenizer:
    return Tokenizer.from_words(WORDS, EOS)


def toy_model(config: ToyConfig, seed: int) -> GPT:
    """A freshly initialised small Llama."""
    shape = GPTConfig(
        vocab_size=len(WORDS),
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_positions=128,
    )
    return init_weights(GPT(shape), torch.Generator().manual_seed(seed))


def textbook_page(
    config: ToyConfig, tokenizer: Tokenizer, rng: random.Random, operations: tuple[int, int] = (4, 4)
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of fresh problems and of the careless author's solutions to them."""
    author = CarelessAuthor(config.hallucinate, config.slip, config.shared_step, config.total_first)
    problems = [random_problem(rng, operations) for _ in range(config.pretrain_batch)]
    solutions = [f"{author.solution(problem, rng)} {EOS}" for problem in problems]
    return tokenizer.encode_batch([problem.prompt for problem in problems]), tokenizer.encode_batch(solutions)


def pretrained_toy(config: ToyConfig, tokenizer: Tokenizer, seed: int, operations: tuple[int, int] = (4, 4)) -> GPT:
    """A model that has read the careless textbook, on chains of that many operations: the start that methods share."""
    model, rng = toy_model(config, seed), random.Random(f"textbook {seed}")
    pretrain(
        model,
        lambda: textbook_page(config, tokenizer, rng, operations),
        steps=config.pretrain_steps,
        learning_rate=config.pretrain_learning_rate,
    )
    return model
