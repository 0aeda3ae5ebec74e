"""The toy in one place: its tokenizer, its model, its task, and its pretraining on the careless textbook."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from minclipo.checkpoint import Tokenizer
from minclipo.config import check, option
from minclipo.extensions.schedule import learning_rate_factor
from minclipo.model import GPT, GPTConfig, init_weights
from minclipo.sampler import pad_right
from minclipo.tasks import Task
from minclipo.tasks.chain import OPERANDS, WORDS, CarelessAuthor, check_outcome, check_steps, random_problem

EOS = "<eos>"


def toy_task(operations: tuple[int, int] = (4, 4), choices: tuple[int, ...] = OPERANDS) -> Task:
    """Chains of this many operations (fewest, most), with operands out of `choices`."""
    draw = lambda stream, index: random_problem(random.Random(f"{stream} {index}"), operations, choices)
    return Task(draw=draw, check_outcome=check_outcome, check_steps=check_steps)


TASK = toy_task()
_model = partial(option, group="model of the toy")
_textbook = partial(option, group="careless textbook and pretraining")


@dataclass
class ToyConfig:
    """The toy's model, textbook and pretraining."""

    num_layers: int = _model(2, "blocks of the model", at_least=1, at_most=100)
    hidden_size: int = _model(64, "width of the model", at_least=1, at_most=4096)
    num_heads: int = _model(4, "attention heads", at_least=1, at_most=4096)
    intermediate_size: int = _model(192, "width of the gated MLP", at_least=1, at_most=16_384)
    hallucinate: float = _textbook(
        0.15, "probability per step that the textbook quotes a made-up operand", at_least=0, at_most=1, common=True
    )
    slip: float = _textbook(0.08, "probability per step that the textbook adds wrongly", at_least=0, at_most=1)
    shared_step: float = _textbook(
        0.0, "probability per solution that the textbook quotes +1 in step 2, right or not", at_least=0, at_most=1
    )
    total_first: float = _textbook(
        0.0, "probability per solution that the textbook writes totals before operands", at_least=0, at_most=1
    )
    believe: float = _textbook(
        0.0, "probability that the textbook adds a made-up operand as quoted: answers show it", at_least=0, at_most=1
    )
    pretrain_steps: int = _textbook(2000, "optimizer steps on the textbook", at_least=1, common=True)
    pretrain_batch: int = _textbook(128, "solutions per step", at_least=1, at_most=1_000_000)
    pretrain_learning_rate: float = _textbook(3e-3, "AdamW's highest learning rate on the textbook", above=0)
    eval_problems: int = option(
        2000, "fresh problems of the final evaluation", group="run", at_least=1, at_most=1_000_000, common=True
    )

    def __post_init__(self):
        check(self)
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 2 * num_heads = {2 * self.num_heads}: heads "
                "share it equally, and rotation turns pairs of channels"
            )


def toy_tokenizer() -> Tokenizer:
    """One token per word of the chains."""
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


# ---- pretraining: next-token prediction on prompts with worked solutions ----

Page = tuple[list[list[int]], list[list[int]]]  # token ids of prompts and of solutions to them


def textbook_page(
    config: ToyConfig, tokenizer: Tokenizer, rng: random.Random, operations: tuple[int, int] = (4, 4)
) -> Page:
    """Fresh problems and the careless author's solutions to them."""
    author = CarelessAuthor(config.hallucinate, config.slip, config.shared_step, config.total_first, config.believe)
    problems = [random_problem(rng, operations) for _ in range(config.pretrain_batch)]
    solutions = [f"{author.solution(problem, rng)} {EOS}" for problem in problems]
    return tokenizer.encode_batch([problem.prompt for problem in problems]), tokenizer.encode_batch(solutions)


def solution_loss(model: GPT, prompts: list[list[int]], solutions: list[list[int]]) -> torch.Tensor:
    """Mean cross-entropy of the solutions' tokens given all before them, in nats; prompts are not learnt."""
    tokens, lengths = pad_right([p + s for p, s in zip(prompts, solutions)], model.embed_tokens.weight.device)  # [B, L]
    starts = torch.tensor([len(prompt) for prompt in prompts], device=tokens.device)[:, None]
    places = torch.arange(1, tokens.shape[1], device=tokens.device)  # of the tokens to be predicted
    mask = (places >= starts) & (places < lengths[:, None])  # [B, L - 1]
    hidden = model(tokens[:, :-1])[mask]  # [tokens to learn, D]: no logits for the prompts
    return F.cross_entropy(model.logits(hidden).float(), tokens[:, 1:][mask])


def pretrain(
    model: GPT,
    page: Callable[[], Page],
    *,
    steps: int,
    learning_rate: float,
    progress: Callable[[range], Iterable] = iter,
) -> float:
    """Train on `steps` pages; `page()` gives fresh (prompts, solutions). Returns the mean loss of the last 50 pages.
    progress: sees the steps go by."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    factor = lambda done: learning_rate_factor("cosine", done + 1, steps, min(100, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    for _ in progress(range(steps)):
        loss = solution_loss(model, *page())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses = [*losses[-49:], loss.item()]
    return sum(losses) / len(losses)


def pretrained_toy(
    config: ToyConfig,
    tokenizer: Tokenizer,
    seed: int,
    operations: tuple[int, int] = (4, 4),
    progress: Callable[[range], Iterable] = iter,
) -> GPT:
    """A model that has read the careless textbook, on chains of that many operations: the start that methods share."""
    model, rng = toy_model(config, seed), random.Random(f"textbook {seed}")
    pretrain(
        model,
        lambda: textbook_page(config, tokenizer, rng, operations),
        steps=config.pretrain_steps,
        learning_rate=config.pretrain_learning_rate,
        progress=progress,
    )
    return model
