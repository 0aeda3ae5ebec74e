"""Solution of exercise 1. Compare RMSNorm, rotate and attention in minclipo/model.py."""

import torch
from torch import Tensor


def rms_norm(u: Tensor, gain: Tensor, eps: float) -> Tensor:
    # bfloat16 overflows no sooner than float32, but its 8 bits are too few for a sum over
    # the width.
    wide = u.float() if u.dtype in (torch.float16, torch.bfloat16) else u
    size = (wide.square().mean(-1, keepdim=True) + eps).sqrt()  # [..., 1]
    return gain * (wide / size).to(u.dtype)


def rotate(channels: Tensor, positions: Tensor, theta: float) -> Tensor:
    half = channels.shape[-1] // 2
    pairs = torch.arange(half, dtype=torch.float32, device=channels.device)  # [C / 2]
    speeds = theta ** (-pairs / half)  # 2n / C = n / half
    angles = positions[:, None, :, None] * speeds  # [N, 1, T, C / 2], 1 for the heads
    # Rounded only now, when they are between -1 and 1:
    cos, sin = angles.cos().to(channels.dtype), angles.sin().to(channels.dtype)
    first, second = channels.split(half, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    (T, C), (K, S) = query.shape[-2:], key.shape[1:3]
    grouped = query.unflatten(1, (K, -1))  # [N, K, H / K, T, C]: no key is copied
    scores = grouped @ key[:, :, None].mT / C**0.5  # [N, K, H / K, T, S]
    # Query t stands at place S - T + t. A triangle from the top left corner would hide
    # the past from the first queries.
    future = torch.ones(T, S, dtype=torch.bool, device=query.device).triu(S - T + 1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return (weights @ value[:, :, None]).flatten(1, 2)
