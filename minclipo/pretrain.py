"""Supervised pretraining: next-token prediction on prompts with worked solutions. It makes the toy's starting point."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tqdm import tqdm

from minclipo.model import GPT
from minclipo.sampler import pad_right


def cosine_schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Factor on the learning rate: a linear rise, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


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
    page: Callable[[], tuple[list[list[int]], list[list[int]]]],
    *,
    steps: int,
    learning_rate: float,
    max_grad_norm: float = 1.0,
) -> float:
    """Train on `steps` pages; `page()` gives fresh (prompts, solutions) as ids. Returns the last pages' mean loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_schedule(step, steps, min(100, steps // 10))
    )
    losses = []
    with tqdm(range(steps), desc="pretraining", disable=None) as bar:
        for _ in bar:
            loss = solution_loss(model, *page())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
            schedule.step()
            losses = [*losses[-49:], loss.item()]
            bar.set_postfix(loss=f"{sum(losses) / len(losses):.3f}", refresh=False)
    return sum(losses) / len(losses)
